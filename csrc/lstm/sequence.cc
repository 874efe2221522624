// What both passes share, and the forward one. sequence_backward.cc has the other.
#include "lstm/sequence.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "cpu/dispatch.h"
#include "cpu/panel_sizes.h"

namespace lstmfast {

template <typename T>
Division Sequence<T>::division(double multiply_adds_per_step) const {
  if (products_ == unpacked_.get()) return {1, false};
  return divide_steps(plan_, multiply_adds_per_step, k_->tile_rows);
}

template <typename T>
Index Sequence<T>::saved_size(Index updates, Index hidden_size, bool has_projection) {
  return updates * (PanelSizes<T>(kernels<T>()).gate_depth(hidden_size) + (has_projection ? 2 : 1) * hidden_size);
}

template <typename T>
void Sequence<T>::load(const SequenceWeights<T>& weights) {
  weights_ = weights;
  cell_.variant.peepholes = weights.peepholes;
  has_seen_weights_ = false;
}

// What a forward pass and a backward one that is restored have in common: all but reading the weights.
template <typename T>
void Sequence<T>::begin(const SequenceForwardArgs<T>& args) {
  args_ = args;
  k_ = &kernels<T>();
  const Index hidden = weights_.hidden_size, output_size = weights_.output_size;
  if (weights_.transposed) {
    const Index rows = weights_.input_size + output_size, columns = kGateCount * hidden;
    weights_.kernel = {kernel_.resize(rows * columns), columns};
    if (weights_.transposed.projection)
      weights_.projection = {projection_kernel_.resize(hidden * output_size), output_size};
  }
  plan_.build(args.time_steps, args.batch, args.lengths, args.resets, reverse_);
  constexpr std::size_t kBytesOfRow = sizeof(RowUpdate) + 20 * sizeof(T*);
  if (recent_rows_.is_outgrown_by(plan_.updates.size(), x_.capacity(), kBytesOfRow)) {
    release_rows();
    plan_.updates.shrink_to_fit();
  }
  choose_products();
  const Index updates = plan_.count();
  T* saved = args.saved;
  if (!saved) {
    // Without a backward to come, only gates that are asked for and the current m of every row need room.
    const Index size = args.keep_for_backward ? saved_size(updates, hidden, static_cast<bool>(weights_.projection))
                       : args.gates           ? updates * PanelSizes<T>(*k_).gate_depth(hidden)
                                              : 0;
    const Index current = args.keep_for_backward || !weights_.projection ? 0 : plan_.batch * hidden;
    saved = saved_.resize(size + current);
    m_ = saved + size;
  }
  gates_ = saved;
  cells_ = saved + updates * PanelSizes<T>(*k_).gate_depth(hidden);
  if (args.keep_for_backward) m_ = cells_ + updates * hidden;
  const Index longest = std::max(hidden, output_size);
  std::fill_n(zeros_.resize(longest), longest, T(0));
}

template <typename T>
void Sequence<T>::forward(const SequenceForwardArgs<T>& args) {
  begin(args);
  if (!pack_weights() || !run_forward()) {
    products_ = fma_.get();
    products_->prepare(num_threads());
    pack_weights();
    run_forward();
  }
  finish_forward();
  steps_before_ += plan_.steps();
}

template <typename T>
void Sequence<T>::restore(const SequenceForwardArgs<T>& args) {
  begin(args);
  if (args.ids) read_ids();
  if (weights_.transposed) transpose_weights();
  if (variant().coupled_gates) leave_out_forget_gate();
  point_rows();
}

template <typename T>
void Sequence<T>::release_memory(bool backward_may_come) {
  const auto release = [](auto& buffer) { buffer.release(); };
  for_each_workspace(release);
  projection_.release_workspaces();
  for (Products<T>* products : {fma_.get(), unpacked_.get(), split_.get()})
    if (products) products->release_workspaces();
  if (backward_may_come) return;
  for_each_kept(release);
  release_rows();
  plan_ = {};
}

template <typename T>
void Sequence<T>::release_rows() {
  const auto release = [](auto&... rows) { (std::decay_t<decltype(rows)>().swap(rows), ...); };
  release(m_rows_, d_h_total_rows_, d_m_rows_, nothing_, ids_, init_, z_rows_, x_, h_prev_, c_prev_);
  release(d_h_, d_h_extra_, d_c_in_, d_gates_next_, d_gates_rows_, h_, c_, d_c_out_, out_);
}

template <typename T>
std::size_t Sequence<T>::size_bytes() {
  std::size_t bytes = projection_.size_bytes();
  const auto add = [&](const auto& buffer) { bytes += buffer.size_bytes(); };
  for_each_workspace(add);
  for_each_kept(add);
  for (const Products<T>* products : {fma_.get(), unpacked_.get(), split_.get()})
    if (products) bytes += products->size_bytes();
  return bytes;
}

template <typename T>
void Sequence<T>::choose_products() {
  if (made_for_ != k_) {
    made_for_ = k_;
    fma_ = make_fma_products<T>(*k_);
    unpacked_ = make_unpacked_products<T>(*k_);
    split_.reset();
    packed_ = {};
  }
  products_ = fma_.get();
  const bool once = args_.keep_for_backward || weights_.serve_one_call;
  const Index few = once ? kRowsUnpacked : weights_.are_frozen ? 0 : kRowsUnlooked;
  if (plan_.count() > 0 && plan_.count() <= few && is_plain()) products_ = unpacked_.get();
  if constexpr (std::is_same_v<T, float>) {
    if (is_plain() && split_products_pay(args_.precision, plan_.batch, weights_.hidden_size)) {
      if (!split_ || split_precision_ != args_.precision) {
        split_ = make_split_products(*k_, *current_kernels().split, args_.precision);
        split_precision_ = args_.precision;
        packed_ = {};  // or what was made anew might lie where the old one was
      }
      products_ = split_.get();
    }
  }
  products_->prepare(num_threads());
}

template <typename T>
bool Sequence<T>::pack_weights() {
  const Index hidden = weights_.hidden_size;
  const T* bias = sum_of_biases();
  if (args_.ids) {
    read_ids();
    starting_values_.pack_rows(*k_, weights_.kernel, weights_.input_size, ids_.data(), plan_.count(), hidden, bias,
                               cell_.forget_bias);
  } else {
    starting_values_.pack_bias(*k_, bias, cell_.forget_bias, hidden);
  }
  // They read the weights of every call where they lie, and leave alone what others have packed.
  if (products_ == unpacked_.get()) return products_->pack(input_kernel(input_rows()), recurrent_kernel(), hidden);
  if (are_packed()) return true;
  const Packed wanted = std::exchange(packed_, {});
  if (weights_.transposed) transpose_weights();
  if (variant().coupled_gates) leave_out_forget_gate();
  if (weights_.projection) projection_.pack(*k_, weights_.projection, hidden, weights_.output_size);
  if (!products_->pack(input_kernel(input_rows()), recurrent_kernel(), hidden)) return false;
  packed_ = wanted;
  return true;
}

// Whether the products in use hold this call's weights already; if not, what they will hold when they are packed is left in
// packed_. Calls whose packing serves no other do not look: packing costs them less than looking and packing.
template <typename T>
bool Sequence<T>::are_packed() {
  Packed wanted;
  wanted.by = products_;
  wanted.transposed = static_cast<bool>(weights_.transposed);
  wanted.projected = static_cast<bool>(weights_.projection);
  wanted.input_rows = input_rows();
  wanted.hidden = weights_.hidden_size;
  wanted.output = weights_.output_size;
  const bool fits = packed_.is_of(wanted);
  if (!args_.keep_for_backward && !weights_.serve_one_call) {
    if (fits && weights_.are_frozen && has_seen_weights_) return true;
    wanted.fingerprint = fingerprint_of_weights();
    has_seen_weights_ = true;
    if (fits && packed_.fingerprint == wanted.fingerprint) return true;
  }
  packed_ = wanted;
  return false;
}

template <typename T>
const T* Sequence<T>::sum_of_biases() {
  if (!weights_.second_bias) return weights_.bias;
  const Index columns = kGateCount * weights_.hidden_size;
  T* sum = bias_.resize(columns);
  for (Index i = 0; i < columns; ++i) sum[i] = weights_.bias[i] + weights_.second_bias[i];
  return sum;
}

// Of all that packing reads but biases.
template <typename T>
Fingerprint Sequence<T>::fingerprint_of_weights() const {
  const Index columns = kGateCount * weights_.hidden_size, rows = input_rows(), output = weights_.output_size;
  if (weights_.transposed) {
    const auto& [input, recurrent, projection] = weights_.transposed;
    return fingerprint_of<T>(
        *k_, {{input, columns, rows}, {recurrent, columns, output}, {projection, output, weights_.hidden_size}});
  }
  const MatrixView<const T> kernel{weights_.kernel.row(weights_.input_size - rows), weights_.kernel.stride};
  return fingerprint_of<T>(*k_,
                           {{kernel, rows + output, columns}, {weights_.projection, weights_.hidden_size, output}});
}

template <typename T>
void Sequence<T>::read_ids() {
  ids_.resize(plan_.updates.size());
  for (Index r = 0; r < plan_.count(); ++r) ids_[r] = *args_.ids.row(plan_.updates[r].time, plan_.updates[r].batch);
}

// Those that the products in use do not take as they lie.
template <typename T>
void Sequence<T>::transpose_weights() {
  const Index columns = kGateCount * weights_.hidden_size, input_size = weights_.input_size;
  const Index output_size = weights_.output_size;
  const auto& [input, recurrent, projection] = weights_.transposed;
  if (!reads_transposed()) {
    T* kernel = kernel_.data();
    k_->transpose(input.data, input.stride, columns, input_size, kernel, columns);
    k_->transpose(recurrent.data, recurrent.stride, columns, output_size, kernel + input_size * columns, columns);
  }
  if (projection)
    k_->transpose(projection.data, projection.stride, output_size, weights_.hidden_size, projection_kernel_.data(),
                  output_size);
}

// What is not read may be anything: zeros stand in its place, so that a NaN there reaches neither h nor gradients.
template <typename T>
void Sequence<T>::leave_out_forget_gate() {
  const Index hidden = weights_.hidden_size, columns = kGateCount * hidden, rows = input_rows() + weights_.output_size;
  T* copy = without_forget_gate_.resize(rows * columns);
  for (Index r = 0; r < rows; ++r, copy += columns) {
    std::copy_n(weights_.kernel.row(weights_.input_size - input_rows() + r), columns, copy);
    std::fill_n(copy + kForgetGate * hidden, hidden, T(0));
  }
}

template <typename T>
bool Sequence<T>::hoists_input() const {
  if (!has_input_product()) return false;
  return products_->keeps_preactivations() ||
         hoisting_pays(*k_, plan_.steps(), plan_.batch, weights_.input_size, weights_.hidden_size);
}

template <typename T>
void Sequence<T>::point_rows() {
  const Index rows = plan_.count(), hidden = weights_.hidden_size;
  for (auto* pointers : {&init_, &z_rows_, &x_, &h_prev_, &c_prev_}) pointers->resize(static_cast<std::size_t>(rows));
  for (auto* pointers : {&h_, &c_}) pointers->resize(static_cast<std::size_t>(rows));
  if (weights_.projection) {
    m_rows_.resize(static_cast<std::size_t>(rows));
    for (Index r = 0; r < rows; ++r) m_rows_[r] = m_ + (args_.keep_for_backward ? r : plan_.updates[r].batch) * hidden;
  }
  for (Index r = 0; r < rows; ++r) {
    const RowUpdate& update = plan_.updates[r];
    init_[r] = args_.ids ? starting_values_.of_id(r, ids_[r]) : starting_values_.of_all();
    x_[r] = args_.ids ? nullptr : args_.x.row(update.time, update.batch);
    h_[r] = args_.h.row(update.time, update.batch);
    c_[r] = args_.cells               ? args_.cells.row(update.time, update.batch)
            : args_.keep_for_backward ? cells_ + r * hidden
                                      : args_.c_n.row(update.batch);
    if (update.reset) {
      h_prev_[r] = c_prev_[r] = zeros_.data();
    } else if (update.previous >= 0) {
      h_prev_[r] = h_[update.previous];
      c_prev_[r] = c_[update.previous];
    } else {
      h_prev_[r] = args_.h0 ? args_.h0.row(update.batch) : zeros_.data();
      c_prev_[r] = args_.c0 ? args_.c0.row(update.batch) : zeros_.data();
    }
  }
}

template <typename T>
bool Sequence<T>::multiply_inputs(Range updates, const Preactivations<T>& z) {
  GateProductArgs<T> product{};
  product.block_end = PanelSizes<T>(*k_).gate_blocks(weights_.hidden_size);
  product.init = starting_values_.of_all();
  product.x = x_.data();
  product.input_size = weights_.input_size;
  product.z = z.panels;
  product.z_block_stride = z.block_stride;
  product.z_first_row = z.first_row;
  const Index rows = updates.end - updates.begin;
  std::atomic<bool> safe{true};
  run_parallel(threads_for_work(multiply_adds(rows, weights_.input_size)), [&](int part, int parts) {
    GateProductArgs<T> mine = product;
    const Range my_rows = split(rows, part, parts);
    mine.row_begin = updates.begin + my_rows.begin;
    mine.row_end = updates.begin + my_rows.end;
    if (!products_->multiply_inputs(mine, part)) safe = false;
  });
  return safe;
}

template <typename T>
bool Sequence<T>::run_forward() {
  const Index hidden = weights_.hidden_size, rows = plan_.count();
  const PanelSizes<T> sizes(*k_);
  point_rows();
  const bool keeps_gates = args_.keep_for_backward || args_.gates, hoists = hoists_input();
  const bool keeps_preactivations = hoists || products_->keeps_preactivations();
  StepForwardArgs<T> step{};
  step.hidden_size = hidden;
  step.init = hoists ? z_rows_.data() : init_.data();
  step.init_block_stride = args_.ids ? starting_values_.block_stride() : gate_width();
  step.x = x_.data();
  step.input_size = hoists || args_.ids ? 0 : weights_.input_size;
  step.h_prev = h_prev_.data();
  step.recurrent_size = weights_.output_size;
  step.c_prev = c_prev_.data();
  step.h = weights_.projection ? m_rows_.data() : h_.data();
  step.c = c_.data();
  step.gates = keeps_gates ? gates_ : nullptr;
  step.gate_block_stride = rows * gate_width();
  step.variant = has_hooks() ? &variant() : nullptr;

  // Pre-activations wait where the gates will be, or else in a buffer for some steps: 512 KB, so that most of L2 is left
  // to the weights, but at least 128 rows, which are enough to read the input's weights seldom.
  Index steps_at_once = plan_.steps();
  if (keeps_preactivations && !keeps_gates) {
    const Index rows_at_once = std::max<Index>(128, (Index{512} << 10) / (sizes.gate_depth(hidden) * Index{sizeof(T)}));
    steps_at_once = std::min(plan_.steps(), ceil_div(rows_at_once, std::max<Index>(plan_.batch, 1)));
    z_.resize(steps_at_once * plan_.batch * sizes.gate_depth(hidden));
  }
  const Division how = division(multiply_adds(plan_.batch, step.input_size + weights_.output_size) +
                                projecting_adds(plan_.batch));
  const Index projection_panels = weights_.projection ? sizes.panels(weights_.output_size) : 0;
  std::atomic<bool> safe{true};
  for (Index first = 0; first < plan_.steps() && safe; first += steps_at_once) {
    const Range steps{first, std::min(first + steps_at_once, plan_.steps())};
    Preactivations<T> z;
    if (keeps_preactivations) {
      const Range updates{plan_.step_begin[steps.begin], plan_.step_begin[steps.end]};
      z.rows = z_rows_.data();
      z.first_row = updates.begin;
      z.panels = keeps_gates ? gates_ + updates.begin * gate_width() : z_.data();
      z.block_stride = (keeps_gates ? rows : updates.end - updates.begin) * gate_width();
      for (Index r = updates.begin; r < updates.end; ++r) z_rows_[r] = z.panels + (r - updates.begin) * gate_width();
      if (hoists) {
        step.init_block_stride = z.block_stride;
        if (!multiply_inputs(updates, z)) return false;
      }
    }
    const Phase cells{sizes.gate_blocks(hidden), [&](Index t, Range updates, Range blocks, int part) {
      StepForwardArgs<T> mine = step;
      mine.row_begin = updates.begin;
      mine.row_end = updates.end;
      mine.block_begin = blocks.begin;
      mine.block_end = blocks.end;
      mine.descending = (steps_before_ + t) % 2 == 1;  // what the step before read last is still in cache
      if (!products_->step_forward(mine, z, part)) safe = false;
    }};
    const Phase projecting{projection_panels, [&](Index, Range updates, Range panels, int) {
      projection_.project(*k_, updates, panels, m_rows_.data(), hidden, h_.data(), weights_.output_size);
    }};
    for_each_step(plan_, Order::kForward, steps, how, cells, projecting);
  }
  return safe;
}

template <typename T>
void Sequence<T>::finish_forward() {
  const Index hidden = weights_.hidden_size;
  for (Index b = 0; b < args_.batch; ++b) {
    const Index last = plan_.last_of_row[b];
    const T* h = last >= 0 ? h_[last] : args_.h0 ? args_.h0.row(b) : zeros_.data();
    const T* c = last >= 0 ? c_[last] : args_.c0 ? args_.c0.row(b) : zeros_.data();
    std::copy_n(h, weights_.output_size, args_.h_n.row(b));
    if (c != args_.c_n.row(b)) std::copy_n(c, hidden, args_.c_n.row(b));
  }
  if (plan_.is_ragged()) {
    for (Index b = 0; b < args_.batch; ++b)
      for (Index t = args_.lengths[b]; t < args_.time_steps; ++t) {
        std::fill_n(args_.h.row(t, b), weights_.output_size, T(0));
        if (args_.cells) std::fill_n(args_.cells.row(t, b), hidden, T(0));
        if (args_.gates) std::fill_n(args_.gates.row(t, b), kGateCount * hidden, T(0));
      }
  }
  if (args_.gates) {
    out_.resize(plan_.updates.size());
    for (Index r = 0; r < plan_.count(); ++r)
      out_[r] = args_.gates.row(plan_.updates[r].time, plan_.updates[r].batch);
    k_->unpack_gates(gates_, plan_.count() * gate_width(), hidden, out_.data(), plan_.count());
  }
}

template class Sequence<float>;
template class Sequence<double>;

}  // namespace lstmfast

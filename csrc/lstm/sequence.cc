// See sequence.h. Forward comes first, backward second; each sets up row pointers and then runs over the steps of the plan.
#include "lstm/sequence.h"

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace lstmfast {

template <typename T>
typename Sequence<T>::Division Sequence<T>::division(double multiply_adds_per_step) const {
  const int threads = threads_for_work(multiply_adds_per_step * static_cast<double>(plan_.steps()));
  // Every thread should have a full register tile of rows.
  if (plan_.batch >= threads * k_->tile_rows) return {threads, false};
  // A barrier costs 1 to 2 microseconds a step: each thread must have several times that to do.
  constexpr double kWorkPerBarrier = 4.0e5;
  const double by_units = std::min<double>(threads, multiply_adds_per_step / kWorkPerBarrier);
  if (by_units >= 2) return {static_cast<int>(by_units), true};
  const Index tiles = ceil_div(std::max<Index>(plan_.batch, 1), k_->tile_rows);
  return {static_cast<int>(std::min<Index>(threads, tiles)), false};
}

template <typename T>
template <typename Body>
void Sequence<T>::for_each_step(Order order, Range steps, double multiply_adds_per_step, Index blocks,
                                const Body& body) const {
  const Division how = division(multiply_adds_per_step);
  Barrier barrier;
  run_parallel(how.threads, [&](int part, int parts) {
    const Range my_blocks = how.by_units ? split(blocks, part, parts) : Range{0, blocks};
    const Index batch_begin = how.by_units ? 0 : plan_.batch_begin_of_part(part, parts);
    const Index batch_end = how.by_units ? plan_.batch : plan_.batch_begin_of_part(part + 1, parts);
    for (Index i = 0; i < steps.end - steps.begin; ++i) {
      const Index step = order == Order::kForward ? steps.begin + i : steps.end - 1 - i;
      body(plan_.updates_of(step, batch_begin, batch_end), my_blocks);
      if (how.by_units) barrier.wait(parts);
    }
  });
}

// ---- forward

template <typename T>
void Sequence<T>::forward(const SequenceForwardArgs<T>& args) {
  args_ = args;
  k_ = &kernels<T>();
  plan_.build(args.time_steps, args.batch, args.lengths, args.resets, args.reverse);
  const Index rows = plan_.rows(), hidden = args.hidden_size;
  const PanelSizes<T> sizes(*k_);

  if (args.ids) {
    ids_.resize(static_cast<std::size_t>(rows));
    for (Index r = 0; r < rows; ++r) ids_[r] = *args.ids.row(plan_.updates[r].time, plan_.updates[r].batch);
    starting_values_.pack_rows(*k_, args.kernel, args.input_size, ids_.data(), rows, hidden, args.bias,
                               args.forget_bias);
  } else {
    input_weights_.pack(*k_, args.kernel, args.input_size, hidden);
    starting_values_.pack_bias(*k_, args.bias, args.forget_bias, hidden);
  }
  recurrent_weights_.pack(*k_, {args.kernel.row(args.input_size), args.kernel.stride}, hidden, hidden);
  if (args.keep_for_backward || args.gates) gates_.resize(rows * sizes.gate_depth(hidden));
  if (args.keep_for_backward && !args.cells) cells_.resize(rows * hidden);
  std::fill_n(zeros_.resize(hidden), hidden, T(0));

  point_rows();
  run_forward();
  finish_forward();
}

template <typename T>
void Sequence<T>::point_rows() {
  const Index rows = plan_.rows(), hidden = args_.hidden_size;
  for (auto* pointers : {&init_, &x_, &h_prev_, &c_prev_}) pointers->resize(static_cast<std::size_t>(rows));
  for (auto* pointers : {&h_, &c_}) pointers->resize(static_cast<std::size_t>(rows));
  for (Index r = 0; r < rows; ++r) {
    const RowUpdate& update = plan_.updates[r];
    init_[r] = args_.ids ? starting_values_.of_id(r, ids_[r]) : starting_values_.of_all();
    x_[r] = args_.ids ? nullptr : args_.x.row(update.time, update.batch);
    h_[r] = args_.h.row(update.time, update.batch);
    c_[r] = args_.cells               ? args_.cells.row(update.time, update.batch)
            : args_.keep_for_backward ? cells_.data() + r * hidden
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

// Whether the input's product is made for many steps at once, before them, and not with the state's in every step.
// Done at once it reads its weights once for many steps and leaves the caches to the recurrent ones; done in the step it
// saves writing and reading the pre-activations.
template <typename T>
bool Sequence<T>::hoists_input() const {
  if (args_.ids || args_.input_size == 0) return false;
  const Index kernel_bytes = (args_.input_size + args_.hidden_size) * kGateCount * args_.hidden_size * Index{sizeof(T)};
  return kernel_bytes >= (Index{512} << 10) || (plan_.batch < k_->tile_rows && plan_.steps() > 1);
}

template <typename T>
void Sequence<T>::multiply_inputs(Range updates, T* z, Index z_block_stride) const {
  const PanelSizes<T> sizes(*k_);
  GateProductArgs<T> product{};
  product.block_end = sizes.gate_blocks(args_.hidden_size);
  product.init = starting_values_.of_all();
  product.x = x_.data();
  product.input_size = args_.input_size;
  product.input_panels = input_weights_.data();
  product.z = z - updates.begin * sizes.gate_width();
  product.z_block_stride = z_block_stride;
  const double work = static_cast<double>(updates.end - updates.begin) * static_cast<double>(args_.input_size) *
                      static_cast<double>(kGateCount * args_.hidden_size);
  run_parallel(threads_for_work(work), [&](int part, int parts) {
    GateProductArgs<T> mine = product;
    const Range rows = split(updates.end - updates.begin, part, parts);
    mine.row_begin = updates.begin + rows.begin;
    mine.row_end = updates.begin + rows.end;
    k_->gate_product(mine);
  });
}

template <typename T>
void Sequence<T>::run_forward() {
  const Index hidden = args_.hidden_size, rows = plan_.rows();
  const PanelSizes<T> sizes(*k_);
  const bool keeps_gates = args_.keep_for_backward || args_.gates, hoists = hoists_input();
  StepForwardArgs<T> step{};
  step.hidden_size = hidden;
  step.init = init_.data();
  step.init_block_stride = args_.ids ? starting_values_.block_stride() : sizes.gate_width();
  step.x = x_.data();
  step.input_size = args_.ids || hoists ? 0 : args_.input_size;
  step.input_panels = input_weights_.data();
  step.h_prev = h_prev_.data();
  step.recurrent_size = hidden;
  step.recurrent_panels = recurrent_weights_.data();
  step.c_prev = c_prev_.data();
  step.h = h_.data();
  step.c = c_.data();
  step.gates = keeps_gates ? gates_.data() : nullptr;
  step.gate_block_stride = rows * sizes.gate_width();

  // Pre-activations wait where the gates will be, or else in a buffer for some steps.
  Index steps_at_once = plan_.steps();
  if (hoists && !keeps_gates) {
    const Index rows_at_once = std::max<Index>(128, (Index{512} << 10) / (sizes.gate_depth(hidden) * sizeof(T)));
    steps_at_once = std::min(plan_.steps(), ceil_div(rows_at_once, std::max<Index>(plan_.batch, 1)));
    z_.resize(steps_at_once * plan_.batch * sizes.gate_depth(hidden));
  }
  const double depth = static_cast<double>(step.input_size + hidden);
  const double work = static_cast<double>(plan_.batch) * depth * static_cast<double>(kGateCount * hidden);
  for (Index first = 0; first < plan_.steps(); first += steps_at_once) {
    const Range steps{first, std::min(first + steps_at_once, plan_.steps())};
    if (hoists) {
      const Range updates{plan_.step_begin[steps.begin], plan_.step_begin[steps.end]};
      T* z = keeps_gates ? gates_.data() + updates.begin * sizes.gate_width() : z_.data();
      step.init_block_stride = (keeps_gates ? rows : updates.end - updates.begin) * sizes.gate_width();
      for (Index r = updates.begin; r < updates.end; ++r) init_[r] = z + (r - updates.begin) * sizes.gate_width();
      multiply_inputs(updates, z, step.init_block_stride);
    }
    for_each_step(Order::kForward, steps, work, sizes.gate_blocks(hidden), [&](Range updates, Range blocks) {
      StepForwardArgs<T> mine = step;
      mine.row_begin = updates.begin;
      mine.row_end = updates.end;
      mine.block_begin = blocks.begin;
      mine.block_end = blocks.end;
      k_->step_forward(mine);
    });
  }
}

template <typename T>
void Sequence<T>::finish_forward() {
  const Index hidden = args_.hidden_size;
  for (Index b = 0; b < args_.batch; ++b) {
    const Index last = plan_.last_of_row[b];
    const T* h = last >= 0 ? h_[last] : args_.h0 ? args_.h0.row(b) : zeros_.data();
    const T* c = last >= 0 ? c_[last] : args_.c0 ? args_.c0.row(b) : zeros_.data();
    std::copy_n(h, hidden, args_.h_n.row(b));
    if (c != args_.c_n.row(b)) std::copy_n(c, hidden, args_.c_n.row(b));
  }
  if (plan_.is_ragged()) {
    for (Index b = 0; b < args_.batch; ++b)
      for (Index t = args_.lengths[b]; t < args_.time_steps; ++t) {
        std::fill_n(args_.h.row(t, b), hidden, T(0));
        if (args_.cells) std::fill_n(args_.cells.row(t, b), hidden, T(0));
        if (args_.gates) std::fill_n(args_.gates.row(t, b), kGateCount * hidden, T(0));
      }
  }
  if (args_.gates) {
    out_.resize(plan_.updates.size());
    for (Index r = 0; r < plan_.rows(); ++r)
      out_[r] = args_.gates.row(plan_.updates[r].time, plan_.updates[r].batch);
    k_->unpack_gates(gates_.data(), plan_.rows() * PanelSizes<T>(*k_).gate_width(), hidden, out_.data(), plan_.rows());
  }
}

// ---- backward

template <typename T>
void Sequence<T>::backward(const SequenceBackwardArgs<T>& args) {
  const Index rows = plan_.rows(), hidden = args_.hidden_size;
  const PanelSizes<T> sizes(*k_);
  transposed_weights_.pack_transposed(*k_, {args_.kernel.row(args_.input_size), args_.kernel.stride}, hidden, hidden);

  const Index row_size = sizes.gate_width(), block_stride = d_gates_block_stride();
  T* d_gates = d_gates_.resize((rows + 1) * sizes.gate_depth(hidden));
  for (Index block = 0; block < sizes.gate_blocks(hidden); ++block)
    std::fill_n(d_gates + block * block_stride + rows * row_size, row_size, T(0));

  T* d_c = d_c_.resize(args_.batch * hidden);  // carried from step to step
  run_backward(args, d_c);
  weight_gradients(args);
  if (args.d_x) input_gradients(args);
  initial_state_gradients(args, d_c);
}

template <typename T>
void Sequence<T>::run_backward(const SequenceBackwardArgs<T>& args, T* d_c) {
  const Index rows = plan_.rows(), hidden = args_.hidden_size;
  const PanelSizes<T> sizes(*k_);
  const T* no_next = d_gates_.data() + rows * sizes.gate_width();
  for (auto* pointers : {&d_h_, &d_h_extra_, &d_c_in_, &d_gates_next_}) pointers->resize(static_cast<std::size_t>(rows));
  d_c_out_.resize(static_cast<std::size_t>(rows));
  for (Index r = 0; r < rows; ++r) {
    const RowUpdate& update = plan_.updates[r];
    const bool is_last = update.next < 0;
    const bool cut = !is_last && plan_.updates[update.next].reset;  // nothing flows back through a reset
    d_h_[r] = args.d_h ? args.d_h.row(update.time, update.batch) : zeros_.data();
    d_h_extra_[r] = is_last && args.d_h_n ? args.d_h_n.row(update.batch) : zeros_.data();
    d_gates_next_[r] = is_last || cut ? no_next : d_gates_.data() + update.next * sizes.gate_width();
    d_c_in_[r] = cut        ? zeros_.data()
                 : !is_last ? d_c + update.batch * hidden
                 : args.d_c_n ? args.d_c_n.row(update.batch)
                              : zeros_.data();
    d_c_out_[r] = d_c + update.batch * hidden;
  }

  StepBackwardArgs<T> step{};
  step.hidden_size = hidden;
  step.d_gates_next = d_gates_next_.data();
  step.no_next = no_next;
  step.recurrent_transposed = transposed_weights_.data();
  step.d_h = d_h_.data();
  step.d_h_extra = d_h_extra_.data();
  step.d_c = d_c_in_.data();
  step.d_c_prev = d_c_out_.data();
  step.c_prev = c_prev_.data();
  step.c = c_.data();
  step.gates = gates_.data();
  step.gate_block_stride = rows * sizes.gate_width();
  step.d_gates = d_gates_.data();
  step.d_gate_block_stride = d_gates_block_stride();

  const double work = static_cast<double>(plan_.batch * hidden) * static_cast<double>(kGateCount * hidden);
  for_each_step(Order::kBackward, {0, plan_.steps()}, work, sizes.panels(hidden), [&](Range updates, Range panels) {
    StepBackwardArgs<T> mine = step;
    mine.row_begin = updates.begin;
    mine.row_end = updates.end;
    mine.panel_begin = panels.begin;
    mine.panel_end = panels.end;
    k_->step_backward(mine);
  });
}

template <typename T>
void Sequence<T>::weight_gradients(const SequenceBackwardArgs<T>& args) {
  const Index rows = plan_.rows(), hidden = args_.hidden_size, input_size = args_.input_size;
  const PanelSizes<T> sizes(*k_);
  const Index blocks = sizes.gate_blocks(hidden);
  const double work = static_cast<double>(rows) * static_cast<double>(kGateCount * hidden) *
                      static_cast<double>((args_.ids ? 1 : input_size) + hidden);
  // Parts are gate blocks times slices of kernel rows, so that narrow layers keep all threads busy too.
  run_parallel(threads_for_work(work), [&](int part, int parts) {
    const Index slices = ceil_div(parts, std::max<Index>(blocks, 1));
    const Range cells = split(blocks * slices, part, parts);
    for (Index cell = cells.begin; cell < cells.end; ++cell) {
      const Index block = cell / slices;
      const int slice = static_cast<int>(cell % slices);
      TransposedProductArgs<T> product{};
      product.panel_begin = block;
      product.panel_end = block + 1;
      product.rows = rows;
      product.b = d_gates_.data();
      product.b_panel_stride = d_gates_block_stride();
      product.columns = kGateCount * hidden;
      product.gate_hidden_size = hidden;
      if (args.d_kernel) {
        if (!args_.ids) {
          const Range m = split(input_size, slice, static_cast<int>(slices));
          product.m_begin = m.begin;
          product.m_end = m.end;
          product.a = x_.data();
          product.out = args.d_kernel;
          k_->transposed_product(product);
        }
        const Range m = split(hidden, slice, static_cast<int>(slices));
        product.m_begin = m.begin;
        product.m_end = m.end;
        product.a = h_prev_.data();
        product.out = {args.d_kernel.row(input_size), args.d_kernel.stride};
        k_->transposed_product(product);
      }
      if (slice != 0) continue;
      if (args.d_kernel && args_.ids) {
        const Index unit = block * sizes.vector_length, lanes = std::min(hidden - unit, sizes.vector_length);
        for (Index id = 0; id < input_size; ++id)
          for (int gate = 0; gate < kGateCount; ++gate)
            std::fill_n(args.d_kernel.row(id) + gate * hidden + unit, lanes, T(0));
        k_->scatter_gate_rows(d_gates_.data(), d_gates_block_stride(), ids_.data(), rows, hidden, block, block + 1,
                              args.d_kernel.data, args.d_kernel.stride);
      }
      if (args.d_bias)
        k_->sum_gate_rows(d_gates_.data(), d_gates_block_stride(), rows, hidden, block, block + 1, args.d_bias);
    }
  });
}

template <typename T>
void Sequence<T>::input_gradients(const SequenceBackwardArgs<T>& args) {
  const Index rows = plan_.rows(), hidden = args_.hidden_size, input_size = args_.input_size;
  const PanelSizes<T> sizes(*k_);
  if (plan_.is_ragged())
    for (Index b = 0; b < args_.batch; ++b)
      for (Index t = args_.lengths[b]; t < args_.time_steps; ++t) std::fill_n(args.d_x.row(t, b), input_size, T(0));
  transposed_weights_.pack_transposed(*k_, args_.kernel, input_size, hidden);
  d_gates_rows_.resize(static_cast<std::size_t>(rows));
  out_.resize(static_cast<std::size_t>(rows));
  for (Index r = 0; r < rows; ++r) {
    d_gates_rows_[r] = d_gates_.data() + r * sizes.gate_width();
    out_[r] = args.d_x.row(plan_.updates[r].time, plan_.updates[r].batch);
  }
  ProductArgs<T> product{};
  product.panel_begin = 0;
  product.panel_end = sizes.panels(input_size);
  product.a = d_gates_rows_.data();
  product.depth_blocks = sizes.gate_blocks(hidden);
  product.block_length = sizes.gate_width();
  product.block_stride = d_gates_block_stride();
  product.panels = transposed_weights_.data();
  product.out = out_.data();
  product.columns = input_size;
  const double work = static_cast<double>(rows) * static_cast<double>(input_size) *
                      static_cast<double>(kGateCount * hidden);
  run_parallel(threads_for_work(work), [&](int part, int parts) {
    ProductArgs<T> my_product = product;
    const Range mine = split(rows, part, parts);
    my_product.row_begin = mine.begin;
    my_product.row_end = mine.end;
    k_->product(my_product);
  });
}

template <typename T>
void Sequence<T>::initial_state_gradients(const SequenceBackwardArgs<T>& args, const T* d_c) {
  if (!args.d_h0 && !args.d_c0) return;
  const Index hidden = args_.hidden_size;
  const PanelSizes<T> sizes(*k_);
  std::vector<const T*> first_gates;
  std::vector<T*> d_h0_rows;
  for (Index b = 0; b < args_.batch; ++b) {
    const Index first = plan_.first_of_row[b];
    const bool untouched = first < 0;  // a row without steps hands its final state's gradient on
    const bool cut = !untouched && plan_.updates[first].reset;
    if (args.d_c0) {
      const T* source = untouched ? (args.d_c_n ? args.d_c_n.row(b) : zeros_.data()) : d_c + b * hidden;
      std::copy_n(cut ? zeros_.data() : source, hidden, args.d_c0.row(b));
    }
    if (!args.d_h0) continue;
    if (untouched || cut) {
      std::copy_n(untouched && args.d_h_n ? args.d_h_n.row(b) : zeros_.data(), hidden, args.d_h0.row(b));
    } else {
      first_gates.push_back(d_gates_.data() + first * sizes.gate_width());
      d_h0_rows.push_back(args.d_h0.row(b));
    }
  }
  if (d_h0_rows.empty()) return;
  transposed_weights_.pack_transposed(*k_, {args_.kernel.row(args_.input_size), args_.kernel.stride}, hidden, hidden);
  ProductArgs<T> product{};
  product.row_end = static_cast<Index>(d_h0_rows.size());
  product.panel_end = sizes.panels(hidden);
  product.a = first_gates.data();
  product.depth_blocks = sizes.gate_blocks(hidden);
  product.block_length = sizes.gate_width();
  product.block_stride = d_gates_block_stride();
  product.panels = transposed_weights_.data();
  product.out = d_h0_rows.data();
  product.columns = hidden;
  k_->product(product);
}

template class Sequence<float>;
template class Sequence<double>;

}  // namespace lstmfast

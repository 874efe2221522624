// The backward pass: groups of steps from the last to the first.
#include <algorithm>
#include <atomic>

#include "core/float_mode.h"
#include "cpu/panel_sizes.h"
#include "lstm/sequence.h"

namespace lstmfast {
namespace {

// Rows of a group. At 64 units the gate gradients of 512 rows are 512 KB; kept whole, those of 820 steps of 32 rows would
// be 27 MB, written to memory once and read from it twice. Those of many units leave L2 anyway, and twice the rows are half
// as many passes over as large weight gradients: 1 to 3 % of a training step from 256 units on.
Index rows_of_group(Index hidden) { return hidden < 256 ? kTransposedRows / 2 : kTransposedRows; }

}  // namespace

template <typename T>
void Sequence<T>::backward(const SequenceBackwardArgs<T>& given) {
  const FlushDenormals flush_denormals;
  SequenceBackwardArgs<T> args = given;
  products_->prepare(num_threads());  // since forward there may be more threads, and memory may have been given back
  const Index columns = kGateCount * weights_.hidden_size, output_size = weights_.output_size;
  if (given.d_transposed && !writes_transposed())
    args.d_kernel = {d_kernel_.resize((weights_.input_size + output_size) * columns), columns};
  if (given.d_transposed.projection)
    args.d_projection = {d_projection_kernel_.resize(weights_.hidden_size * output_size), output_size};
  if (!run_backward(args)) {
    products_ = fma_.get();
    products_->prepare(num_threads());
    run_backward(args);
  }
  transpose_gradients(args);
}

template <typename T>
void Sequence<T>::transpose_gradients(const SequenceBackwardArgs<T>& args) const {
  const Index columns = kGateCount * weights_.hidden_size, input_size = weights_.input_size;
  const auto& [d_input, d_recurrent, d_projection] = args.d_transposed;
  if (d_recurrent && args.d_kernel) {
    k_->transpose(args.d_kernel.data, columns, input_size, columns, d_input.data, d_input.stride);
    k_->transpose(args.d_kernel.row(input_size), columns, weights_.output_size, columns, d_recurrent.data,
                  d_recurrent.stride);
  }
  if (d_projection)
    k_->transpose(args.d_projection.data, weights_.output_size, weights_.hidden_size, weights_.output_size, d_projection.data,
                  d_projection.stride);
}

template <typename T>
bool Sequence<T>::run_backward(const SequenceBackwardArgs<T>& args) {
  const Index hidden = weights_.hidden_size, input_size = weights_.input_size, steps = plan_.steps();
  const Index output_size = weights_.output_size;
  if (!products_->pack_transposed(input_kernel(args.d_x ? input_size : 0), recurrent_kernel(), hidden)) return false;
  if (weights_.projection) projection_.pack_transposed(*k_, weights_.projection, hidden, output_size);
  const Index zero_rows = !args.d_kernel ? 0 : steps == 0 ? input_size + output_size : args_.ids ? input_size : 0;
  for (Index i = 0; i < zero_rows; ++i) std::fill_n(args.d_kernel.row(i), kGateCount * hidden, T(0));
  if (args.d_bias) std::fill_n(args.d_bias, kGateCount * hidden, T(0));
  if (args.d_peepholes) std::fill_n(args.d_peepholes, kPeepholeCount * hidden, T(0));
  for (Index i = 0; args.d_projection && steps == 0 && i < hidden; ++i)
    std::fill_n(args.d_projection.row(i), output_size, T(0));
  if (args.d_x && plan_.is_ragged())
    for (Index b = 0; b < args_.batch; ++b)
      for (Index t = args_.lengths[b]; t < args_.time_steps; ++t) std::fill_n(args.d_x.row(t, b), input_size, T(0));
  point_gradients(args);

  // Groups of equal size, none much smaller than the others, and none of more rows than weight gradients take in one pass.
  const Index rows = plan_.count(), rows_wanted = rows_of_group(hidden);
  const Index groups =
      std::max<Index>({(rows + rows_wanted / 2) / rows_wanted, ceil_div(rows, kTransposedRows), 1});
  const Index steps_at_once = std::max<Index>(ceil_div(steps, groups), 1);
  GateGradients group{};
  group.rows = std::min((steps_at_once + 1) * plan_.batch, rows);
  group.block_stride = (group.rows + 1) * gate_width();
  T* d_gates = d_gates_.resize(PanelSizes<T>(*k_).gate_blocks(hidden) * group.block_stride);
  for (Index block = 0; block < PanelSizes<T>(*k_).gate_blocks(hidden); ++block)
    std::fill_n(d_gates + block * group.block_stride + group.rows * gate_width(), gate_width(), T(0));
  if (!is_plain()) {
    d_h_total_.resize(group.rows * output_size);
    d_h_total_rows_.resize(static_cast<std::size_t>(plan_.count()));
    nothing_.assign(static_cast<std::size_t>(plan_.count()), zeros_.data());
    if (weights_.projection) {
      d_m_.resize(group.rows * hidden);
      d_m_rows_.resize(static_cast<std::size_t>(plan_.count()));
    }
  }
  for (Index end = steps; end > 0; end -= steps_at_once) {
    const Range group_steps{std::max<Index>(end - steps_at_once, 0), end};
    begin_group(group, {plan_.step_begin[group_steps.begin], plan_.step_begin[group_steps.end]});
    // What reads the weights comes before what writes as much: few rows find some of them in cache.
    if (!(is_plain() ? step_through(group, group_steps) : variant_step_through(group, group_steps)) ||
        (group_steps.begin == 0 && !initial_state_gradients(args, group)) || !input_gradients(args, group) ||
        !weight_gradients(args, group, end < steps) || !projection_gradients(args, group, end < steps))
      return false;
  }
  return steps > 0 || initial_state_gradients(args, group);
}

template <typename T>
void Sequence<T>::point_gradients(const SequenceBackwardArgs<T>& args) {
  const Index rows = plan_.count(), hidden = weights_.hidden_size;
  T* d_c = d_c_.resize(plan_.batch * hidden);  // carried from step to step
  for (auto* pointers : {&d_h_, &d_h_extra_, &d_c_in_, &d_gates_next_, &d_gates_rows_})
    pointers->resize(static_cast<std::size_t>(rows));
  d_c_out_.resize(static_cast<std::size_t>(rows));
  for (Index r = 0; r < rows; ++r) {
    const RowUpdate& update = plan_.updates[r];
    const bool is_last = update.next < 0;
    const bool cut = !is_last && plan_.updates[update.next].reset;  // nothing flows back through a reset
    d_h_[r] = args.d_h ? args.d_h.row(update.time, update.batch) : zeros_.data();
    d_h_extra_[r] = is_last && args.d_h_n ? args.d_h_n.row(update.batch) : zeros_.data();
    d_c_in_[r] = cut        ? zeros_.data()
                 : !is_last ? d_c + update.batch * hidden
                 : args.d_c_n ? args.d_c_n.row(update.batch)
                              : zeros_.data();
    d_c_out_[r] = d_c + update.batch * hidden;
  }
}

// The step after the group comes first in what is there, if it is not the first group, and goes behind the group's rows.
template <typename T>
void Sequence<T>::begin_group(GateGradients& group, Range updates) {
  const PanelSizes<T> sizes(*k_);
  const Index rows = updates.end - updates.begin, width = gate_width();
  Index rows_after = 0;
  for (Index r = updates.begin; r < updates.end; ++r)
    rows_after = std::max(rows_after, plan_.updates[r].next - updates.end + 1);
  for (Index block = 0; rows_after > 0 && block < sizes.gate_blocks(weights_.hidden_size); ++block) {
    T* first = d_gates_.data() + block * group.block_stride;
    std::copy_backward(first, first + rows_after * width, first + (rows + rows_after) * width);
  }
  group.updates = updates;
  const T* zeros = d_gates_.data() + group.rows * width;
  for (Index r = updates.begin; r < updates.end; ++r) {
    const RowUpdate& update = plan_.updates[r];
    const bool nothing = update.next < 0 || plan_.updates[update.next].reset;
    d_gates_next_[r] = nothing ? zeros : d_gates_.data() + (update.next - updates.begin) * width;
    d_gates_rows_[r] = d_gates_.data() + (r - updates.begin) * width;
  }
}

template <typename T>
StepBackwardArgs<T> Sequence<T>::step_backward_args(const GateGradients& group) const {
  const Index hidden = weights_.hidden_size;
  StepBackwardArgs<T> step{};
  step.hidden_size = hidden;
  step.d_gates_next = d_gates_next_.data();
  step.no_next = d_gates_.data() + group.rows * gate_width();
  step.d_h = d_h_.data();
  step.d_h_extra = d_h_extra_.data();
  step.d_c = d_c_in_.data();
  step.d_c_prev = d_c_out_.data();
  step.c_prev = c_prev_.data();
  step.c = c_.data();
  step.gates = gates_;
  step.gate_block_stride = plan_.count() * gate_width();
  step.d_gates = d_gates_.data();
  step.d_gate_block_stride = group.block_stride;
  step.d_gates_first_row = group.updates.begin;
  step.variant = has_hooks() ? &variant() : nullptr;
  return step;
}

template <typename T>
bool Sequence<T>::step_through(const GateGradients& group, Range steps) {
  const Index hidden = weights_.hidden_size;
  const StepBackwardArgs<T> step = step_backward_args(group);
  std::atomic<bool> safe{true};
  const Phase cells{PanelSizes<T>(*k_).panels(hidden), [&](Index, Range updates, Range panels, int part) {
    StepBackwardArgs<T> mine = step;
    mine.row_begin = updates.begin;
    mine.row_end = updates.end;
    mine.panel_begin = panels.begin;
    mine.panel_end = panels.end;
    if (!products_->step_backward(mine, part)) safe = false;
  }};
  for_each_step(plan_, Order::kBackward, steps, division(multiply_adds(plan_.batch, hidden)), cells);
  return safe;
}

// In two phases, or three, because a projection stands between the product and the cells: the gradient of h comes back, is
// completed by that of the output and kept for the projection's own; goes back through the projection; and then the cells.
template <typename T>
bool Sequence<T>::variant_step_through(const GateGradients& group, Range steps) {
  const Index hidden = weights_.hidden_size, output_size = weights_.output_size, first = group.updates.begin;
  const PanelSizes<T> sizes(*k_);
  StepBackwardArgs<T> step = step_backward_args(group);
  step.d_h = step.d_h_extra = nothing_.data();  // they are in d_h_total
  ProductArgs<T> product{};
  product.a = d_gates_next_.data();
  product.depth_blocks = sizes.gate_blocks(hidden);
  product.block_length = gate_width();
  product.block_stride = group.block_stride;
  product.out = d_h_total_rows_.data();
  product.columns = output_size;
  for (Index r = first; r < group.updates.end; ++r) {
    d_h_total_rows_[r] = d_h_total_.data() + (r - first) * output_size;
    if (weights_.projection) d_m_rows_[r] = d_m_.data() + (r - first) * hidden;
  }
  const Phase coming_back{sizes.panels(output_size), [&](Index, Range updates, Range panels, int part) {
    ProductArgs<T> mine = product;
    mine.row_begin = updates.begin;
    mine.row_end = updates.end;
    mine.panel_begin = panels.begin;
    mine.panel_end = panels.end;
    products_->multiply_transposed(Products<T>::Kernel::kRecurrent, mine, part);
    const Index panel_width = kPanelVectors * sizes.vector_length;
    const Index begin = panels.begin * panel_width, end = std::min(panels.end * panel_width, output_size);
    for (Index r = updates.begin; r < updates.end; ++r)
      for (Index j = begin; j < end; ++j) d_h_total_rows_[r][j] += d_h_[r][j] + d_h_extra_[r][j];
  }};
  const Phase cells{sizes.panels(hidden), [&](Index, Range updates, Range panels, int) {
    if (weights_.projection)
      projection_.project_back(*k_, updates, panels, d_h_total_rows_.data(), output_size, d_m_rows_.data(), hidden);
    StepBackwardArgs<T> mine = step;
    mine.row_begin = updates.begin;
    mine.row_end = updates.end;
    mine.panel_begin = panels.begin;
    mine.panel_end = panels.end;
    mine.d_h_next = (weights_.projection ? d_m_.data() : d_h_total_.data()) + (updates.begin - first) * hidden;
    step.variant ? k_->variant_step_backward(mine) : k_->step_backward(mine);
  }};
  const double work = multiply_adds(plan_.batch, output_size) + projecting_adds(plan_.batch);
  for_each_step(plan_, Order::kBackward, steps, division(work), coming_back, cells);
  return true;
}

template <typename T>
bool Sequence<T>::projection_gradients(const SequenceBackwardArgs<T>& args, const GateGradients& group, bool add) {
  if (!args.d_projection) return true;
  const Index rows = group.updates.end - group.updates.begin, hidden = weights_.hidden_size;
  const Index output_size = weights_.output_size;
  const PanelSizes<T> sizes(*k_);
  T* panels = d_h_panels_.resize(rows * sizes.padded(output_size));
  k_->pack(d_h_total_.data(), output_size, rows, output_size, panels);
  std::atomic<bool> safe{true};
  run_parallel(threads_for_work(projecting_adds(rows)), [&](int part, int parts) {
    const Range units = split(hidden, part, parts);
    TransposedProductArgs<T> product{};
    product.m_begin = units.begin;
    product.m_end = units.end;
    product.panel_end = sizes.panels(output_size);
    product.a = m_rows_.data() + group.updates.begin;
    product.rows = rows;
    product.b = panels;
    product.b_panel_stride = rows * kPanelVectors * sizes.vector_length;
    product.out = args.d_projection;
    product.columns = output_size;
    product.add = add;
    if (!products_->weight_gradient(product, part)) safe = false;
  });
  return safe;
}

template <typename T>
bool Sequence<T>::weight_gradients(const SequenceBackwardArgs<T>& args, const GateGradients& group, bool add) {
  MatrixView<T> d_input = args.d_kernel, d_recurrent;
  if (args.d_kernel) d_recurrent = {args.d_kernel.row(weights_.input_size), args.d_kernel.stride};
  if (writes_transposed()) {
    d_input = args.d_transposed.input;
    d_recurrent = args.d_transposed.recurrent;
  }
  if (!d_recurrent && !args.d_bias && !args.d_peepholes) return true;
  const Index rows = group.updates.end - group.updates.begin, first = group.updates.begin;
  const Index hidden = weights_.hidden_size, input_size = weights_.input_size;
  const Index blocks = PanelSizes<T>(*k_).gate_blocks(hidden);
  double work = multiply_adds(rows, (has_input_product() ? input_size : 1) + weights_.output_size);
  // Few rows came here on one thread, and waking the others takes 90 us: one row of 256 units has 70 us of work.
  constexpr double kWorkThatWakes = 8;
  if (products_ == unpacked_.get()) work /= kWorkThatWakes;
  std::atomic<bool> safe{true};
  // Parts are gate blocks times slices of kernel rows, so that narrow layers keep all threads busy too.
  run_parallel(threads_for_work(work), [&](int part, int parts) {
    const Index slices = ceil_div(parts, std::max<Index>(blocks, 1));
    const Range cells = split(blocks * slices, part, parts);
    TransposedProductArgs<T> product{};
    product.rows = rows;
    product.b = d_gates_.data();
    product.b_panel_stride = group.block_stride;
    product.columns = kGateCount * hidden;
    product.gate_hidden_size = hidden;
    product.add = add;
    const auto multiply = [&](const T* const* a, Index columns, Range slice_of_m, MatrixView<T> out) {
      product.a = a + first;
      product.m_begin = columns * slice_of_m.begin / slice_of_m.end;
      product.m_end = columns * (slice_of_m.begin + 1) / slice_of_m.end;
      product.out = out;
      if (!products_->weight_gradient(product, part)) safe = false;
    };
    // Side by side blocks that this part has whole are done at once.
    for (Index cell = cells.begin; cell < cells.end;) {
      const Index whole = slices == 1 ? cells.end - cell : 1;
      const Range slice{cell % slices, slices};
      product.panel_begin = cell / slices;
      product.panel_end = product.panel_begin + whole;
      cell += whole;
      if (d_recurrent) {
        if (has_input_product()) multiply(x_.data(), input_size, slice, d_input);
        multiply(h_prev_.data(), weights_.output_size, slice, d_recurrent);
      }
      if (slice.begin != 0) continue;
      if (args.d_kernel && args_.ids)
        k_->scatter_gate_rows(d_gates_.data(), group.block_stride, ids_.data() + first, rows, hidden,
                              product.panel_begin, product.panel_end, args.d_kernel.data, args.d_kernel.stride);
      if (args.d_bias)
        k_->sum_gate_rows(d_gates_.data(), group.block_stride, rows, hidden, product.panel_begin, product.panel_end,
                          args.d_bias);
      if (args.d_peepholes)
        k_->peephole_gradients({product.panel_begin, product.panel_end, rows, hidden, d_gates_.data(),
                                group.block_stride, c_prev_.data() + first, c_.data() + first, args.d_peepholes});
    }
  });
  return safe;
}

// The gradient of z in some rows, given by `args.a`, times a kernel transposed.
template <typename T>
bool Sequence<T>::multiply_transposed(typename Products<T>::Kernel kernel, const ProductArgs<T>& args, Index rows) {
  std::atomic<bool> safe{true};
  run_parallel(threads_for_work(multiply_adds(rows, args.columns)), [&](int part, int parts) {
    ProductArgs<T> mine = args;
    const Range my_rows = split(rows, part, parts);
    mine.row_begin = my_rows.begin;
    mine.row_end = my_rows.end;
    mine.depth_blocks = PanelSizes<T>(*k_).gate_blocks(weights_.hidden_size);
    mine.block_length = gate_width();
    mine.panel_end = PanelSizes<T>(*k_).panels(args.columns);
    if (!products_->multiply_transposed(kernel, mine, part)) safe = false;
  });
  return safe;
}

template <typename T>
bool Sequence<T>::input_gradients(const SequenceBackwardArgs<T>& args, const GateGradients& group) {
  if (!args.d_x || weights_.input_size == 0) return true;
  const Index rows = group.updates.end - group.updates.begin, first = group.updates.begin;
  out_.resize(static_cast<std::size_t>(rows));
  for (Index r = 0; r < rows; ++r)
    out_[r] = args.d_x.row(plan_.updates[first + r].time, plan_.updates[first + r].batch);
  ProductArgs<T> product{};
  product.a = d_gates_rows_.data() + first;
  product.block_stride = group.block_stride;
  product.out = out_.data();
  product.columns = weights_.input_size;
  return multiply_transposed(Products<T>::Kernel::kInput, product, rows);
}

template <typename T>
bool Sequence<T>::initial_state_gradients(const SequenceBackwardArgs<T>& args, const GateGradients& first_group) {
  const Index hidden = weights_.hidden_size, output_size = weights_.output_size;
  std::vector<const T*> first_gates;
  std::vector<T*> d_h0_rows;
  for (Index b = 0; b < args_.batch && (args.d_h0 || args.d_c0); ++b) {
    const Index first = plan_.first_of_row[b];
    const bool untouched = first < 0;  // a row without steps hands its final state's gradient on
    const bool cut = !untouched && plan_.updates[first].reset;
    if (args.d_c0) {
      const T* source = untouched ? (args.d_c_n ? args.d_c_n.row(b) : zeros_.data()) : d_c_.data() + b * hidden;
      std::copy_n(cut ? zeros_.data() : source, hidden, args.d_c0.row(b));
    }
    if (!args.d_h0) continue;
    if (untouched || cut) {
      std::copy_n(untouched && args.d_h_n ? args.d_h_n.row(b) : zeros_.data(), output_size, args.d_h0.row(b));
    } else {
      first_gates.push_back(d_gates_rows_[first]);
      d_h0_rows.push_back(args.d_h0.row(b));
    }
  }
  if (d_h0_rows.empty()) return true;
  ProductArgs<T> product{};
  product.a = first_gates.data();
  product.block_stride = first_group.block_stride;
  product.out = d_h0_rows.data();
  product.columns = output_size;
  return multiply_transposed(Products<T>::Kernel::kRecurrent, product, static_cast<Index>(d_h0_rows.size()));
}

template void Sequence<float>::backward(const SequenceBackwardArgs<float>&);
template void Sequence<double>::backward(const SequenceBackwardArgs<double>&);

}  // namespace lstmfast

// Groups of steps from the last to the first: gate gradients first, then weight and input gradients.
#include "lstm/backward_pass.h"

#include <algorithm>
#include <atomic>

namespace lstmfast {
namespace {

// Rows of a group. At 64 units the gate gradients of 512 rows are 512 KB; kept whole, those of 820 steps of 32 rows
// would be 27 MB, written to memory once and read from it twice. Those of many units exceed L2 anyway, and with twice
// the rows the large weight gradients are passed over half as often: 1 to 3 % of a training step from 256 units on.
Index rows_of_group(Index hidden) { return hidden < 256 ? kTransposedRows / 2 : kTransposedRows; }

}  // namespace

template <typename T>
bool BackwardPass<T>::run(const SequenceBackwardArgs<T>& given) {
  args_ = given;
  const SequenceWeights<T>& w = weights();
  const Index hidden = w.hidden_size, output_size = w.output_size, steps = pass_.plan.steps();
  if (given.d_transposed && !writes_transposed())
    args_.d_kernel = {d_kernel_.resize((w.input_size + output_size) * columns()), columns()};
  if (given.d_transposed.projection)
    args_.d_projection = {d_projection_.resize(hidden * output_size), output_size};
  if (!pass_.products->pack_transposed(pass_.weights.input_kernel(*pass_.products, args_.d_x ? w.input_size : 0),
                                       pass_.weights.recurrent_kernel(*pass_.products), hidden))
    return false;
  if (w.has_projection())
    projection_transposed_.pack_transposed(*pass_.k, pass_.weights.projection(), hidden, output_size);
  zero_outputs();
  point_gradients();
  if (norm_.is_on()) norm_.begin();

  const Index at_once = begin_groups();
  for (Index end = steps; end > 0; end -= at_once) {
    const Range group_steps{std::max<Index>(end - at_once, 0), end};
    begin_group({pass_.plan.step_begin[group_steps.begin], pass_.plan.step_begin[group_steps.end]});
    // Products that read the weights come before those that write as much: with few rows some weights are still cached.
    if (!(pass_.is_plain() ? step_through(group_steps) : variant_step_through(group_steps)) ||
        (group_steps.begin == 0 && !initial_state_gradients()))
      return false;
    if (norm_.is_on()) normalization_gradients();
    if (!input_gradients() || !weight_gradients(end < steps) || !projection_gradients(end < steps)) return false;
  }
  return steps > 0 || initial_state_gradients();
}

template <typename T>
void BackwardPass<T>::finish() const {
  const SequenceWeights<T>& w = weights();
  if (args_.d_kernel && pass_.weights.drops_weights())
    pass_.weights.drop({args_.d_kernel.row(w.input_size), args_.d_kernel.stride});
  const auto& [d_input, d_recurrent, d_projection] = args_.d_transposed;
  if (d_recurrent && args_.d_kernel) {
    const T* d_kernel = args_.d_kernel.data;
    pass_.k->transpose(d_kernel, columns(), w.input_size, columns(), d_input.data, d_input.stride);
    pass_.k->transpose(d_kernel + w.input_size * columns(), columns(), w.output_size, columns(), d_recurrent.data,
                       d_recurrent.stride);
  }
  if (d_projection)
    pass_.k->transpose(args_.d_projection.data, w.output_size, w.hidden_size, w.output_size, d_projection.data,
                       d_projection.stride);
}

// Gradients that are accumulated, and rows that no step writes.
template <typename T>
void BackwardPass<T>::zero_outputs() const {
  const SequenceWeights<T>& w = weights();
  const SequenceForwardArgs<T>& forward = pass_.args;
  const Index steps = pass_.plan.steps(), hidden = w.hidden_size;
  const Index zero_rows = !args_.d_kernel ? 0
                          : steps == 0    ? w.input_size + w.output_size
                          : forward.ids   ? w.input_size
                                          : 0;
  for (Index i = 0; i < zero_rows; ++i) std::fill_n(args_.d_kernel.row(i), columns(), T(0));
  if (args_.d_bias) std::fill_n(args_.d_bias, columns(), T(0));
  if (args_.d_peepholes) std::fill_n(args_.d_peepholes, kPeepholeCount * hidden, T(0));
  if (args_.d_norm_gain) {
    std::fill_n(args_.d_norm_gain, (pass_.weights.cell().layer_norm == LayerNorm::kProducts ? 2 : 1) * columns(), T(0));
    std::fill_n(args_.d_cell_gain, hidden, T(0));
    std::fill_n(args_.d_cell_shift, hidden, T(0));
  }
  if (args_.d_initial_h) std::fill_n(args_.d_initial_h, w.output_size, T(0));
  if (args_.d_initial_c) std::fill_n(args_.d_initial_c, hidden, T(0));
  for (Index i = 0; args_.d_projection && steps == 0 && i < hidden; ++i)
    std::fill_n(args_.d_projection.row(i), w.output_size, T(0));
  for (Index b = 0; args_.d_x && pass_.plan.is_ragged() && b < forward.batch; ++b)
    for (Index t = forward.lengths[b]; t < forward.time_steps; ++t) std::fill_n(args_.d_x.row(t, b), w.input_size, T(0));
}

// Room for one group: of equal size, none much smaller than the others, and none of more rows than weight gradients
// take in one pass. Returns its steps.
template <typename T>
Index BackwardPass<T>::begin_groups() {
  const SequenceWeights<T>& w = weights();
  const Index updates = pass_.updates(), wanted = rows_of_group(w.hidden_size), width = pass_.gate_width();
  const Index groups = std::max<Index>({(updates + wanted / 2) / wanted, ceil_div(updates, kTransposedRows), 1});
  const Index at_once = std::max<Index>(ceil_div(pass_.plan.steps(), groups), 1);
  const Index blocks = PanelSizes<T>(*pass_.k).gate_blocks(w.hidden_size);
  group_ = {};
  group_.rows = std::min((at_once + 1) * pass_.plan.batch, updates);
  group_.block_stride = (group_.rows + 1) * width;
  T* d_gates = d_gates_.resize(blocks * group_.block_stride);
  for (Index block = 0; block < blocks; ++block)
    std::fill_n(d_gates + block * group_.block_stride + group_.rows * width, width, T(0));
  if (norm_.is_on()) norm_.begin_backward(group_.rows, group_.block_stride);
  if (pass_.is_plain()) return at_once;
  const auto count = static_cast<std::size_t>(updates);
  if (pass_.masks.state) {
    dropped_.resize(group_.rows * w.output_size);
    rows_.dropped.resize(count);
  }
  if (pass_.masks.zoneout_of_c) {
    new_c_.resize(group_.rows * w.hidden_size);
    rows_.new_c.resize(count);
  }
  d_h_total_.resize(group_.rows * w.output_size);
  rows_.d_h_total.resize(count);
  rows_.nothing.assign(count, pass_.zeros.data());
  if (w.has_projection()) {
    d_m_.resize(group_.rows * w.hidden_size);
    rows_.d_m.resize(count);
  }
  return at_once;
}

template <typename T>
void BackwardPass<T>::point_gradients() {
  const Index rows = pass_.updates(), hidden = weights().hidden_size;
  T* d_c = d_c_.resize(pass_.plan.batch * hidden);  // carried from step to step
  for (auto* pointers : {&rows_.d_h, &rows_.d_h_extra, &rows_.d_c_in, &rows_.d_gates_next, &rows_.d_gates})
    pointers->resize(static_cast<std::size_t>(rows));
  rows_.d_c_out.resize(static_cast<std::size_t>(rows));
  for (Index r = 0; r < rows; ++r) {
    const RowUpdate& update = pass_.plan.updates[r];
    const bool is_last = update.next < 0;
    const bool cut = !is_last && pass_.plan.updates[update.next].reset;  // nothing flows back through a reset
    rows_.d_h[r] = args_.d_h ? args_.d_h.row(update.time, update.batch) : pass_.zeros.data();
    rows_.d_h_extra[r] = is_last && args_.d_h_n ? args_.d_h_n.row(update.batch) : pass_.zeros.data();
    rows_.d_c_in[r] = cut        ? pass_.zeros.data()
                 : !is_last ? d_c + update.batch * hidden
                 : args_.d_c_n ? args_.d_c_n.row(update.batch)
                              : pass_.zeros.data();
    rows_.d_c_out[r] = d_c + update.batch * hidden;
  }
  if (pass_.masks.zoneout_of_h) {
    const Index size = pass_.plan.batch * weights().output_size;
    std::fill_n(kept_.resize(size), size, T(0));
  }
  point_initial_gradients();
}

// Where the gradients of learnt states go after which rows began anew.
template <typename T>
void BackwardPass<T>::point_initial_gradients() {
  rows_.d_initial_h.clear();
  if (!args_.d_initial_h || !pass_.args.resets) return;
  const Index rows = pass_.updates(), hidden = weights().hidden_size, output_size = weights().output_size;
  rows_.d_initial_h.assign(static_cast<std::size_t>(rows), nullptr);
  const auto is_reset = [](const RowUpdate& update) { return update.reset; };
  const auto& updates = pass_.plan.updates;
  const auto resets = static_cast<Index>(std::count_if(updates.begin(), updates.end(), is_reset));
  T *d_h = d_initial_h_.resize(resets * output_size), *d_c = d_initial_c_.resize(resets * hidden);
  for (Index r = 0; r < rows; ++r) {
    if (!updates[r].reset) continue;
    rows_.d_c_out[r] = d_c;
    if (updates[r].previous >= 0) rows_.d_initial_h[updates[r].previous] = d_h;
    d_h += output_size;
    d_c += hidden;
  }
}

// The step after the group, if any, was the first of the group before; it moves behind this group's rows.
template <typename T>
void BackwardPass<T>::begin_group(Range updates) {
  const PanelSizes<T> sizes(*pass_.k);
  const Index rows = updates.end - updates.begin, width = pass_.gate_width();
  Index rows_after = 0;
  for (Index r = updates.begin; r < updates.end; ++r)
    rows_after = std::max(rows_after, pass_.plan.updates[r].next - updates.end + 1);
  for (Index block = 0; rows_after > 0 && block < sizes.gate_blocks(weights().hidden_size); ++block) {
    T* first = d_recurrent_gates() + block * group_.block_stride;
    std::copy_backward(first, first + rows_after * width, first + (rows + rows_after) * width);
  }
  group_.updates = updates;
  if (norm_.is_on()) norm_.begin_group(updates);
  const T *d_next = d_recurrent_gates(), *zeros = d_next + group_.rows * width;
  for (Index r = updates.begin; r < updates.end; ++r) {
    const RowUpdate& update = pass_.plan.updates[r];
    const bool is_cut = update.next >= 0 && pass_.plan.updates[update.next].reset && rows_.d_initial_h.empty();
    const bool nothing = update.next < 0 || is_cut;
    rows_.d_gates_next[r] = nothing ? zeros : d_next + (update.next - updates.begin) * width;
    rows_.d_gates[r] = d_gates_.data() + (r - updates.begin) * width;
  }
}

template <typename T>
StepBackwardArgs<T> BackwardPass<T>::step_args() {
  const Index hidden = weights().hidden_size;
  StepBackwardArgs<T> step{};
  step.hidden_size = hidden;
  step.d_gates_next = rows_.d_gates_next.data();
  step.no_next = d_recurrent_gates() + group_.rows * pass_.gate_width();
  step.d_h = rows_.d_h.data();
  step.d_h_extra = rows_.d_h_extra.data();
  step.d_c = rows_.d_c_in.data();
  step.d_c_prev = rows_.d_c_out.data();
  step.c_prev = pass_.rows.c_prev.data();
  step.c = pass_.rows.c.data();
  step.gates = pass_.gates;
  step.gate_block_stride = pass_.updates() * pass_.gate_width();
  step.d_gates = d_gates_.data();
  step.d_gate_block_stride = group_.block_stride;
  step.d_gates_first_row = group_.updates.begin;
  step.variant = pass_.variant();
  step.masks = pass_.cell_masks();
  step.new_c = new_c();
  step.d_new_c = norm_.is_on() ? norm_.d_new_c() : nullptr;
  return step;
}

template <typename T>
bool BackwardPass<T>::step_through(Range steps) {
  const Index hidden = weights().hidden_size;
  const StepBackwardArgs<T> step = step_args();
  std::atomic<bool> safe{true};
  const Phase cells{PanelSizes<T>(*pass_.k).panels(hidden), [&](Index, Range updates, Range panels, int part) {
    if (!pass_.products->step_backward(for_panels(for_rows(step, updates), panels), part)) safe = false;
  }};
  const double work = pass_.multiply_adds(pass_.plan.batch, hidden);
  for_each_step(pass_.plan, Order::kBackward, steps, pass_.division(work), cells);
  return safe;
}

// From the product of the step after to the whole gradient of h, and the masks that the next rows to come need.
template <typename T>
void BackwardPass<T>::complete_state_gradients(Range updates, Range units) {
  Masks<T>& masks = pass_.masks;
  const Index output_size = weights().output_size;
  masks.zoneout_of_h.draw(pass_.plan, updates, units);
  for (Index r = updates.begin; r < updates.end; ++r) {
    const RowUpdate& update = pass_.plan.updates[r];
    StateGradientArgs<T> row{units.begin, units.end, rows_.d_h_total[r], rows_.d_h[r], rows_.d_h_extra[r]};
    if (masks.state && update.next >= 0) row.next_mask = masks.state.row(update.batch);
    if (!rows_.d_initial_h.empty()) row.d_initial = rows_.d_initial_h[r];
    if (masks.zoneout_of_h) {
      row.kept = kept_.data() + update.batch * output_size;
      const bool is_cut = update.next >= 0 && pass_.plan.updates[update.next].reset && !row.d_initial;
      if (is_cut) std::fill(row.kept + units.begin, row.kept + units.end, T(0));
      row.share = masks.zoneout_of_h.row(update.batch);
    }
    pass_.k->complete_state_gradient(row);
  }
  if (!masks.state) return;
  masks.state.draw(pass_.plan, updates, units);
  for (Index r = updates.begin; r < updates.end; ++r)
    pass_.k->multiply(pass_.rows.h_prev[r] + units.begin,
                      masks.state.row(pass_.plan.updates[r].batch) + units.begin, units.end - units.begin,
                      rows_.dropped[r] + units.begin);
}

// In two or three phases, because masks or a projection are between product and cells: the gradient of h is completed
// by that of the output and kept for the projection's own gradient, passes the projection, and then the cells.
template <typename T>
bool BackwardPass<T>::variant_step_through(Range steps) {
  const Index hidden = weights().hidden_size, output_size = weights().output_size, first = group_.updates.begin;
  const PanelSizes<T> sizes(*pass_.k);
  StepBackwardArgs<T> step = step_args();
  step.d_h = step.d_h_extra = rows_.nothing.data();  // they are in d_h_total
  ProductArgs<T> product{};
  product.a = rows_.d_gates_next.data();
  product.depth_blocks = sizes.gate_blocks(hidden);
  product.block_length = pass_.gate_width();
  product.block_stride = group_.block_stride;
  product.out = rows_.d_h_total.data();
  product.columns = output_size;
  for (Index r = first; r < group_.updates.end; ++r) {
    rows_.d_h_total[r] = d_h_total_.data() + (r - first) * output_size;
    if (pass_.weights.projection()) rows_.d_m[r] = d_m_.data() + (r - first) * hidden;
    if (pass_.masks.state) rows_.dropped[r] = dropped_.data() + (r - first) * output_size;
    if (pass_.masks.zoneout_of_c) rows_.new_c[r] = new_c_.data() + (r - first) * hidden;
  }
  std::atomic<bool> safe{true};
  const Phase coming_back{sizes.panels(output_size), [&](Index, Range updates, Range panels, int part) {
    const ProductArgs<T> mine = for_panels(for_rows(product, updates), panels);
    if (!pass_.products->multiply_transposed(Products<T>::Kernel::kRecurrent, mine, part)) safe = false;
    complete_state_gradients(updates, sizes.units_of_panels(panels, output_size));
  }};
  const Phase cells{sizes.panels(hidden), [&](Index, Range updates, Range panels, int) {
    if (pass_.weights.projection())
      projection_transposed_.multiply(updates, panels, rows_.d_h_total.data(), nullptr, rows_.d_m.data());
    pass_.masks.draw_for_cells(pass_.plan, updates, sizes.units_of_panels(panels, hidden));
    StepBackwardArgs<T> mine = for_panels(for_rows(step, updates), panels);
    mine.d_h_next = (pass_.weights.projection() ? d_m_.data() : d_h_total_.data()) + (updates.begin - first) * hidden;
    if (norm_.is_on()) norm_.cells_backward(mine);
    step.variant ? pass_.k->variant_step_backward(mine) : pass_.k->step_backward(mine);
    if (norm_.is_on()) norm_.gates_backward(updates, d_gates_.data());
  }};
  const double work = pass_.multiply_adds(pass_.plan.batch, output_size) + pass_.projecting_adds(pass_.plan.batch);
  for_each_step(pass_.plan, Order::kBackward, steps, pass_.division(work), coming_back, cells);
  return safe;
}

template <typename T>
bool BackwardPass<T>::projection_gradients(bool add) {
  if (!args_.d_projection) return true;
  const Index rows = group_.updates.end - group_.updates.begin, hidden = weights().hidden_size;
  const Index output_size = weights().output_size;
  d_h_panels_.pack(*pass_.k, {d_h_total_.data(), output_size}, rows, output_size);
  std::atomic<bool> safe{true};
  run_parallel(threads_for_work(pass_.projecting_adds(rows)), [&](int part, int parts) {
    const Range units = share(hidden, part, parts);
    TransposedProductArgs<T> product{};
    product.panel_end = d_h_panels_.panels();
    product.rows = rows;
    product.b = d_h_panels_.data();
    product.b_panel_stride = d_h_panels_.panel_stride();
    product.columns = output_size;
    product.add = add;
    const TransposedLeft<T> m{pass_.rows.m.data() + group_.updates.begin, units.begin, units.end, args_.d_projection};
    if (!pass_.products->weight_gradients(product, &m, 1, part)) safe = false;
  });
  return safe;
}

template <typename T>
bool BackwardPass<T>::weight_gradients(bool add) {
  MatrixView<T> d_input = args_.d_kernel, d_recurrent;
  if (args_.d_kernel) d_recurrent = {args_.d_kernel.row(weights().input_size), args_.d_kernel.stride};
  if (writes_transposed()) {
    d_input = args_.d_transposed.input;
    d_recurrent = args_.d_transposed.recurrent;
  }
  if (!d_recurrent && !args_.d_bias && !args_.d_peepholes) return true;
  const Index rows = group_.updates.end - group_.updates.begin, first = group_.updates.begin;
  const Index hidden = weights().hidden_size, input_size = weights().input_size;
  const Index blocks = PanelSizes<T>(*pass_.k).gate_blocks(hidden);
  double work = pass_.multiply_adds(rows, (pass_.has_input_product() ? input_size : 1) + weights().output_size);
  // Few rows run on one thread: waking the others takes 90 us, and one row of 256 units has 70 us of work.
  constexpr double kWorkThatWakes = 8;
  if (pass_.choice.path == Path::kUnpacked) work /= kWorkThatWakes;
  std::atomic<bool> safe{true};
  // Parts are gate blocks times slices of kernel rows, so that narrow layers keep all threads busy too.
  run_parallel(threads_for_work(work), [&](int part, int parts) {
    const Index slices = ceil_div(parts, std::max<Index>(blocks, 1));
    const Range cells = share(blocks * slices, part, parts);
    TransposedProductArgs<T> product{};
    product.rows = rows;
    product.b = d_gates_.data();
    product.b_panel_stride = group_.block_stride;
    product.columns = kGateCount * hidden;
    product.gate_hidden_size = hidden;
    product.add = add;
    const auto left = [&](const T* const* a, Index columns, Range slice_of_m, MatrixView<T> out) {
      return TransposedLeft<T>{a + first, columns * slice_of_m.begin / slice_of_m.end,
                               columns * (slice_of_m.begin + 1) / slice_of_m.end, out};
    };
    // Adjacent blocks that this part owns entirely are done at once.
    for (Index cell = cells.begin; cell < cells.end;) {
      const Index whole = slices == 1 ? cells.end - cell : 1;
      const Range slice{cell % slices, slices};
      product.panel_begin = cell / slices;
      product.panel_end = product.panel_begin + whole;
      cell += whole;
      if (d_recurrent) {
        TransposedLeft<T> lefts[2];
        int count = 0;
        if (pass_.has_input_product()) lefts[count++] = left(pass_.rows.x.data(), input_size, slice, d_input);
        if (norm_.is_on()) {  // the products have gradients of their own
          if (!pass_.products->weight_gradients(product, lefts, count, part)) safe = false;
          product.b = d_recurrent_gates();
          count = 0;
        }
        const T* const* h_prev = pass_.masks.state ? rows_.dropped.data() : pass_.rows.h_prev.data();
        lefts[count++] = left(h_prev, weights().output_size, slice, d_recurrent);
        if (!pass_.products->weight_gradients(product, lefts, count, part)) safe = false;
        product.b = d_gates_.data();
      }
      if (slice.begin != 0) continue;
      if (args_.d_kernel && pass_.args.ids)
        pass_.k->scatter_gate_rows(d_gates_.data(), group_.block_stride, pass_.rows.ids.data() + first, rows, hidden,
                                   product.panel_begin, product.panel_end, args_.d_kernel.data, args_.d_kernel.stride);
      if (!norm_.is_on()) sum_gradients({product.panel_begin, product.panel_end});
    }
  });
  return safe;
}

// The gradients that are sums over the rows of the group's gate gradients.
template <typename T>
void BackwardPass<T>::sum_gradients(Range blocks) {
  const Index rows = group_.updates.end - group_.updates.begin, first = group_.updates.begin;
  const Index hidden = weights().hidden_size;
  if (args_.d_bias)
    pass_.k->sum_gate_rows(d_gates_.data(), group_.block_stride, rows, hidden, blocks.begin, blocks.end, args_.d_bias);
  if (!args_.d_peepholes) return;
  const T* const* c = new_c() ? new_c() : pass_.rows.c.data();
  pass_.k->peephole_gradients({blocks.begin, blocks.end, rows, hidden, d_gates_.data(), group_.block_stride,
                               pass_.rows.c_prev.data() + first, c + first, args_.d_peepholes});
}

template <typename T>
void BackwardPass<T>::normalization_gradients() {
  const Index rows = group_.updates.end - group_.updates.begin;
  const Index blocks = PanelSizes<T>(*pass_.k).gate_blocks(weights().hidden_size);
  run_parallel(threads_for_work(2.0 * static_cast<double>(rows * columns())),
               [&](int part, int parts) { sum_gradients(share(blocks, part, parts)); });
  norm_.gradients(args_, d_gates_.data());
}

// The gradient of z in some rows, given by `args.a`, times a kernel transposed.
template <typename T>
bool BackwardPass<T>::multiply_transposed(typename Products<T>::Kernel kernel, const ProductArgs<T>& args, Index rows) {
  std::atomic<bool> safe{true};
  run_parallel(threads_for_work(pass_.multiply_adds(rows, args.columns)), [&](int part, int parts) {
    ProductArgs<T> mine = for_rows(args, share(rows, part, parts));
    mine.depth_blocks = PanelSizes<T>(*pass_.k).gate_blocks(weights().hidden_size);
    mine.block_length = pass_.gate_width();
    mine.panel_end = PanelSizes<T>(*pass_.k).panels(args.columns);
    if (!pass_.products->multiply_transposed(kernel, mine, part)) safe = false;
  });
  return safe;
}

template <typename T>
bool BackwardPass<T>::input_gradients() {
  if (!args_.d_x || weights().input_size == 0) return true;
  const Index rows = group_.updates.end - group_.updates.begin, first = group_.updates.begin;
  rows_.out.resize(static_cast<std::size_t>(rows));
  for (Index r = 0; r < rows; ++r)
    rows_.out[r] = args_.d_x.row(pass_.plan.updates[first + r].time, pass_.plan.updates[first + r].batch);
  ProductArgs<T> product{};
  product.a = rows_.d_gates.data() + first;
  product.block_stride = group_.block_stride;
  product.out = rows_.out.data();
  product.columns = weights().input_size;
  return multiply_transposed(Products<T>::Kernel::kInput, product, rows);
}

// Whether a row began with the learnt state: after a reset, or because no other was given.
template <typename T>
bool BackwardPass<T>::is_learnt(Index batch_row, bool was_given) const {
  const Index first = pass_.plan.first_of_row[batch_row];
  return args_.d_initial_h && (!was_given || (first >= 0 && pass_.plan.updates[first].reset));
}

template <typename T>
bool BackwardPass<T>::initial_state_gradients() {
  const Index batch = pass_.args.batch, hidden = weights().hidden_size, output_size = weights().output_size;
  const auto add = [](const T* values, Index count, T* sums) {
    for (Index j = 0; j < count; ++j) sums[j] += values[j];
  };
  const bool learns = args_.d_initial_h;
  if (!args_.d_h0 && !args_.d_c0 && !learns) return true;
  MatrixView<T> d_h0 = args_.d_h0;
  if (!d_h0 && learns) d_h0 = {d_h0_.resize(batch * output_size), output_size};
  std::vector<const T*> first_gates;
  std::vector<T*> d_h0_rows;
  for (Index b = 0; b < batch; ++b) {
    const Index first = pass_.plan.first_of_row[b];
    const bool untouched = first < 0;  // a row without steps hands its final state's gradient on
    const bool cut = !untouched && pass_.plan.updates[first].reset;
    const T* d_c = !untouched ? rows_.d_c_out[first] : args_.d_c_n ? args_.d_c_n.row(b) : pass_.zeros.data();
    if (is_learnt(b, static_cast<bool>(pass_.args.c0))) add(d_c, hidden, args_.d_initial_c);
    if (args_.d_c0) std::copy_n(cut ? pass_.zeros.data() : d_c, hidden, args_.d_c0.row(b));
    if (!d_h0) continue;
    if (untouched || (cut && !learns)) {
      std::copy_n(untouched && args_.d_h_n ? args_.d_h_n.row(b) : pass_.zeros.data(), output_size, d_h0.row(b));
    } else {
      first_gates.push_back(d_recurrent_gates() + (first - group_.updates.begin) * pass_.gate_width());
      d_h0_rows.push_back(d_h0.row(b));
    }
  }
  if (!d_h0_rows.empty()) {
    ProductArgs<T> product{};
    product.a = first_gates.data();
    product.block_stride = group_.block_stride;
    product.out = d_h0_rows.data();
    product.columns = output_size;
    if (!multiply_transposed(Products<T>::Kernel::kRecurrent, product, static_cast<Index>(d_h0_rows.size())))
      return false;
  }
  for (Index b = 0; d_h0 && b < batch; ++b) {
    const Index first = pass_.plan.first_of_row[b];
    const bool cut = first >= 0 && pass_.plan.updates[first].reset;
    T* row = d_h0.row(b);
    if (first >= 0 && !(cut && !learns)) {
      if (pass_.masks.state) pass_.k->multiply(row, pass_.masks.state.row(b), output_size, row);
      if (pass_.masks.zoneout_of_h) add(kept_.data() + b * output_size, output_size, row);
    }
    if (is_learnt(b, static_cast<bool>(pass_.args.h0))) add(row, output_size, args_.d_initial_h);
    if (cut) std::fill_n(row, output_size, T(0));
  }
  for (Index r = 0; !rows_.d_initial_h.empty() && r < pass_.updates(); ++r) {
    if (!rows_.d_initial_h[r]) continue;
    add(rows_.d_initial_h[r], output_size, args_.d_initial_h);
    add(rows_.d_c_out[pass_.plan.updates[r].next], hidden, args_.d_initial_c);
  }
  return true;
}

template class BackwardPass<float>;
template class BackwardPass<double>;

}  // namespace lstmfast

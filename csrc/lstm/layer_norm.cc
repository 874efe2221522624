// Products into panels, normalised there, and then the cells without products.
#include "lstm/layer_norm.h"

#include <algorithm>
#include <atomic>

namespace lstmfast {

template <typename T>
void LayerNormPass<T>::begin() {
  const T* gain = pass_.weights.given().norm_gain;
  input_gain_.pack_bias(*pass_.k, gain, T(0), hidden());
  product_gain_.pack_bias(*pass_.k, gain + (has_two() ? kGateCount * hidden() : 0), T(0), hidden());
  zero_.pack_bias(*pass_.k, nullptr, T(0), hidden());
  pass_.weights.pack_bias(bias_);
  const Index batch = pass_.plan.batch;
  if (!keeps()) product_.resize(batch * depth());
  T* const new_c = new_c_.resize(batch * hidden());
  rows_.new_c.resize(static_cast<std::size_t>(pass_.updates()));
  for (Index r = 0; r < pass_.updates(); ++r) rows_.new_c[r] = new_c + pass_.plan.updates[r].batch * hidden();
}

template <typename T>
NormalizeGatesArgs<T> LayerNormPass<T>::normalization() const {
  NormalizeGatesArgs<T> args{};
  args.hidden_size = hidden();
  args.groups = groups();
  args.epsilon = pass_.weights.cell().layer_norm_epsilon;
  return args;
}

// Rows of the input kernel, which stand for its products with one-hot rows.
template <typename T>
void LayerNormPass<T>::copy_id_rows(Range updates, T* panels, Index block_stride, Index first_row) const {
  const Index width = pass_.gate_width(), stride = pass_.weights.starting_values().block_stride();
  for (Index r = updates.begin; r < updates.end; ++r)
    for (Index block = 0; block < PanelSizes<T>(*pass_.k).gate_blocks(hidden()); ++block)
      std::copy_n(pass_.rows.init[r] + block * stride, width, panels + block * block_stride + (r - first_row) * width);
}

template <typename T>
bool LayerNormPass<T>::multiply_inputs(Range updates, const Preactivations<T>& z) {
  const Index width = pass_.gate_width(), input_size = pass_.weights.input_rows();
  const bool is_kept = has_two() && keeps();
  T* const panels = is_kept ? normal_inputs() : z.panels;
  GateProductArgs<T> product{};
  product.block_end = PanelSizes<T>(*pass_.k).gate_blocks(hidden());
  product.init = zero_.of_all();
  product.x = pass_.rows.x.data();
  product.input_size = input_size;
  product.z = panels;
  product.z_block_stride = is_kept ? normals_stride() : z.block_stride;
  product.z_first_row = is_kept ? 0 : z.first_row;
  NormalizeGatesArgs<T> norm = normalization();
  norm.v = panels;
  norm.v_block_stride = product.z_block_stride;
  norm.v_first_row = product.z_first_row;
  norm.scales = is_kept ? input_scales() : nullptr;
  norm.gain = input_gain_.of_all();
  norm.init = bias_.of_all();
  norm.z = z.panels;
  norm.z_block_stride = z.block_stride;
  norm.z_first_row = z.first_row;
  const Index rows = updates.end - updates.begin;
  std::atomic<bool> safe{true};
  run_parallel(threads_for_work(pass_.multiply_adds(rows, std::max<Index>(input_size, 1))), [&](int part, int parts) {
    const Range share_of_rows = share(rows, part, parts);
    const Range mine{updates.begin + share_of_rows.begin, updates.begin + share_of_rows.end};
    if (pass_.args.ids) {
      copy_id_rows(mine, panels, product.z_block_stride, product.z_first_row);
    } else if (input_size == 0) {
      for (Index block = 0; block < product.block_end; ++block)
        std::fill_n(panels + block * product.z_block_stride + (mine.begin - product.z_first_row) * width,
                    (mine.end - mine.begin) * width, T(0));
    } else if (!pass_.products->multiply_to_gates(Products<T>::Kernel::kInput, for_rows(product, mine), part)) {
      safe = false;
    }
    if (has_two()) pass_.k->normalize_gates(for_rows(norm, mine));
  });
  return safe;
}

template <typename T>
bool LayerNormPass<T>::step_forward(StepForwardArgs<T> step, const Preactivations<T>& z, int part) {
  const Cell<T>& cell = pass_.weights.cell();
  const Range updates{step.row_begin, step.row_end};
  if (updates.begin == updates.end) return true;
  const Index width = pass_.gate_width(), first = pass_.plan.updates[updates.begin].batch;
  GateProductArgs<T> product{};
  product.block_end = PanelSizes<T>(*pass_.k).gate_blocks(hidden());
  product.init = zero_.of_all();
  product.x = step.h_prev;
  product.input_size = step.recurrent_size;
  // In inference, a step's rows begin at that of the first one's batch row: parts of other rows come before or after.
  product.z = keeps() ? normal_products() : product_.data();
  product.z_block_stride = keeps() ? normals_stride() : pass_.plan.batch * width;
  product.z_first_row = keeps() ? 0 : updates.begin - first;
  if (!pass_.products->multiply_to_gates(Products<T>::Kernel::kRecurrent, for_rows(product, updates), part)) return false;
  NormalizeGatesArgs<T> norm = normalization();
  norm.v = product.z;
  norm.v_block_stride = product.z_block_stride;
  norm.v_first_row = product.z_first_row;
  norm.adds_z = !has_two();
  norm.scales = keeps() ? product_scales() : nullptr;
  norm.gain = product_gain_.of_all();
  norm.init = has_two() ? nullptr : bias_.of_all();
  norm.z = z.panels;
  norm.z_block_stride = z.block_stride;
  norm.z_first_row = z.first_row;
  pass_.k->normalize_gates(for_rows(norm, updates));

  T* const* const c = step.c;
  step.init = z.rows;
  step.init_block_stride = z.block_stride;
  step.input_size = step.recurrent_size = 0;
  step.c = rows_.new_c.data();
  step.masks.kept_cell = nullptr;  // after the normalisation
  step.gates = z.panels - z.first_row * width;  // o is read there, even if gates are not kept
  step.gate_block_stride = z.block_stride;
  pass_.k->variant_step_forward(step);

  NormalizedCellsArgs<T> cells{};
  cells.hidden_size = hidden();
  cells.epsilon = cell.layer_norm_epsilon;
  cells.carries_norm = cell.carries_norm;
  cells.cell_gain = pass_.weights.given().cell_gain;
  cells.cell_shift = pass_.weights.given().cell_shift;
  cells.gates = step.gates;
  cells.gate_block_stride = step.gate_block_stride;
  cells.new_c = rows_.new_c.data();
  cells.statistics = keeps() ? cell_statistics() : nullptr;
  cells.kept_cell = pass_.cell_masks().kept_cell;
  cells.c_prev = step.c_prev;
  cells.c = c;
  cells.h = step.h;
  pass_.k->normalized_cells(for_rows(cells, updates));
  return true;
}

template <typename T>
void LayerNormPass<T>::begin_backward(Index rows, Index block_stride) {
  const Index width = pass_.gate_width(), blocks = PanelSizes<T>(*pass_.k).gate_blocks(hidden());
  block_stride_ = block_stride;
  T* d_recurrent = d_recurrent_.resize(blocks * block_stride);
  for (Index block = 0; block < blocks; ++block) std::fill_n(d_recurrent + block * block_stride + rows * width, width, T(0));
  for (auto* buffer : {&new_c_, &d_new_c_, &d_gain_, &d_shift_}) buffer->resize(rows * hidden());
  for (auto* pointers : {&rows_.new_c, &rows_.d_new_c, &rows_.d_gain, &rows_.d_shift})
    pointers->resize(static_cast<std::size_t>(pass_.updates()));
}

template <typename T>
void LayerNormPass<T>::begin_group(Range updates) {
  group_ = updates;
  for (Index r = updates.begin; r < updates.end; ++r) {
    const Index at = (r - updates.begin) * hidden();
    rows_.new_c[r] = new_c_.data() + at;
    rows_.d_new_c[r] = d_new_c_.data() + at;
    rows_.d_gain[r] = d_gain_.data() + at;
    rows_.d_shift[r] = d_shift_.data() + at;
  }
}

template <typename T>
void LayerNormPass<T>::cells_backward(StepBackwardArgs<T> step) {
  const SequenceWeights<T>& w = pass_.weights.given();
  pass_.k->normalized_cells_backward({step, cell_statistics(), pass_.weights.cell().carries_norm, w.cell_gain,
                                      w.cell_shift, rows_.d_gain.data(), rows_.d_shift.data()});
}

template <typename T>
void LayerNormPass<T>::gates_backward(Range updates, const T* d_gates) {
  NormalizeGatesBackwardArgs<T> args{};
  args.hidden_size = hidden();
  args.groups = groups();
  args.v = normal_products();
  args.v_block_stride = normals_stride();
  args.scales = product_scales();
  args.gain = product_gain_.of_all();
  args.d_z = d_gates;
  args.d_v = d_recurrent_.data();
  args.d_block_stride = block_stride_;
  args.d_first_row = group_.begin;
  pass_.k->normalize_gates_backward(for_rows(args, updates));
}

template <typename T>
void LayerNormPass<T>::gradients(const SequenceBackwardArgs<T>& args, T* d_gates) {
  const Index rows = group_.end - group_.begin, width = pass_.gate_width();
  const Index blocks = PanelSizes<T>(*pass_.k).gate_blocks(hidden()), columns = kGateCount * hidden();
  const double work = 4.0 * static_cast<double>(rows * columns);
  if (args.d_norm_gain)
    run_parallel(threads_for_work(work), [&](int part, int parts) {
      const Range mine = share(blocks, part, parts);
      const auto add = [&](const T* normals, T* sums) {
        pass_.k->gate_gain_gradients({mine.begin, mine.end, rows, hidden(), d_gates, block_stride_,
                                      normals + group_.begin * width, normals_stride(), sums});
      };
      if (has_two()) add(normal_inputs(), args.d_norm_gain);
      add(normal_products(), args.d_norm_gain + (has_two() ? columns : 0));
    });
  const auto add_rows = [&](T* const* of_rows, T* sums) {
    for (Index r = group_.begin; sums && r < group_.end; ++r)
      for (Index j = 0; j < hidden(); ++j) sums[j] += of_rows[r][j];
  };
  add_rows(rows_.d_gain.data(), args.d_cell_gain);
  add_rows(rows_.d_shift.data(), args.d_cell_shift);
  NormalizeGatesBackwardArgs<T> inputs{};
  inputs.hidden_size = hidden();
  inputs.groups = groups();
  inputs.v = normal_inputs();
  inputs.v_block_stride = normals_stride();
  inputs.scales = input_scales();
  inputs.gain = input_gain_.of_all();
  inputs.d_z = inputs.d_v = d_gates;
  inputs.d_block_stride = block_stride_;
  inputs.d_first_row = group_.begin;
  run_parallel(threads_for_work(work), [&](int part, int parts) {
    const Range mine = share(rows, part, parts);
    const Range updates{group_.begin + mine.begin, group_.begin + mine.end};
    if (has_two()) return pass_.k->normalize_gates_backward(for_rows(inputs, updates));
    for (Index block = 0; block < blocks; ++block) {
      const Index at = block * block_stride_ + mine.begin * width;
      std::copy_n(d_recurrent_.data() + at, (mine.end - mine.begin) * width, d_gates + at);
    }
  });
}

template class LayerNormPass<float>;
template class LayerNormPass<double>;

}  // namespace lstmfast

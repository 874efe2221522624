// Layer normalisation of a pass: between the products and the gates, and of c. A row needs its whole products before its
// gates can be computed, so steps are divided by rows only, and products are not fused with the cells.
// Owns what backward needs beside a plain cell's values; the Pass owns those.
#pragma once

#include <vector>

#include "core/aligned_buffer.h"
#include "lstm/pass.h"

namespace lstmfast {

template <typename T>
class LayerNormPass {
 public:
  explicit LayerNormPass(Pass<T>& pass) : pass_(pass) {}

  bool is_on() const { return kind() != LayerNorm::kNone; }

  // Forward. Gains and biases as they are now:
  void begin();
  // The input's part of the pre-activations of a group, normalised if it is alone.
  bool multiply_inputs(Range updates, const Preactivations<T>& z);
  // One step of some rows, from the input's part to h and c. `step.h_prev` are the rows to multiply.
  bool step_forward(StepForwardArgs<T> step, const Preactivations<T>& z, int part);

  // Backward, for groups of at most `rows` rows.
  void begin_backward(Index rows, Index block_stride);
  void begin_group(Range updates);
  // Before and after the gradients of the gates of some rows of a step: that of c, and that of the recurrent product.
  void cells_backward(StepBackwardArgs<T> step);
  void gates_backward(Range updates, const T* d_gates);
  // The gradients of the recurrent product, [blocks][rows of the group, those after it, zeros].
  T* d_recurrent() { return d_recurrent_.data(); }
  // Of the group: gains and shift, and d_gates becomes the gradient of the input's product.
  void gradients(const SequenceBackwardArgs<T>& args, T* d_gates);
  T* const* new_c() const { return rows_.new_c.data(); }
  T* const* d_new_c() const { return rows_.d_new_c.data(); }

  template <typename Body>
  void for_each_workspace(const Body& body) {
    for (auto* buffer : {&product_, &new_c_, &d_recurrent_, &d_new_c_, &d_gain_, &d_shift_}) body(*buffer);
    for (auto* row : {&bias_, &input_gain_, &product_gain_, &zero_}) body(*row);
  }
  void release_rows() { rows_ = {}; }

 private:
  struct Rows {  // vectors of [updates]
    std::vector<T*> new_c, d_new_c, d_gain, d_shift;
  };

  LayerNorm kind() const { return pass_.weights.cell().layer_norm; }
  bool has_two() const { return kind() == LayerNorm::kProducts; }
  int groups() const { return has_two() ? 1 : kGateCount; }
  Index hidden() const { return pass_.weights.given().hidden_size; }
  Index depth() const { return PanelSizes<T>(*pass_.k).gate_depth(hidden()); }
  bool keeps() const { return pass_.args.keep_for_backward; }
  // Of the products, normalised, for all updates: the input's, and the last one, which is the recurrent one or the sum.
  T* normal_inputs() const { return pass_.normals; }
  T* normal_products() const { return pass_.normals + (has_two() ? rows_of_normals(pass_.updates()) * depth() : 0); }
  Index normals_stride() const { return rows_of_normals(pass_.updates()) * pass_.gate_width(); }
  T* input_scales() const { return normal_products() + rows_of_normals(pass_.updates()) * depth(); }
  T* product_scales() const { return input_scales() + (has_two() ? pass_.updates() : 0); }
  T* cell_statistics() const { return product_scales() + groups() * pass_.updates(); }
  NormalizeGatesArgs<T> normalization() const;
  void copy_id_rows(Range updates, T* panels, Index block_stride, Index first_row) const;

  Pass<T>& pass_;
  StartingValues<T> bias_, input_gain_, product_gain_, zero_;  // rows of gate panels
  AlignedBuffer<T> product_, new_c_;  // of one step; in training, the product is kept with those of all
  AlignedBuffer<T> d_recurrent_, d_new_c_, d_gain_, d_shift_;
  Rows rows_;
  Range group_{};
  Index block_stride_ = 0;
};

}  // namespace lstmfast

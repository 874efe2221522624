// The backward pass: steps in groups, the last one first. The gradients of the gates are kept for one group only, in L2
// if they fit, and become weight and input gradients before the next.
// Reads what the forward pass left in the Pass and writes the requested gradients; owns its temporary memory.
#pragma once

#include <cstddef>
#include <vector>

#include "core/aligned_buffer.h"
#include "lstm/layer_norm.h"
#include "lstm/pass.h"

namespace lstmfast {

template <typename T>
class BackwardPass {
 public:
  BackwardPass(Pass<T>& pass, LayerNormPass<T>& norm) : pass_(pass), norm_(norm) {}

  // Returns false if the products in use refuse a value; run the pass again with multiply-adds then.
  bool run(const SequenceBackwardArgs<T>& args);
  // Gradients of transposed weights.
  void finish() const;

  // Calls body for every buffer.
  template <typename Body>
  void for_each_workspace(const Body& body) {
    for (auto* buffer : {&d_kernel_, &d_projection_, &d_gates_, &d_c_, &d_h_total_, &d_m_, &kept_, &dropped_, &new_c_,
                         &d_initial_h_, &d_initial_c_, &d_h0_})
      body(*buffer);
    for (auto* matrix : {&projection_transposed_, &d_h_panels_}) body(*matrix);
  }
  void release_rows() { rows_ = {}; }

 private:
  struct GateGradients {
    Index rows;  // capacity, without the row of zeros
    Index block_stride;
    Range updates;  // of the group, from row 0 on; then those of the step after the group
  };
  struct Rows {  // vectors of [updates]
    std::vector<const T*> d_h, d_h_extra, d_c_in, d_gates_next, d_gates, nothing;  // nothing: zeros
    std::vector<T*> d_c_out, d_h_total, d_m, out, dropped, new_c;
    std::vector<T*> d_initial_h;  // null where a row's next step goes on with its state
  };

  void zero_outputs() const;
  void point_gradients();
  void point_initial_gradients();
  void complete_state_gradients(Range updates, Range units);
  bool is_learnt(Index row, bool was_given) const;
  // The gradients of the recurrent product: those of z, unless it was normalised.
  T* d_recurrent_gates() { return norm_.is_on() ? norm_.d_recurrent() : d_gates_.data(); }
  Index begin_groups();
  void begin_group(Range updates);
  bool step_through(Range steps);
  bool variant_step_through(Range steps);
  StepBackwardArgs<T> step_args();
  // Where the steps write c as it was before zoneout or its normalisation; null if `c` is that.
  T* const* new_c() const {
    return norm_.is_on() ? norm_.new_c() : pass_.masks.zoneout_of_c ? rows_.new_c.data() : nullptr;
  }
  bool weight_gradients(bool add);
  void sum_gradients(Range blocks);
  void normalization_gradients();
  bool projection_gradients(bool add);
  bool input_gradients();
  bool initial_state_gradients();
  bool multiply_transposed(typename Products<T>::Kernel kernel, const ProductArgs<T>& args, Index rows);

  const SequenceWeights<T>& weights() const { return pass_.weights.given(); }
  Index columns() const { return kGateCount * weights().hidden_size; }
  bool writes_transposed() const { return weights().transposed && pass_.choice.path == Path::kUnpacked; }

  Pass<T>& pass_;
  LayerNormPass<T>& norm_;
  SequenceBackwardArgs<T> args_{};
  GateGradients group_{};
  Rows rows_;
  AlignedBuffer<T> d_kernel_, d_projection_;  // before they are transposed
  AlignedBuffer<T> d_gates_, d_c_, d_h_total_, d_m_;
  AlignedBuffer<T> kept_;              // [batch, P] gradient of h that passes through zoneout
  AlignedBuffer<T> dropped_, new_c_;   // of a group: h of the step before after its dropout; c before zoneout
  AlignedBuffer<T> d_initial_h_, d_initial_c_, d_h0_;  // of learnt states, for each reset; of states that were not given
  PackedMatrix<T> projection_transposed_, d_h_panels_;
};

}  // namespace lstmfast

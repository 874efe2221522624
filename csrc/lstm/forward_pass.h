// The forward pass: products of the input for many steps at once or in every step, the steps, and the outputs.
// Owns only pre-activations; rows, gates and states belong to the Pass.
#pragma once

#include <cstddef>
#include <vector>

#include "core/aligned_buffer.h"
#include "lstm/layer_norm.h"
#include "lstm/pass.h"

namespace lstmfast {

template <typename T>
class ForwardPass {
 public:
  ForwardPass(Pass<T>& pass, LayerNormPass<T>& norm) : pass_(pass), norm_(norm) {}

  // Returns false if the products in use refuse a value; run the pass again with multiply-adds then.
  bool run();
  // Final states, outputs past the ends of rows, and gates in the requested layout.
  void finish();

  // Calls body for every buffer.
  template <typename Body>
  void for_each_workspace(const Body& body) {
    body(z_);
    body(dropped_);
  }
  void release_rows() {
    z_rows_ = {};
    dropped_rows_ = {};
    gate_rows_ = {};
  }

 private:
  Index steps_at_once(bool keeps_preactivations) const;
  StepForwardArgs<T> step_args();
  void drop_states(Range updates, Range units);
  void keep_states(Range updates, Range units);
  Preactivations<T> preactivations_of(Range updates);
  bool multiply_inputs(Range updates, const Preactivations<T>& z);
  bool keeps_gates() const { return pass_.args.keep_for_backward || pass_.args.gates; }

  Pass<T>& pass_;
  LayerNormPass<T>& norm_;
  AlignedBuffer<T> z_;  // pre-activations of a group of steps
  AlignedBuffer<T> dropped_;  // h of the step before after its dropout, [batch, P]
  std::vector<const T*> z_rows_, dropped_rows_;
  std::vector<T*> gate_rows_;
  Index steps_before_ = 0;  // of all forward passes
};

}  // namespace lstmfast

// The forward pass: products of the input for many steps at once or in every step, the steps, and what is handed out.
// Knows no memory but its own pre-activations: rows, gates and states are the Pass'.
#pragma once

#include <cstddef>
#include <vector>

#include "core/aligned_buffer.h"
#include "lstm/pass.h"

namespace lstmfast {

template <typename T>
class ForwardPass {
 public:
  explicit ForwardPass(Pass<T>& pass) : pass_(pass) {}

  // Returns false where the products in use refuse a value; the pass is then to be run again with multiply-adds.
  bool run();
  // Final states, what lies past the ends of rows, and gates as they were asked for.
  void finish();

  // Body for all memory.
  template <typename Body>
  void for_each_workspace(const Body& body) {
    body(z_);
  }
  void release_rows() {
    z_rows_ = {};
    gate_rows_ = {};
  }

 private:
  Index steps_at_once(bool keeps_preactivations) const;
  StepForwardArgs<T> step_args() const;
  Preactivations<T> preactivations_of(Range updates);
  bool multiply_inputs(Range updates, const Preactivations<T>& z);
  bool keeps_gates() const { return pass_.args.keep_for_backward || pass_.args.gates; }

  Pass<T>& pass_;
  AlignedBuffer<T> z_;  // pre-activations of a group of steps
  std::vector<const T*> z_rows_;
  std::vector<T*> gate_rows_;
  Index steps_before_ = 0;  // of all forward passes
};

}  // namespace lstmfast

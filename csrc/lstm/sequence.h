// One direction of one LSTM layer over a whole sequence: forward, and backward through time.
// Knows time, states and gradients; knows no ISA, no Python, no other layer. It owns all workspace and keeps it, so
// that calls of the same size after the first allocate nothing; excess memory is freed within 15 calls.
#pragma once

#include <cstddef>

#include "lstm/backward_pass.h"
#include "lstm/forward_pass.h"
#include "lstm/layer_norm.h"
#include "lstm/pass.h"

namespace lstmfast {

template <typename T>
class Sequence {
 public:
  using Value = T;

  Sequence(bool reverse, const Cell<T>& cell) : reverse_(reverse), pass_(cell) {}
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;

  // How many values `saved` must have room for: gates and cells of every update, and h before a projection.
  static Index saved_size(Index updates, Index hidden_size, bool has_projection, LayerNorm norm);

  // The weights of all later calls. Does not read them: every forward checks whether its packed weights are current.
  void load(const SequenceWeights<T>& weights) { pass_.weights.load(weights); }
  const SequenceWeights<T>& weights() const { return pass_.weights.given(); }

  void forward(const SequenceForwardArgs<T>& args);
  // Continues for the sequence whose forward had these arguments and filled `saved`; bias,
  // h_n and c_n may be absent. Weights must have the values they had.
  void restore(const SequenceForwardArgs<T>& args);
  // Gradients of the last forward, which must have kept its values for backward, or of a restored one. The arrays given
  // to it must still exist unchanged.
  void backward(const SequenceBackwardArgs<T>& args);
  const SequenceForwardArgs<T>& last_call() const { return pass_.args; }

  // Frees all memory except packed weights and what a possible backward pass needs.
  void release_memory(bool backward_may_come);
  std::size_t size_bytes();

  // Whether the last pass made bf16x products, or its backward does.
  bool used_bf16x_products() const {
    return pass_.choice.path == Path::kBf16x || pass_.choice.path == Path::kInt16Bf16x;
  }

 private:
  void begin(const SequenceForwardArgs<T>& args);
  bool pack_weights();
  void use_multiply_adds();
  void release_rows();
  // Calls body for all memory that is free between calls.
  template <typename Body>
  void for_each_workspace(const Body& body) {
    norm_.for_each_workspace(body);
    forward_.for_each_workspace(body);
    backward_.for_each_workspace(body);
    pass_.weights.for_each_workspace(body);
  }

  const bool reverse_;
  Pass<T> pass_;
  LayerNormPass<T> norm_{pass_};
  ForwardPass<T> forward_{pass_, norm_};
  BackwardPass<T> backward_{pass_, norm_};
  RecentPeak recent_rows_;
};

}  // namespace lstmfast

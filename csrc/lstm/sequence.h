// One direction of one LSTM layer over a whole sequence: forward, and backward through time.
// Knows time, states and gradients; knows no ISA, no Python, no other layer. It owns all workspace and keeps it, so that
// calls of the same size after the first allocate nothing; what a larger call left is given back within 15 others.
#pragma once

#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "core/aligned_buffer.h"
#include "cpu/kernel_table.h"
#include "lstm/fingerprint.h"
#include "lstm/packed_weights.h"
#include "lstm/products.h"
#include "lstm/projection.h"
#include "lstm/sequence_args.h"
#include "lstm/sequence_plan.h"
#include "lstm/step_loop.h"

namespace lstmfast {

// Whether the input's product is made for many steps at once, before them, and not with the state's in every step.
// Made at once it reads its weights once for many steps and leaves the caches to the recurrent ones; made in the step it
// saves writing and reading the pre-activations. Batches below a register tile gain most, for they become whole tiles.
template <typename T>
bool hoisting_pays(const KernelTable<T>& k, Index steps, Index batch, Index input_size, Index hidden) {
  const Index kernel_bytes = (input_size + hidden) * kGateCount * hidden * Index{sizeof(T)};
  return input_size > 0 && steps > 1 && (kernel_bytes >= (Index{512} << 10) || batch < k.tile_rows);
}

// Up to this many rows in all, weights that serve one call are read where they lie. A training step of one row and 256 units
// takes 195 us instead of 560, of four rows 505 instead of 760; six rows are even.
constexpr Index kRowsUnpacked = 4;
// And up to this many, weights that others may write between two calls: looking at all of them costs as much as multiplying
// two rows with them. One row of 256 units takes 23 us, and 48 with a look and packed weights; four rows 91 and 59.
constexpr Index kRowsUnlooked = 2;

template <typename T>
class Sequence {
 public:
  using Value = T;

  Sequence(bool reverse, const Cell<T>& cell) : reverse_(reverse), cell_(cell) {}

  // How many values `saved` must have room for: gates and cells of every update, and h before a projection.
  static Index saved_size(Index updates, Index hidden_size, bool has_projection);

  // The weights of all calls from now on. Reads none of them: every forward looks whether it has packed what is there now.
  void load(const SequenceWeights<T>& weights);
  const SequenceWeights<T>& weights() const { return weights_; }

  void forward(const SequenceForwardArgs<T>& args);
  // Take the place of the sequence whose forward these arguments were given to. `saved` holds what that one left there; bias,
  // h_n and c_n may be absent. Weights must have the values they had.
  void restore(const SequenceForwardArgs<T>& args);
  // Gradients of the last forward, which must have kept what they need, or of a restored one. The arrays given to it must
  // still be there and unchanged.
  void backward(const SequenceBackwardArgs<T>& args);
  const SequenceForwardArgs<T>& last_call() const { return args_; }

  // Gives memory back: all but packed weights and, where a backward may come, what it needs.
  void release_memory(bool backward_may_come);
  std::size_t size_bytes();

  // Whether the last forward made its products split.
  bool used_split_products() const { return products_ != nullptr && products_ == split_.get(); }

 private:
  // Both passes return false where the products in use refuse a value; they are then run again with multiply-adds.
  bool run_forward();
  bool run_backward(const SequenceBackwardArgs<T>& args);

  // ---- forward
  void begin(const SequenceForwardArgs<T>& args);
  void choose_products();
  bool pack_weights();
  bool are_packed();
  const T* sum_of_biases();
  Fingerprint fingerprint_of_weights() const;
  void read_ids();
  void transpose_weights();
  void leave_out_forget_gate();
  bool hoists_input() const;
  void point_rows();
  bool multiply_inputs(Range updates, const Preactivations<T>& z);
  void finish_forward();

  // ---- backward: steps in groups, the last one first. The gradients of the gates are kept for one group only, in L2 if
  // they fit, and become weight and input gradients before the next.
  struct GateGradients {
    Index rows;  // that there is room for, the row of zeros apart
    Index block_stride;
    Range updates;  // of the group, from row 0 on; behind them lie those of the step after the group
  };
  void point_gradients(const SequenceBackwardArgs<T>& args);
  void begin_group(GateGradients& group, Range updates);
  bool step_through(const GateGradients& group, Range steps);
  bool variant_step_through(const GateGradients& group, Range steps);
  StepBackwardArgs<T> step_backward_args(const GateGradients& group) const;
  bool weight_gradients(const SequenceBackwardArgs<T>& args, const GateGradients& group, bool add);
  bool projection_gradients(const SequenceBackwardArgs<T>& args, const GateGradients& group, bool add);
  bool input_gradients(const SequenceBackwardArgs<T>& args, const GateGradients& group);
  void transpose_gradients(const SequenceBackwardArgs<T>& args) const;
  bool initial_state_gradients(const SequenceBackwardArgs<T>& args, const GateGradients& first_group);
  bool multiply_transposed(typename Products<T>::Kernel kernel, const ProductArgs<T>& args, Index rows);

  Division division(double multiply_adds_per_step) const;

  // Body for all memory that is free between any two calls, and for all that a backward needs of its forward.
  template <typename Body>
  void for_each_workspace(const Body& body) {
    for (auto* buffer : {&d_kernel_, &d_projection_kernel_, &d_gates_, &d_c_, &z_, &d_h_total_, &d_m_, &d_h_panels_, &bias_})
      body(*buffer);
    body(starting_values_);
  }
  template <typename Body>
  void for_each_kept(const Body& body) {
    for (auto* buffer : {&kernel_, &projection_kernel_, &without_forget_gate_, &saved_, &zeros_}) body(*buffer);
  }
  void release_rows();

  bool has_input_product() const { return !args_.ids && weights_.input_size > 0; }
  Index gate_width() const { return kGateCount * k_->vector_length; }
  double multiply_adds(Index rows, Index depth) const {
    return static_cast<double>(rows) * static_cast<double>(depth) * static_cast<double>(kGateCount * weights_.hidden_size);
  }
  double projecting_adds(Index rows) const {
    return weights_.projection ? static_cast<double>(rows * weights_.hidden_size * weights_.output_size) : 0.0;
  }
  const CellVariant<T>& variant() const { return cell_.variant; }
  bool has_hooks() const {
    return variant().peepholes || variant().coupled_gates || variant().cell_clip <= std::numeric_limits<T>::max();
  }
  bool is_plain() const { return !has_hooks() && !weights_.projection; }
  // Whether the products in use take transposed weights as they lie, and whether they leave such gradients.
  bool reads_transposed() const {
    return weights_.transposed && products_->takes_transposed() && !variant().coupled_gates;
  }
  bool writes_transposed() const { return weights_.transposed && products_ == unpacked_.get(); }
  // The kernel as the products see it. `rows` of the input's part: 0 where there is no product with it.
  KernelPart<T> input_kernel(Index rows) const {
    if (reads_transposed()) return {weights_.transposed.input, rows, true};
    return {variant().coupled_gates && has_input_product() ? kernel_without_forget_gate() : weights_.kernel, rows};
  }
  KernelPart<T> recurrent_kernel() const {
    if (reads_transposed()) return {weights_.transposed.recurrent, weights_.output_size, true};
    const MatrixView<const T> kernel = variant().coupled_gates ? kernel_without_forget_gate() : weights_.kernel;
    return {{kernel.row(variant().coupled_gates ? input_rows() : weights_.input_size), kernel.stride}, weights_.output_size};
  }
  MatrixView<const T> kernel_without_forget_gate() const {
    return {without_forget_gate_.data(), kGateCount * weights_.hidden_size};
  }
  Index input_rows() const { return has_input_product() ? weights_.input_size : 0; }  // that are multiplied by x

  const bool reverse_;
  Cell<T> cell_;
  SequenceWeights<T> weights_{};
  SequenceForwardArgs<T> args_{};
  const KernelTable<T>* k_ = nullptr;
  SequencePlan plan_;
  std::unique_ptr<Products<T>> fma_, unpacked_, split_;
  const KernelTable<T>* made_for_ = nullptr;  // the kernels that they use
  MatmulPrecision split_precision_ = MatmulPrecision::kHighest;
  Products<T>* products_ = nullptr;      // the one of the three in use
  // What the products in `packed_.by` hold. Biases are packed for every call.
  struct Packed {
    const Products<T>* by = nullptr;  // null: nothing
    Index input_rows = 0, hidden = 0, output = 0;
    bool transposed = false, projected = false;
    std::optional<Fingerprint> fingerprint;  // unknown where that call did not look

    bool is_of(const Packed& other) const {
      return by == other.by && input_rows == other.input_rows && hidden == other.hidden && output == other.output &&
             transposed == other.transposed && projected == other.projected;
    }
  };
  Packed packed_;
  bool has_seen_weights_ = false;        // whether packed_ was of the weights when they were looked at after `load`
  Index steps_before_ = 0;               // of all forward passes
  StartingValues<T> starting_values_;
  Projection<T> projection_;
  AlignedBuffer<T> kernel_, projection_kernel_;      // of transposed weights
  AlignedBuffer<T> d_kernel_, d_projection_kernel_;  // before they are transposed
  AlignedBuffer<T> bias_;                             // the sum of two
  AlignedBuffer<T> without_forget_gate_;  // the kernel with zeros in the columns that coupled gates do not read
  AlignedBuffer<T> saved_, d_gates_, d_c_, zeros_;
  T* gates_ = nullptr;  // in args_.saved or saved_, as are the next two
  T* cells_ = nullptr;
  T* m_ = nullptr;      // h before its projection
  AlignedBuffer<T> z_;                                               // pre-activations of a group of steps
  AlignedBuffer<T> d_h_total_, d_m_, d_h_panels_;
  std::vector<T*> m_rows_, d_h_total_rows_, d_m_rows_;               // [updates]
  std::vector<const T*> nothing_;                                    // [updates] zeros_
  std::vector<int> ids_;                                             // [updates]
  std::vector<const T*> init_, z_rows_, x_, h_prev_, c_prev_;        // [updates]
  std::vector<const T*> d_h_, d_h_extra_, d_c_in_, d_gates_next_, d_gates_rows_;  // [updates]
  std::vector<T*> h_, c_, d_c_out_, out_;                            // [updates]
  RecentPeak recent_rows_;
};

}  // namespace lstmfast

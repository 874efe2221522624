// One direction of one LSTM layer over a whole sequence: forward, and backward through time.
// Knows time, states and gradients; knows no ISA, no Python, no other layer. It owns all workspace and keeps it, so that
// calls of the same size after the first allocate nothing.
#pragma once

#include <memory>
#include <vector>

#include "core/aligned_buffer.h"
#include "core/precision.h"
#include "core/views.h"
#include "cpu/kernel_table.h"
#include "cpu/parallel.h"
#include "lstm/packed_weights.h"
#include "lstm/products.h"
#include "lstm/sequence_plan.h"

namespace lstmfast {

// Shapes: T = time_steps, B = batch, I = input_size (the vocabulary where ids are given), H = hidden_size.
template <typename T>
struct SequenceForwardArgs {
  Index time_steps, batch, input_size, hidden_size;
  SequenceView<const T> x;         // [T, B, I]; or
  SequenceView<const int> ids;     // [T, B]: each a row of the input kernel
  MatrixView<const T> kernel;      // [I + H, 4H]
  const T* bias;                   // [4H]
  T forget_bias;
  MatrixView<const T> h0, c0;      // [B, H]; absent: zero
  const Index* lengths;            // [B] or null
  const bool* resets;              // [T, B] or null
  bool reverse;
  SequenceView<T> h;               // [T, B, H]
  MatrixView<T> h_n, c_n;          // [B, H]
  SequenceView<T> cells;           // [T, B, H] or absent
  SequenceView<T> gates;           // [T, B, 4H] or absent
  bool keep_for_backward;
  MatmulPrecision precision;
  bool same_weights;  // the caller's word that kernel, bias and forget_bias are those of the last forward
};

// What is absent is zero (d_h, d_h_n, d_c_n) or not wanted (the others). Outputs are overwritten.
template <typename T>
struct SequenceBackwardArgs {
  SequenceView<const T> d_h;
  MatrixView<const T> d_h_n, d_c_n;
  SequenceView<T> d_x;
  MatrixView<T> d_kernel;
  T* d_bias;
  MatrixView<T> d_h0, d_c0;
};

// Whether the input's product is made for many steps at once, before them, and not with the state's in every step.
// Made at once it reads its weights once for many steps and leaves the caches to the recurrent ones; made in the step it
// saves writing and reading the pre-activations. Batches below a register tile gain most, for they become whole tiles.
template <typename T>
bool hoisting_pays(const KernelTable<T>& k, Index steps, Index batch, Index input_size, Index hidden) {
  const Index kernel_bytes = (input_size + hidden) * kGateCount * hidden * Index{sizeof(T)};
  return input_size > 0 && steps > 1 && (kernel_bytes >= (Index{512} << 10) || batch < k.tile_rows);
}

template <typename T>
class Sequence {
 public:
  void forward(const SequenceForwardArgs<T>& args);
  // Gradients of the last forward, which must have kept what they need. The arrays given to it must still be there and
  // unchanged.
  void backward(const SequenceBackwardArgs<T>& args);

  // Whether the last forward made its products split.
  bool used_split_products() const { return products_ != nullptr && products_ == split_.get(); }

 private:
  // Both passes return false where the products in use refuse a value; they are then run again with multiply-adds.
  bool run_forward();
  bool run_backward(const SequenceBackwardArgs<T>& args);

  // ---- forward
  void choose_products();
  bool pack_weights(bool same_weights);
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
  bool weight_gradients(const SequenceBackwardArgs<T>& args, const GateGradients& group, bool add);
  bool input_gradients(const SequenceBackwardArgs<T>& args, const GateGradients& group);
  bool initial_state_gradients(const SequenceBackwardArgs<T>& args, const GateGradients& first_group);
  bool multiply_transposed(typename Products<T>::Kernel kernel, const ProductArgs<T>& args, Index rows);

  // How a step is divided: batch rows dealt to threads need no waiting; few rows of a large layer are divided by units,
  // with a barrier at every step.
  struct Division {
    int threads;
    bool by_units;
  };
  Division division(double multiply_adds_per_step) const;
  // body(step, updates, blocks, part) for all of these steps in `order`: the row updates and the blocks of units that one
  // thread has to do.
  enum class Order { kForward, kBackward };
  template <typename Body>
  void for_each_step(Order order, Range steps, double multiply_adds_per_step, Index blocks, const Body& body) const;

  bool has_input_product() const { return !args_.ids && args_.input_size > 0; }
  Index gate_width() const { return kGateCount * k_->vector_length; }
  double multiply_adds(Index rows, Index depth) const {
    return static_cast<double>(rows) * static_cast<double>(depth) * static_cast<double>(kGateCount * args_.hidden_size);
  }
  MatrixView<const T> recurrent_kernel() const { return {args_.kernel.row(args_.input_size), args_.kernel.stride}; }

  SequenceForwardArgs<T> args_{};
  const KernelTable<T>* k_ = nullptr;
  SequencePlan plan_;
  std::unique_ptr<Products<T>> fma_, unpacked_, split_;
  const KernelTable<T>* made_for_ = nullptr;  // the kernels that they use
  MatmulPrecision split_precision_ = MatmulPrecision::kHighest;
  Products<T>* products_ = nullptr;      // the one of the three in use
  const Products<T>* packed_ = nullptr;  // the one that holds the weights of the last forward
  Index steps_before_ = 0;               // of all forward passes
  StartingValues<T> starting_values_;
  AlignedBuffer<T> cells_, gates_, d_gates_, d_c_, zeros_;
  AlignedBuffer<T> z_;                                               // pre-activations of a group of steps
  std::vector<int> ids_;                                             // [updates]
  std::vector<const T*> init_, z_rows_, x_, h_prev_, c_prev_;        // [updates]
  std::vector<const T*> d_h_, d_h_extra_, d_c_in_, d_gates_next_, d_gates_rows_;  // [updates]
  std::vector<T*> h_, c_, d_c_out_, out_;                            // [updates]
};

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
      body(step, plan_.updates_of(step, batch_begin, batch_end), my_blocks, part);
      if (how.by_units) barrier.wait(parts);
    }
  });
}

}  // namespace lstmfast

// One direction of one LSTM layer over a whole sequence: forward, and backward through time.
// Knows time, states and gradients; knows no ISA, no Python, no other layer. It owns all workspace and keeps it, so that
// calls of the same size after the first allocate nothing.
#pragma once

#include <vector>

#include "core/aligned_buffer.h"
#include "core/views.h"
#include "cpu/kernel_table.h"
#include "lstm/packed_weights.h"
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

template <typename T>
class Sequence {
 public:
  void forward(const SequenceForwardArgs<T>& args);
  // Gradients of the last forward, which must have kept what they need. The arrays given to it must still be there and
  // unchanged.
  void backward(const SequenceBackwardArgs<T>& args);

 private:
  void point_rows();
  void finish_forward();
  bool hoists_input() const;
  void run_forward();
  void multiply_inputs(Range updates, T* z, Index z_block_stride) const;
  void run_backward(const SequenceBackwardArgs<T>& args, T* d_c);
  void weight_gradients(const SequenceBackwardArgs<T>& args);
  void input_gradients(const SequenceBackwardArgs<T>& args);
  void initial_state_gradients(const SequenceBackwardArgs<T>& args, const T* d_c);

  // How a step is divided: batch rows dealt to threads need no waiting; few rows of a large layer are divided by units,
  // with a barrier at every step.
  struct Division {
    int threads;
    bool by_units;
  };
  Division division(double multiply_adds_per_step) const;
  // body(updates, blocks) for every one of these steps in `order`: the row updates and the blocks of units that one thread
  // has to do.
  enum class Order { kForward, kBackward };
  template <typename Body>
  void for_each_step(Order order, Range steps, double multiply_adds_per_step, Index blocks, const Body& body) const;

  // d_gates has one row more than there are updates: zeros, for rows that no later step follows.
  Index d_gates_block_stride() const { return (plan_.rows() + 1) * PanelSizes<T>(*k_).gate_width(); }

  SequenceForwardArgs<T> args_{};
  const KernelTable<T>* k_ = nullptr;
  SequencePlan plan_;
  PackedGates<T> input_weights_, recurrent_weights_, transposed_weights_;
  StartingValues<T> starting_values_;
  AlignedBuffer<T> cells_, gates_, d_gates_, d_c_, zeros_;
  AlignedBuffer<T> z_;                                     // the input's part of some steps' pre-activations
  std::vector<int> ids_;                                   // [updates]
  std::vector<const T*> init_, x_, h_prev_, c_prev_, d_h_, d_h_extra_, d_c_in_, d_gates_next_,
      d_gates_rows_;                        // [updates]
  std::vector<T*> h_, c_, d_c_out_, out_;  // [updates]
};

}  // namespace lstmfast

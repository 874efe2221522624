// What a Sequence is given: what to compute, weights, and the arrays of one pass. Views of memory that somebody else owns.
#pragma once

#include "core/precision.h"
#include "core/views.h"
#include "cpu/kernel_table.h"

namespace lstmfast {

// Weights as PyTorch, ONNX and cuDNN have them: each a row for every column of ours.
template <typename T>
struct TransposedWeights {
  MatrixView<T> input, recurrent;  // [4H, I], [4H, P]
  MatrixView<T> projection;        // [P, H] or absent

  explicit operator bool() const { return static_cast<bool>(recurrent); }
};

// In what follows: T = time_steps, B = batch, I = input_size (the vocabulary where ids are given), H = hidden_size.
// P = output_size is what a projection makes of H, and H where there is none.

// What is computed, but for what the weights say.
template <typename T>
struct Cell {
  T forget_bias;
  CellVariant<T> variant;  // its peepholes are those of the weights
};

template <typename T>
struct SequenceWeights {
  Index input_size, hidden_size, output_size;
  MatrixView<const T> kernel;            // [I + P, 4H]; or
  TransposedWeights<const T> transposed;  // these, in place of kernel and projection, where x is given
  const T *bias, *second_bias;           // [4H]; the second is added to the first, or null
  const T* peepholes;                    // [3, H] or null
  MatrixView<const T> projection;        // [H, P] or absent
  bool are_frozen;       // the caller's promise that nobody writes to them: spares all looks but the first
  WeightFormat format;  // in which products keep them; kInt8 for float32 alone
  bool serve_one_call;  // that no other call will have them; of calls that backward follows it is taken for granted

  bool has_projection() const { return projection || transposed.projection; }
};

template <typename T>
struct SequenceForwardArgs {
  Index time_steps, batch;
  SequenceView<const T> x;         // [T, B, I]; or
  SequenceView<const int> ids;     // [T, B]: each a row of the input kernel
  MatrixView<const T> h0, c0;      // [B, P], [B, H]; absent: zero
  const Index* lengths;            // [B] or null
  const bool* resets;              // [T, B] or null
  SequenceView<T> h;               // [T, B, P]
  MatrixView<T> h_n, c_n;          // [B, P], [B, H]
  SequenceView<T> cells;           // [T, B, H] or absent
  SequenceView<T> gates;           // [T, B, 4H] or absent
  bool keep_for_backward;
  T* saved;  // [saved_size()]: what backward needs is left here, to be given to `restore`; null: in the sequence's own memory
  MatmulPrecision precision;
};

// What is absent is zero (d_h, d_h_n, d_c_n) or not wanted (the others). Outputs are overwritten.
template <typename T>
struct SequenceBackwardArgs {
  SequenceView<const T> d_h;
  MatrixView<const T> d_h_n, d_c_n;
  SequenceView<T> d_x;
  MatrixView<T> d_kernel;  // or, if weights were transposed,
  TransposedWeights<T> d_transposed;
  T* d_bias;
  MatrixView<T> d_h0, d_c0;
  T* d_peepholes;
  MatrixView<T> d_projection;
};

}  // namespace lstmfast

// What a Sequence is given: what to compute, weights, and the arrays of one pass. Views of memory that the caller owns.
#pragma once

#include "core/precision.h"
#include "core/views.h"
#include "cpu/kernel_table.h"

namespace lstmfast {

// Weights as PyTorch, ONNX and cuDNN have them: one row for each of our columns.
template <typename T>
struct TransposedWeights {
  MatrixView<T> input, recurrent;  // [4H, I], [4H, P]
  MatrixView<T> projection;        // [P, H] or absent

  explicit operator bool() const { return static_cast<bool>(recurrent); }
};

// In what follows: T = time_steps, B = batch, I = input_size (the vocabulary if ids are given), H = hidden_size.
// P = output_size: the size of the projection, or H without one.

enum class LayerNorm { kNone, kProducts, kGates };  // of the two products, or of each gate of their sum

// What is computed, apart from the weights. Rates of masks are 0 if there is none.
template <typename T>
struct Cell {
  T forget_bias;
  CellVariant<T> variant;  // its peepholes are those of the weights
  double recurrent_dropout, zoneout_of_h, zoneout_of_c, weight_dropout;
  bool drops_candidate;  // recurrent dropout is of g, not of h
  bool drops_per_step;   // with a mask for each step, not one for all of a row
  LayerNorm layer_norm;
  T layer_norm_epsilon;
  bool carries_norm;  // the next step reads the normalised c
};

// Where the random numbers of a training call come from.
struct Noise {
  bool is_on = false;  // off: inference
  unsigned long long seed = 0;
  unsigned layer = 0;       // number of this layer and direction
  unsigned first_step = 0;  // number of the time step 0
};

template <typename T>
struct SequenceWeights {
  Index input_size, hidden_size, output_size;
  MatrixView<const T> kernel;            // [I + P, 4H]; or
  TransposedWeights<const T> transposed;  // instead of kernel and projection, if x is given
  const T *bias, *second_bias;           // [4H]; the second is added to the first, or null
  const T* peepholes;                    // [3, H] or null
  MatrixView<const T> projection;        // [H, P] or absent
  const T *norm_gain, *cell_gain, *cell_shift;  // [2, 4H] or [1, 4H], and [H]; null without layer normalisation
  const T *initial_h, *initial_c;               // [P], [H]; null: zero
  bool are_frozen;       // the caller's promise that they do not change: only the first call compares
  bool serve_one_call;   // no other call will use them; assumed for calls with a backward pass
  WeightFormat format;   // in which products may keep them, if T is float

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
  T* saved;  // [saved_size()]: values for backward, to pass to `restore`; null: kept in the sequence's own memory
  MatmulPrecision precision;
  Noise noise;
};

// Absent ones are zero (d_h, d_h_n, d_c_n) or not wanted (the others). Outputs are overwritten.
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
  T *d_norm_gain, *d_cell_gain, *d_cell_shift;
  T *d_initial_h, *d_initial_c;  // both or none
};

}  // namespace lstmfast

// One cell of an LSTM on a GPU, forward and backward: what a thread computes for a (row, unit) from the recurrent
// product. Every kernel begins and ends with these functions; `reference._cell` and `_cell_backward` are the same in
// NumPy. Knows lengths, resets and direction; knows nothing of products, blocks or the exchange of h.
#pragma once

#include "core/gates.h"
#include "cuda/portable.cuh"

namespace lstmfast::cuda {

using bfloat16 = __nv_bfloat16;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bfloat16 x) { return __bfloat162float(x); }
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>  // rounds to nearest even; every NaN becomes 0x7fff
__device__ __forceinline__ bfloat16 from_float<bfloat16>(float x) { return __float2bfloat16(x); }

// A value as passed to other blocks: every NaN is the same one, and never all ones, which mean "not published yet".
__device__ __forceinline__ float handed_on(float x) {
  const uint32_t bits = __float_as_uint(x);
  return __uint_as_float((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffffffu : bits);
}
__device__ __forceinline__ bfloat16 handed_on(bfloat16 x) { return from_float<bfloat16>(to_float(x)); }

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

__device__ __forceinline__ float dot(const float4& a, const float4& b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

__device__ __forceinline__ uint32_t pack_pair(bfloat16 low, bfloat16 high) {
  return static_cast<uint32_t>(__bfloat16_as_ushort(low)) | static_cast<uint32_t>(__bfloat16_as_ushort(high)) << 16;
}

// The arguments of every kernel of a direction. Arrays as in lstmfast_cuda.h.
struct Problem {
  int time_steps, batch, hidden;
  int reverse;
  const int32_t* lengths;
  const uint8_t* resets;
};

struct ForwardArrays {
  const void* z;
  int z_is_bfloat16;
  const float* c0;
  void *h, *h_n;
  float *c_n, *gates, *cells;
};

struct BackwardArrays {
  const float *c0, *gates, *cells;
  const void *d_h, *d_h_n;
  const float* d_c_n;
  void *d_z, *d_h0;
  float* d_c0;
};

__device__ __forceinline__ size_t step_row(const Problem& p, int t, int row) {
  return static_cast<size_t>(t) * p.batch + row;
}

// What is known of a cell's step before its product.
struct StepKind {
  bool exists;        // row and unit are within the problem; the rest of a tile is padding
  bool useful;        // the step is within the row's length
  bool starts_anew;   // the state is zeroed before it
};

__device__ __forceinline__ StepKind step_kind(const Problem& p, int t, int row, int unit) {
  StepKind kind = {row < p.batch + LSTMFAST_PLANTED(kRowBound) && unit < p.hidden + LSTMFAST_PLANTED(kUnitBound), false,
                   false};
  if (!kind.exists) return kind;
  kind.useful = p.lengths == nullptr || t < p.lengths[row] + LSTMFAST_PLANTED(kLengthBound);
  kind.starts_anew = p.resets != nullptr && p.resets[step_row(p, t, row)] != 0;
  return kind;
}

// --- forward ---------------------------------------------------------------------------------------------------------

struct ForwardInput {
  StepKind kind;
  float z[kGateCount];
};

__device__ __forceinline__ ForwardInput load_forward_input(const Problem& p, const ForwardArrays& a, int t, int row,
                                                           int unit) {
  ForwardInput in = {step_kind(p, t, row, unit), {0.0f, 0.0f, 0.0f, 0.0f}};
  if (!in.kind.useful) return in;
  const size_t first = step_row(p, t, row) * kGateCount * p.hidden + unit;
#pragma unroll
  for (int gate = 0; gate < kGateCount; ++gate) {
    const size_t at = first + static_cast<size_t>(gate) * p.hidden;
    in.z[gate] = a.z_is_bfloat16 ? to_float(static_cast<const bfloat16*>(a.z)[at]) : static_cast<const float*>(a.z)[at];
  }
  return in;
}

// The state of a cell before its first step.
__device__ __forceinline__ float initial_c(const Problem& p, const float* c0, int row, int unit) {
  return c0 != nullptr && row < p.batch && unit < p.hidden ? c0[static_cast<size_t>(row) * p.hidden + unit] : 0.0f;
}

// One step: the next state from the recurrent product and the state (c, h). Writes everything kept of the step.
template <class T>
__device__ __forceinline__ void advance_cell(const Problem& p, const ForwardArrays& a, int t, int row, int unit,
                                             const ForwardInput& in, const float (&product)[kGateCount], float& c, T& h) {
  if (!in.kind.exists) return;
  float activated[kGateCount] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (in.kind.useful) {
    float z[kGateCount];
#pragma unroll
    for (int gate = 0; gate < kGateCount; ++gate)
      z[gate] = in.z[gate] + (in.kind.starts_anew ? 0.0f : product[gate]);  // not 0·product: it may be NaN
    const float i = sigmoid(z[kInputGate]), f = sigmoid(z[kForgetGate]);
    const float g = tanhf(z[kCellGate]), o = sigmoid(z[kOutputGate]);
    c = fmaf(f, in.kind.starts_anew ? 0.0f : c, i * g);
    h = from_float<T>(o * tanhf(c));
    activated[kInputGate] = i;
    activated[kForgetGate] = f;
    activated[kCellGate] = g;
    activated[kOutputGate] = o;
  }
  const size_t cell = step_row(p, t, row) * p.hidden + unit;
  static_cast<T*>(a.h)[cell] = in.kind.useful ? h : from_float<T>(0.0f);
  if (a.cells != nullptr) a.cells[cell] = in.kind.useful ? c : 0.0f;
  if (a.gates != nullptr) {
    float* gates = a.gates + step_row(p, t, row) * kGateCount * p.hidden + unit;
#pragma unroll
    for (int gate = 0; gate < kGateCount; ++gate) gates[static_cast<size_t>(gate) * p.hidden] = activated[gate];
  }
}

template <class T>
__device__ __forceinline__ void store_last_state(const Problem& p, const ForwardArrays& a, int row, int unit, float c,
                                                 T h) {
  if (row >= p.batch || unit >= p.hidden) return;
  const size_t cell = static_cast<size_t>(row) * p.hidden + unit;
  a.c_n[cell] = c;
  static_cast<T*>(a.h_n)[cell] = h;
}

// --- backward --------------------------------------------------------------------------------------------------------

struct BackwardInput {
  StepKind kind;
  float gates[kGateCount];
  float c, c_prev, d_h;
};

template <class T>
__device__ __forceinline__ BackwardInput load_backward_input(const Problem& p, const BackwardArrays& a, int t, int row,
                                                             int unit) {
  BackwardInput in = {step_kind(p, t, row, unit), {0.0f, 0.0f, 0.0f, 0.0f}, 0.0f, 0.0f, 0.0f};
  if (!in.kind.useful) return in;
  const size_t cell = step_row(p, t, row) * p.hidden + unit;
  const float* gates = a.gates + step_row(p, t, row) * kGateCount * p.hidden + unit;
#pragma unroll
  for (int gate = 0; gate < kGateCount; ++gate) in.gates[gate] = gates[static_cast<size_t>(gate) * p.hidden];
  in.c = a.cells[cell];
  if (a.d_h != nullptr) in.d_h = to_float(static_cast<const T*>(a.d_h)[cell]);
  if (in.kind.starts_anew) return in;
  const int first_of_row = !p.reverse ? 0 : (p.lengths != nullptr ? p.lengths[row] : p.time_steps) - 1;
  if (t == first_of_row)
    in.c_prev = initial_c(p, a.c0, row, unit);
  else
    in.c_prev = a.cells[step_row(p, p.reverse ? t + 1 : t - 1, row) * p.hidden + unit];
  return in;
}

// What flows back through a cell: gradients of its state before the last step processed, and the kind of that step, to
// which the next product of gate gradients belongs.
struct BackwardState {
  float d_h, d_c;
  bool product_counts;  // the step was useful: its product replaces d_h
  bool product_is_cut;  // it began from a reset: nothing flows past it
};

__device__ __forceinline__ void take_product(BackwardState& state, float product) {
  if (state.product_counts) state.d_h = state.product_is_cut ? 0.0f : product;
}

template <class T>
__device__ __forceinline__ BackwardState last_gradients(const Problem& p, const BackwardArrays& a, int row, int unit) {
  BackwardState state = {0.0f, 0.0f, false, false};
  if (row >= p.batch || unit >= p.hidden) return state;
  const size_t cell = static_cast<size_t>(row) * p.hidden + unit;
  if (a.d_h_n != nullptr) state.d_h = to_float(static_cast<const T*>(a.d_h_n)[cell]);
  if (a.d_c_n != nullptr) state.d_c = a.d_c_n[cell];
  return state;
}

// One step back: gradients of the four gates' sums, in both stored forms; moves the state past the step.
template <class T>
__device__ __forceinline__ void retreat_cell(const Problem& p, const BackwardArrays& a, int t, int row, int unit,
                                             const BackwardInput& in, BackwardState& state, T (&d_z)[kGateCount]) {
#pragma unroll
  for (int gate = 0; gate < kGateCount; ++gate) d_z[gate] = from_float<T>(0.0f);
  if (!in.kind.exists) return;
  state.product_counts = in.kind.useful;
  state.product_is_cut = in.kind.starts_anew;
  if (in.kind.useful) {
    const float i = in.gates[kInputGate], f = in.gates[kForgetGate], g = in.gates[kCellGate], o = in.gates[kOutputGate];
    const float tanh_c = tanhf(in.c), d_h = in.d_h + state.d_h;
    const float d_c = fmaf(d_h * o, 1.0f - tanh_c * tanh_c, state.d_c);
    d_z[kInputGate] = from_float<T>(d_c * g * i * (1.0f - i));
    d_z[kForgetGate] = from_float<T>(d_c * in.c_prev * f * (1.0f - f));
    d_z[kCellGate] = from_float<T>(d_c * i * (1.0f - g * g));
    d_z[kOutputGate] = from_float<T>(d_h * tanh_c * o * (1.0f - o));
    state.d_c = in.kind.starts_anew ? 0.0f : d_c * f;
  }
  T* out = static_cast<T*>(a.d_z) + step_row(p, t, row) * kGateCount * p.hidden + unit;
#pragma unroll
  for (int gate = 0; gate < kGateCount; ++gate) out[static_cast<size_t>(gate) * p.hidden] = d_z[gate];
}

template <class T>
__device__ __forceinline__ void store_first_gradients(const Problem& p, const BackwardArrays& a, int row, int unit,
                                                      const BackwardState& state) {
  if (row >= p.batch || unit >= p.hidden) return;
  const size_t cell = static_cast<size_t>(row) * p.hidden + unit;
  static_cast<T*>(a.d_h0)[cell] = from_float<T>(state.d_h);
  a.d_c0[cell] = state.d_c;
}

}  // namespace lstmfast::cuda

// The fused LSTM step: one register tile of [x, h]·kernel, then the gate split while it is still in registers; and the
// same step backward: one register tile of d_gates·recurrent_kernelᵀ, then the derivatives of the gates.
// Equations: Hochreiter & Schmidhuber 1997; Gers, Schmidhuber & Cummins 2000. `reference.py` is the same in NumPy.
#pragma once

#include "cpu/kernels/activations-inl.h"
#include "cpu/kernels/tile-inl.h"

namespace lstmfast {
namespace {

// From the pre-activations of one vector of units to its gates and c; returns o. The four come in registers; one copy of
// this code serves every tile shape, which keeps it in the instruction cache (and the build short).
template <typename T>
LSTMFAST_NOINLINE Vec<T> finish_gates(Vec<T> z_i, Vec<T> z_f, Vec<T> z_g, Vec<T> z_o, const T* c_prev, T* c_out,
                                      T* gates, Index lanes) {
  constexpr Index V = kLanes<T>;
  Vectors<T, kGateCount> z{{z_i, z_f, z_g, z_o}};
  activate_gates(z);
  const Vec<T> i = z.at[kInputGate], f = z.at[kForgetGate], g = z.at[kCellGate], o = z.at[kOutputGate];
  store_partial(c_out, fused_multiply_add(f, load_partial(c_prev, lanes), i * g), lanes);
  if (gates) {
    store(gates + kInputGate * V, i);
    store(gates + kForgetGate * V, f);
    store(gates + kCellGate * V, g);
    store(gates + kOutputGate * V, o);
  }
  return o;
}

template <typename T>
struct ForwardTiles {
  const StepForwardArgs<T>& args;
  Index block;

  template <int R>
  LSTMFAST_INLINE void start(Tile<T, R, kGateCount>& z, Index row) const {
    for (int r = 0; r < R; ++r) {
      const T* init = args.init[row + r] + block * args.init_block_stride;
      for (int gate = 0; gate < kGateCount; ++gate) z.at[r][gate] = load(init + gate * kLanes<T>);
    }
  }

  template <int R>
  LSTMFAST_INLINE void finish(const Tile<T, R, kGateCount>& z, Index row) const {
    constexpr Index V = kLanes<T>, W = kGateCount * V;
    const Index unit = block * V, lanes = args.hidden_size - unit;
    Vectors<T, R> o, tanh_c;
    for (int r = 0; r < R; ++r) {
      T* gates = args.gates ? args.gates + block * args.gate_block_stride + (row + r) * W : nullptr;
      o.at[r] = finish_gates<T>(z.at[r][kInputGate], z.at[r][kForgetGate], z.at[r][kCellGate], z.at[r][kOutputGate],
                                args.c_prev[row + r] + unit, args.c[row + r] + unit, gates, lanes);
    }
    for (int r = 0; r < R; ++r) tanh_c.at[r] = load_partial<T>(args.c[row + r] + unit, lanes);
    vector_tanh(tanh_c);
    for (int r = 0; r < R; ++r) store_partial(args.h[row + r] + unit, o.at[r] * tanh_c.at[r], lanes);
  }
};

template <typename T>
void step_forward(const StepForwardArgs<T>& args) {
  // Gate blocks outside, rows inside: a block's weights stay in L1 or L2 while all rows pass over them.
  constexpr Index W = kGateCount * kLanes<T>;
  const Index inputs = args.input_size, hidden = args.hidden_size;
  for (Index block = args.block_begin; block < args.block_end; ++block) {
    const Operand<T> h{args.h_prev, 1, hidden, 0, args.recurrent_panels + block * hidden * W, nullptr};
    const ForwardTiles<T> tiles{args, block};
    if (inputs > 0) {
      const Operand<T> x{args.x, 1, inputs, 0, args.input_panels + block * inputs * W, nullptr};
      const Operand<T> both[] = {x, h};
      multiply_rows<T, kGateCount>(args.row_begin, args.row_end, both, tiles);
    } else {
      const Operand<T> only[] = {h};
      multiply_rows<T, kGateCount>(args.row_begin, args.row_end, only, tiles);
    }
  }
}

template <typename T, int N>
struct BackwardTiles {
  const StepBackwardArgs<T>& args;
  Index panel;

  template <int R>
  LSTMFAST_INLINE void start(Tile<T, R, N>& d_h, Index) const {
    d_h.clear();
  }

  template <int R>
  LSTMFAST_INLINE void finish(const Tile<T, R, N>& d_h, Index row) const {
    for (int r = 0; r < R; ++r) {
      Vectors<T, N> d_h_of_row;
      for (int n = 0; n < N; ++n) d_h_of_row.at[n] = d_h.at[r][n];
      derive(d_h_of_row, row + r);
    }
  }

  // The units of one row of the panel, from the gradient that came back through the next step.
  LSTMFAST_NOINLINE void derive(Vectors<T, N> d_h_next, Index row) const {
    constexpr Index V = kLanes<T>, W = kGateCount * V;
    const Index first_block = panel * kPanelVectors;
    const Index first_unit = first_block * V, units = args.hidden_size - first_unit;
    const T *c = args.c[row] + first_unit, *c_prev = args.c_prev[row] + first_unit;
    const T *d_h_out = args.d_h[row] + first_unit, *d_h_extra = args.d_h_extra[row] + first_unit;
    const T* d_c_next = args.d_c[row] + first_unit;
    T* d_c_prev = args.d_c_prev[row] + first_unit;
    Vectors<T, N> tanh_c;
    for (int n = 0; n < N; ++n) tanh_c.at[n] = load_partial<T>(c + n * V, units - n * V);
    vector_tanh(tanh_c);
    for (int n = 0; n < N; ++n) {
      const Index at = n * V, lanes = units - at;
      const T* gates = args.gates + (first_block + n) * args.gate_block_stride + row * W;
      const Vec<T> i = load(gates + kInputGate * V), f = load(gates + kForgetGate * V);
      const Vec<T> g = load(gates + kCellGate * V), o = load(gates + kOutputGate * V);
      const Vec<T> t = tanh_c.at[n];
      const Vec<T> d_h = d_h_next.at[n] + load_partial(d_h_out + at, lanes) + load_partial(d_h_extra + at, lanes);
      const Vec<T> d_c = fused_multiply_add(d_h * o, T(1) - t * t, load_partial(d_c_next + at, lanes));
      T* d_gates = args.d_gates + (first_block + n) * args.d_gate_block_stride + row * W;
      store(d_gates + kInputGate * V, d_c * g * (i * (T(1) - i)));
      store(d_gates + kForgetGate * V, d_c * load_partial(c_prev + at, lanes) * (f * (T(1) - f)));
      store(d_gates + kCellGate * V, d_c * i * (T(1) - g * g));
      store(d_gates + kOutputGate * V, d_h * t * (o * (T(1) - o)));
      store_partial(d_c_prev + at, d_c * f, lanes);
    }
  }
};

template <typename T>
struct BackwardPanel {
  const StepBackwardArgs<T>& args;
  Index panel;

  template <int N>
  LSTMFAST_INLINE void run() const {
    constexpr Index W = kGateCount * kLanes<T>;
    const Index blocks = ceil_div(args.hidden_size, kLanes<T>);
    const Operand<T> d_gates_next[] = {{args.d_gates_next, blocks, W, args.d_gate_block_stride,
                                        args.recurrent_transposed + PanelLayout<T>::offset(panel, blocks * W),
                                        args.no_next}};
    multiply_rows<T, N>(args.row_begin, args.row_end, d_gates_next, BackwardTiles<T, N>{args, panel});
  }
};

template <typename T>
void step_backward(const StepBackwardArgs<T>& args) {
  const PanelLayout<T> layout{args.hidden_size};
  for (Index panel = args.panel_begin; panel < args.panel_end; ++panel)
    with_panel_vectors<kPanelVectors>(layout.vectors_in(panel), BackwardPanel<T>{args, panel});
}

}  // namespace
}  // namespace lstmfast

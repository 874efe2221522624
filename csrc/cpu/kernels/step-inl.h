// The fused LSTM step: one register tile of [x, h]·kernel, then the gate split while it is still in registers; and the
// same step backward: one register tile of d_gates·recurrent_kernelᵀ, then the derivatives of the gates.
// Equations: Hochreiter & Schmidhuber 1997; Gers, Schmidhuber & Cummins 2000. `reference.py` is the same in NumPy.
#pragma once

#include "cpu/kernels/activations-inl.h"
#include "cpu/kernels/tile-inl.h"

namespace lstmfast {
namespace {

// Gates, c and h of one block of units for P rows from `row` on, whose pre-activations stand in z.
// Three divisions a cell where five functions would need five: i and g share one, and so do o and tanh(c).
template <typename T, int P>
LSTMFAST_INLINE void finish_cells(const StepForwardArgs<T>& args, Index block, Index row, const T* z) {
  constexpr Index V = kLanes<T>, W = kGateCount * V;
  const Index unit = block * V, lanes = args.hidden_size - unit;
  Vec<T> sigmoid[3 * P], d[3 * P], g[P], g_d[P], c[P], tanh_c[P], tanh_c_d[P], i_over_g_d[P];  // _d: denominators
  Vec<T> *const d_i = d, *const d_f = d + P, *const d_o = d + 2 * P;
  for (int r = 0; r < P; ++r) {
    sigmoid[r] = load(z + r * W + kInputGate * V);
    sigmoid[P + r] = load(z + r * W + kForgetGate * V);
    sigmoid[2 * P + r] = load(z + r * W + kOutputGate * V);
    g[r] = load(z + r * W + kCellGate * V);
  }
  gate_fractions<T, 3 * P, P>(sigmoid, d, g, g_d);
  for (int r = 0; r < P; ++r) {
    d_f[r] = T(1) / d_f[r];
    i_over_g_d[r] = T(1) / (d_i[r] * g_d[r]);
    c[r] = fused_multiply_add(d_f[r], load_partial(args.c_prev[row + r] + unit, lanes), g[r] * i_over_g_d[r]);
    tanh_c[r] = c[r];
  }
  gate_fractions<T, 0, P>(nullptr, nullptr, tanh_c, tanh_c_d);
  for (int r = 0; r < P; ++r) {
    const Vec<T> o_over_tanh_c_d = T(1) / (d_o[r] * tanh_c_d[r]);
    store_partial(args.c[row + r] + unit, c[r], lanes);
    store_partial(args.h[row + r] + unit, tanh_c[r] * o_over_tanh_c_d, lanes);
    if (!args.gates) continue;
    T* gates = args.gates + block * args.gate_block_stride + (row + r) * W;
    store(gates + kInputGate * V, g_d[r] * i_over_g_d[r]);
    store(gates + kForgetGate * V, d_f[r]);
    store(gates + kCellGate * V, g[r] / g_d[r]);
    store(gates + kOutputGate * V, tanh_c_d[r] * o_over_tanh_c_d);
  }
}

// Rows whose cells go through the functions in step.
constexpr int kRowsInStep = 3;

// Out of line and reached through memory: one copy of this code serves every tile shape, which keeps it in the instruction
// cache (and the build short).
template <typename T>
LSTMFAST_NOINLINE void finish_rows(const StepForwardArgs<T>& args, Index block, Index row, Index end, const T* z) {
  constexpr Index W = kGateCount * kLanes<T>;
  for (; row + kRowsInStep <= end; row += kRowsInStep, z += kRowsInStep * W)
    finish_cells<T, kRowsInStep>(args, block, row, z);
  for (; row < end; ++row, z += W) finish_cells<T, 1>(args, block, row, z);
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
    alignas(64) T memory[R * kGateCount * kLanes<T>];
    for (int r = 0; r < R; ++r)
      for (int gate = 0; gate < kGateCount; ++gate)
        store(memory + (r * kGateCount + gate) * kLanes<T>, z.at[r][gate]);
    finish_rows<T>(args, block, row, row + R, memory);
  }
};

// Calls several(block) for groups of kPanelsOfOneRow gate blocks if there is one row, and one(block) for the others. Blocks
// outside, rows inside: a block's weights stay in L1 or L2 while all rows pass over them.
template <typename T, typename Several, typename One>
LSTMFAST_INLINE void for_each_block(const StepForwardArgs<T>& args, const Several& several, const One& one) {
  const Index blocks = args.block_end - args.block_begin;
  const Index groups = args.row_end - args.row_begin == 1 ? blocks / kPanelsOfOneRow : 0;
  const Index first_single = args.block_begin + groups * kPanelsOfOneRow;
  const Index calls = groups + args.block_end - first_single;
  for (Index n = 0; n < calls; ++n) {
    const Index at = args.descending ? calls - 1 - n : n;
    if (at < groups)
      several(args.block_begin + at * kPanelsOfOneRow);
    else
      one(first_single + at - groups);
  }
}

template <typename T>
void step_forward(const StepForwardArgs<T>& args) {
  constexpr Index W = kGateCount * kLanes<T>;
  const Index x_stride = args.input_size * W, h_stride = args.recurrent_size * W;
  const auto x = [&](Index block) {
    return Operand<T>{args.x, 1, args.input_size, 0, args.input_panels + block * x_stride, nullptr};
  };
  const auto h = [&](Index block) {
    return Operand<T>{args.h_prev, 1, args.recurrent_size, 0, args.recurrent_panels + block * h_stride, nullptr};
  };
  const auto several = [&](Index block) {
    const Operand<T> operands[] = {x(block), h(block)};
    multiply_one_row<T, kGateCount, kPanelsOfOneRow>(args.row_begin, operands, {x_stride, h_stride},
                                                     [&](int p) { return ForwardTiles<T>{args, block + p}; });
  };
  const auto one = [&](Index block) {
    const Operand<T> operands[] = {x(block), h(block)};
    multiply_rows<T, kGateCount>(args.row_begin, args.row_end, operands, ForwardTiles<T>{args, block});
  };
  for_each_block(args, several, one);
}

template <typename T>
struct GateProductTiles {
  const GateProductArgs<T>& args;
  Index block;

  template <int R>
  LSTMFAST_INLINE void start(Tile<T, R, kGateCount>& z, Index) const {
    const T* init = args.init + block * kGateCount * kLanes<T>;
    for (int r = 0; r < R; ++r)
      for (int gate = 0; gate < kGateCount; ++gate) z.at[r][gate] = load(init + gate * kLanes<T>);
  }

  template <int R>
  LSTMFAST_INLINE void finish(const Tile<T, R, kGateCount>& z, Index row) const {
    constexpr Index V = kLanes<T>, W = kGateCount * V;
    T* out = args.z + block * args.z_block_stride + (row - args.z_first_row) * W;
    for (int r = 0; r < R; ++r)
      for (int gate = 0; gate < kGateCount; ++gate) store(out + r * W + gate * V, z.at[r][gate]);
  }
};

template <typename T>
void gate_product(const GateProductArgs<T>& args) {
  constexpr Index W = kGateCount * kLanes<T>;
  for_each_row_group<T>(args.row_begin, args.row_end, args.input_size, [&](Index begin, Index end) {
    for (Index block = args.block_begin; block < args.block_end; ++block) {
      const Operand<T> x[] = {{args.x, 1, args.input_size, 0, args.input_panels + block * args.input_size * W, nullptr}};
      multiply_rows<T, kGateCount>(begin, end, x, GateProductTiles<T>{args, block});
    }
  });
}

template <typename T, int N>
struct BackwardTiles {
  const StepBackwardArgs<T>& args;
  Index panel;

  template <int R>
  LSTMFAST_INLINE void start(Tile<T, R, N>& d_h, Index row) const {
    if (args.recurrent_transposed) return d_h.clear();
    const Index first_unit = PanelLayout<T>::first_column(panel);
    for (int r = 0; r < R; ++r)
      load_row(d_h.at[r], args.d_h_next + (row + r - args.row_begin) * args.hidden_size + first_unit,
               {kLanes<T>, args.hidden_size - first_unit, kLanes<T>});
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
      T* d_gates = args.d_gates + (first_block + n) * args.d_gate_block_stride + (row - args.d_gates_first_row) * W;
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
    const Operand<T> operands[] = {d_gates_next()};
    multiply_rows<T, N>(args.row_begin, args.row_end, operands, BackwardTiles<T, N>{args, panel});
  }

  // For one row: this panel and the ones after it, all full.
  LSTMFAST_INLINE void run_one_row() const {
    const Operand<T> operands[] = {d_gates_next()};
    const Index stride = PanelLayout<T>::offset(1, operands[0].blocks * operands[0].block_length);
    multiply_one_row<T, kPanelVectors, kPanelsOfOneRow>(
        args.row_begin, operands, {stride}, [&](int p) { return BackwardTiles<T, kPanelVectors>{args, panel + p}; });
  }

 private:
  LSTMFAST_INLINE Operand<T> d_gates_next() const {
    constexpr Index W = kGateCount * kLanes<T>;
    const Index blocks = ceil_div(args.hidden_size, kLanes<T>);
    if (!args.recurrent_transposed) return {args.d_gates_next, 0, 0, 0, nullptr, nullptr};
    return {args.d_gates_next, blocks, W, args.d_gate_block_stride,
            args.recurrent_transposed + PanelLayout<T>::offset(panel, blocks * W), args.no_next};
  }
};

template <typename T>
void step_backward(const StepBackwardArgs<T>& args) {
  const PanelLayout<T> layout{args.hidden_size};
  const bool one_row = args.row_end - args.row_begin == 1;
  Index panel = args.panel_begin;
  while (panel < args.panel_end) {
    const BackwardPanel<T> body{args, panel};
    const Index last = panel + kPanelsOfOneRow - 1;
    if (one_row && last < args.panel_end && layout.vectors_in(last) == kPanelVectors) {
      body.run_one_row();
      panel += kPanelsOfOneRow;
    } else {
      with_panel_vectors<kPanelVectors>(layout.vectors_in(panel), body);
      ++panel;
    }
  }
}

}  // namespace
}  // namespace lstmfast

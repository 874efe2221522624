// The fused LSTM step: one register tile of [x, h]·kernel, then the gate split while it is still in registers; and the
// same step backward: one register tile of d_gates·recurrent_kernelᵀ, then the derivatives of the gates.
// Equations: Hochreiter & Schmidhuber 1997; Gers, Schmidhuber & Cummins 2000. `reference.py` is the same in NumPy.
#pragma once

#include "cpu/kernels/activations-inl.h"
#include "cpu/kernels/mask-inl.h"
#include "cpu/kernels/tile-inl.h"

namespace lstmfast {
namespace {

// The two cells that the steps are compiled for. A variant's hooks are peepholes, a clip, coupled gates and masks; in a
// plain cell they are compiled away. All variants are one instantiation that tests at run time, once for some rows of a
// block, which hooks are on: one instantiation per combination would make the steps eight times as large, on every ISA,
// and save a few of some hundred instructions.
struct PlainCell {
  static constexpr bool kHasHooks = false;
};
struct VariantCell {
  static constexpr bool kHasHooks = true;
};

// The units of one block of a vector [hidden_size] for each of the peepholes; zero past the last unit.
template <typename T>
LSTMFAST_INLINE Vec<T> load_peephole(const T* peepholes, Peephole which, Index hidden, Index unit) {
  return load_partial(peepholes + which * hidden + unit, hidden - unit);
}

// Hook before the gates: the peepholes of i and f to the earlier cells; if coupled, f = 1 - i = sigmoid(-z_i), which
// unlike a difference is accurate relative to itself.
template <typename T, int P>
LSTMFAST_INLINE void see_earlier_cells(const StepForwardArgs<T>& args, Index unit, Index row, Vec<T>* z_i, Vec<T>* z_f) {
  const CellVariant<T>& variant = *args.variant;
  const Index hidden = args.hidden_size;
  if (variant.peepholes) {
    const Vec<T> p_i = load_peephole(variant.peepholes, kInputPeephole, hidden, unit);
    const Vec<T> p_f = load_peephole(variant.peepholes, kForgetPeephole, hidden, unit);
    for (int r = 0; r < P; ++r) {
      const Vec<T> c_prev = load_partial(args.c_prev[row + r] + unit, hidden - unit);
      z_i[r] = fused_multiply_add(p_i, c_prev, z_i[r]);
      z_f[r] = fused_multiply_add(p_f, c_prev, z_f[r]);
    }
  }
  if (variant.coupled_gates)
    for (int r = 0; r < P; ++r) z_f[r] = -z_i[r];
}

// Hook between the candidate and c.
template <typename T>
LSTMFAST_INLINE Vec<T> masked_candidate(const CellMasks<T>& masks, Index row, Index unit, Index lanes, Vec<T> g) {
  return masks.candidate ? g * load_partial(masks.candidate[row] + unit, lanes) : g;
}

// NaN passes the clip.
template <typename T>
LSTMFAST_INLINE Vec<T> clipped(Vec<T> c, T clip) {
  const Vec<T> highest = broadcast<T>(clip), lowest = -highest;
  c = highest < c ? highest : c;
  return lowest > c ? lowest : c;
}

// Hook between c and o: the clip, and the peephole of o to the new cells.
template <typename T, int P>
LSTMFAST_INLINE void clip_and_see_cells(const StepForwardArgs<T>& args, Index unit, Vec<T>* c, Vec<T>* z_o) {
  const CellVariant<T>& variant = *args.variant;
  for (int r = 0; r < P; ++r) c[r] = clipped<T>(c[r], variant.cell_clip);
  if (variant.peepholes) {
    const Vec<T> p_o = load_peephole(variant.peepholes, kOutputPeephole, args.hidden_size, unit);
    for (int r = 0; r < P; ++r) z_o[r] = fused_multiply_add(p_o, c[r], z_o[r]);
  }
}

// The cells of one block of units, P rows at a time, in two halves: i, f and g make c; o and tanh(c) make h.
// Three divisions a cell where five functions would need five: i and g share one, and so do o and tanh(c).
template <typename T, int P, typename Cell>
struct Cells {
  static constexpr Index V = kLanes<T>, W = kGateCount * V;
  const StepForwardArgs<T>& args;
  Index block, unit, lanes;

  LSTMFAST_INLINE Cells(const StepForwardArgs<T>& args, Index block)
      : args(args), block(block), unit(block * V), lanes(args.hidden_size - unit) {}

  LSTMFAST_INLINE T* gates(Index row) const { return args.gates + block * args.gate_block_stride + row * W; }

  // From the pre-activations z to the arguments of the functions, i and f side by side.
  LSTMFAST_INLINE void begin_first_half(Index row, const T* z, Vec<T>* i_f, Vec<T>* g) const {
    for (int r = 0; r < P; ++r) {
      i_f[r] = load(z + r * W + kInputGate * V);
      i_f[P + r] = load(z + r * W + kForgetGate * V);
      g[r] = load(z + r * W + kCellGate * V);
    }
    if constexpr (Cell::kHasHooks) see_earlier_cells<T, P>(args, unit, row, i_f, i_f + P);
  }

  // From the functions as fractions to c.
  LSTMFAST_INLINE void end_first_half(Index row, const Vec<T>* i_f_d, const Vec<T>* g, const Vec<T>* g_d, Vec<T>* c) const {
    for (int r = 0; r < P; ++r) {
      const Vec<T> i_over_g_d = T(1) / (i_f_d[r] * g_d[r]), f = T(1) / i_f_d[P + r];
      Vec<T> i_times_g = g[r] * i_over_g_d;
      if constexpr (Cell::kHasHooks) i_times_g = masked_candidate<T>(args.masks, row + r, unit, lanes, i_times_g);
      c[r] = fused_multiply_add(f, load_partial(args.c_prev[row + r] + unit, lanes), i_times_g);
      if (!args.gates) continue;
      store(gates(row + r) + kInputGate * V, g_d[r] * i_over_g_d);
      store(gates(row + r) + kForgetGate * V, f);
      store(gates(row + r) + kCellGate * V, g[r] / g_d[r]);
    }
  }

  LSTMFAST_INLINE void begin_second_half(Index row, const T* z, Vec<T>* c, Vec<T>* o) const {
    for (int r = 0; r < P; ++r) o[r] = load(z + r * W + kOutputGate * V);
    if constexpr (Cell::kHasHooks) clip_and_see_cells<T, P>(args, unit, c, o);
    for (int r = 0; r < P; ++r) {
      Vec<T> kept = c[r];
      if constexpr (Cell::kHasHooks)
        if (args.masks.kept_cell)
          kept = mixed<T>(load_partial(args.masks.kept_cell[row + r] + unit, lanes),
                          load_partial(args.c_prev[row + r] + unit, lanes), kept);
      store_partial(args.c[row + r] + unit, kept, lanes);
    }
  }

  LSTMFAST_INLINE void end_second_half(Index row, const Vec<T>* o_d, const Vec<T>* tanh_c, const Vec<T>* tanh_c_d) const {
    for (int r = 0; r < P; ++r) {
      const Vec<T> o_over_tanh_c_d = T(1) / (o_d[r] * tanh_c_d[r]);
      store_partial(args.h[row + r] + unit, tanh_c[r] * o_over_tanh_c_d, lanes);
      if (args.gates) store(gates(row + r) + kOutputGate * V, tanh_c_d[r] * o_over_tanh_c_d);
    }
  }

  // `groups` times P rows, whose pre-activations are in z. The second half of one group goes through the functions
  // together with the first half of the next: alone it is a chain of dependent operations that leaves the core idle.
  LSTMFAST_INLINE void run(Index row, Index groups, const T* z) const {
    if (groups == 0) return;
    Vec<T> sigmoid[3 * P], sigmoid_d[3 * P], tanh[2 * P], tanh_d[2 * P];  // i, f and o; g and c; _d: denominators
    Vec<T> *const o = sigmoid + 2 * P, *const o_d = sigmoid_d + 2 * P, *const c = tanh + P, *const c_d = tanh_d + P;
    Vec<T> new_c[P];
    begin_first_half(row, z, sigmoid, tanh);
    gate_fractions<T, 2 * P, P>(sigmoid, sigmoid_d, tanh, tanh_d);
    end_first_half(row, sigmoid_d, tanh, tanh_d, new_c);
    for (; groups > 1; --groups, row += P, z += P * W) {
      begin_second_half(row, z, new_c, o);
      for (int r = 0; r < P; ++r) c[r] = new_c[r];
      begin_first_half(row + P, z + P * W, sigmoid, tanh);
      gate_fractions<T, 3 * P, 2 * P>(sigmoid, sigmoid_d, tanh, tanh_d);
      end_first_half(row + P, sigmoid_d, tanh, tanh_d, new_c);
      end_second_half(row, o_d, c, c_d);
    }
    begin_second_half(row, z, new_c, o);
    gate_fractions<T, P, P>(o, o_d, new_c, c_d);
    end_second_half(row, o_d, new_c, c_d);
  }
};

// Rows whose cells go through the functions together. One would do for AVX-512; with AVX2 8 cells take 57 cycles,
// and 66 one row at a time (Golden Cove, isolated).
constexpr int kRowsInStep = 2;

// Out of line and reached through memory: one copy of this code serves every tile shape, which keeps it in the
// instruction cache (and the build short).
template <typename T, typename Cell>
LSTMFAST_NOINLINE void finish_rows(const StepForwardArgs<T>& args, Index block, Index row, Index end, const T* z) {
  const Index groups = (end - row) / kRowsInStep, rows = groups * kRowsInStep;
  Cells<T, kRowsInStep, Cell>(args, block).run(row, groups, z);
  Cells<T, 1, Cell>(args, block).run(row + rows, end - row - rows, z + rows * kGateCount * kLanes<T>);
}

template <typename T, typename Cell = PlainCell>
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
    z.store_to(memory);
    finish_rows<T, Cell>(args, block, row, row + R, memory);
  }
};

// Calls several(block) for groups of kPanelsOfOneRow gate blocks if there is one row, and one(block) for the others.
// Blocks outside, rows inside: a block's weights stay in L1 or L2 while all rows pass over them.
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

template <typename T, typename Cell>
void step_forward(const StepForwardArgs<T>& args) {
  constexpr Index W = kGateCount * kLanes<T>;
  const Index x_stride = args.input_size * W, h_stride = args.recurrent_size * W;
  const auto x = [&](Index block) {
    return Operand<T>{args.x, 1, args.input_size, 0, args.input_panels + block * x_stride,
                      args.recurrent_panels + block * h_stride, nullptr};
  };
  const auto h = [&](Index block) {
    const T* panel = args.recurrent_panels + block * h_stride;
    return Operand<T>{args.h_prev, 1, args.recurrent_size, 0, panel, args.descending ? panel - h_stride : panel + h_stride,
                      nullptr};
  };
  const auto several = [&](Index block) {
    const Operand<T> operands[] = {x(block), h(block)};
    multiply_one_row<T, kGateCount, kPanelsOfOneRow>(args.row_begin, operands, {x_stride, h_stride},
                                                     [&](int p) { return ForwardTiles<T, Cell>{args, block + p}; });
  };
  const auto one = [&](Index block) {
    const Operand<T> operands[] = {x(block), h(block)};
    multiply_rows<T, kGateCount>(args.row_begin, args.row_end, operands, ForwardTiles<T, Cell>{args, block});
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
      const T* panel = args.input_panels + block * args.input_size * W;
      const Operand<T> x[] = {{args.x, 1, args.input_size, 0, panel, panel + args.input_size * W, nullptr}};
      multiply_rows<T, kGateCount>(begin, end, x, GateProductTiles<T>{args, block});
    }
  });
}

// c as it was before it was normalised or zoneout mixed it with the earlier one.
template <typename T>
LSTMFAST_INLINE Vec<T> new_cells(const StepBackwardArgs<T>& args, Index row, Index unit) {
  constexpr Index V = kLanes<T>;
  const Index lanes = args.hidden_size - unit;
  const T* gates = args.gates + unit / V * args.gate_block_stride + row * kGateCount * V;
  const Vec<T> i_times_g = load(gates + kInputGate * V) * load(gates + kCellGate * V);
  const Vec<T> c = fused_multiply_add(load(gates + kForgetGate * V), load_partial(args.c_prev[row] + unit, lanes),
                                      masked_candidate<T>(args.masks, row, unit, lanes, i_times_g));
  return clipped<T>(c, args.variant->cell_clip);
}

// Zoneout's share of the gradient of c goes to the earlier c, the rest to the new one.
template <typename T>
LSTMFAST_INLINE Vec<T> kept_gradient(const StepBackwardArgs<T>& args, Index row, Index unit, Vec<T> d_c) {
  if (!args.masks.kept_cell) return Vec<T>{};
  return d_c * load_partial(args.masks.kept_cell[row] + unit, args.hidden_size - unit);
}
template <typename T>
LSTMFAST_INLINE Vec<T> carried_gradient(const StepBackwardArgs<T>& args, Index row, Index unit, Vec<T> d_c) {
  return d_c - kept_gradient(args, row, unit, d_c);
}

template <typename T, int N, typename Cell = PlainCell>
struct BackwardTiles {
  const StepBackwardArgs<T>& args;
  Index panel;

  template <int R>
  LSTMFAST_INLINE void start(Tile<T, R, N>& d_h, Index row) const {
    if (args.recurrent_transposed) return d_h.clear();
    const Index first_unit = PanelLayout<T>::first_column(panel);
    LSTMFAST_UNROLL
    for (int r = 0; r < R; ++r)
      load_row(d_h.at[r], args.d_h_next + (row + r - args.row_begin) * args.hidden_size + first_unit,
               {kLanes<T>, args.hidden_size - first_unit, kLanes<T>});
  }

  template <int R>
  LSTMFAST_INLINE void finish(const Tile<T, R, N>& d_h, Index row) const {
    alignas(64) T memory[R * N * kLanes<T>];
    d_h.store_to(memory);
    for (int r = 0; r < R; ++r) derive(memory + r * N * kLanes<T>, row + r);
  }

  // The units of one row of the panel, from the gradient of the next step. Reached through memory: Clang passes vectors
  // by value as a pointer into the tile, which then is in memory during the product too.
  LSTMFAST_NOINLINE void derive(const T* d_h_next, Index row) const {
    constexpr Index V = kLanes<T>, W = kGateCount * V;
    const Index first_block = panel * kPanelVectors;
    const Index first_unit = first_block * V, units = args.hidden_size - first_unit;
    const T *c = args.c[row] + first_unit, *c_prev = args.c_prev[row] + first_unit;
    const T *d_h_out = args.d_h[row] + first_unit, *d_h_extra = args.d_h_extra[row] + first_unit;
    const T* d_c_next = args.d_c[row] + first_unit;
    T* d_c_prev = args.d_c_prev[row] + first_unit;
    Vectors<T, N> tanh_c;
    for (int n = 0; n < N; ++n) tanh_c.at[n] = load_partial<T>(c + n * V, units - n * V);
    bool needs_tanh = true;
    if constexpr (Cell::kHasHooks) {
      needs_tanh = !args.d_new_c;  // else what it is for has been computed, from c normalised
      for (int n = 0; args.new_c && !args.d_new_c && n < N; ++n) {
        tanh_c.at[n] = new_cells(args, row, first_unit + n * V);
        store_partial(args.new_c[row] + first_unit + n * V, tanh_c.at[n], units - n * V);
      }
    }
    if (needs_tanh) vector_tanh(tanh_c);
    for (int n = 0; n < N; ++n) {
      const Index at = n * V, lanes = units - at;
      const T* gates = args.gates + (first_block + n) * args.gate_block_stride + row * W;
      const Vec<T> i = load(gates + kInputGate * V), f = load(gates + kForgetGate * V);
      const Vec<T> g = load(gates + kCellGate * V), o = load(gates + kOutputGate * V);
      const Vec<T> t = tanh_c.at[n];
      const Vec<T> d_h = load(d_h_next + at) + load_partial(d_h_out + at, lanes) + load_partial(d_h_extra + at, lanes);
      const Vec<T> d_c_out = load_partial(d_c_next + at, lanes), d_t = d_h * o;
      T* d_gates = args.d_gates + (first_block + n) * args.d_gate_block_stride + (row - args.d_gates_first_row) * W;
      if constexpr (Cell::kHasHooks) {
        derive_variant(i, f, g, o, t, d_h, d_t, d_c_out, d_gates, row, first_unit + at);
        continue;
      }
      const Vec<T> d_c = fused_multiply_add(d_t, T(1) - t * t, d_c_out);
      store(d_gates + kInputGate * V, d_c * g * (i * (T(1) - i)));
      store(d_gates + kForgetGate * V, d_c * load_partial(c_prev + at, lanes) * (f * (T(1) - f)));
      store(d_gates + kCellGate * V, d_c * i * (T(1) - g * g));
      store(d_gates + kOutputGate * V, d_h * t * (o * (T(1) - o)));
      store_partial(d_c_prev + at, d_c * f, lanes);
    }
  }

  // The rest for a cell with hooks. A clipped c passes no gradient; one within the bounds, or exactly on them without
  // the clip, passes all. If `c` is a bound, the c before the clip is recomputed to tell the two apart.
  LSTMFAST_INLINE void derive_variant(Vec<T> i, Vec<T> f, Vec<T> g, Vec<T> o, Vec<T> t, Vec<T> d_h, Vec<T> d_t,
                                      Vec<T> d_c_out, T* d_gates, Index row, Index unit) const {
    constexpr Index V = kLanes<T>;
    const CellVariant<T>& variant = *args.variant;
    const Index hidden = args.hidden_size, lanes = hidden - unit;
    const Vec<T> c_prev = load_partial(args.c_prev[row] + unit, lanes);
    const Vec<T> c = load_partial((args.new_c ? args.new_c[row] : args.c[row]) + unit, lanes);
    const Vec<T> d_kept = kept_gradient(args, row, unit, d_c_out), clip = broadcast<T>(variant.cell_clip);
    Vec<T> d_z_o = d_h * t * (o * (T(1) - o));
    Vec<T> d_c = fused_multiply_add(d_t, T(1) - t * t, d_c_out - d_kept);
    if (args.d_new_c) {
      d_z_o = load(d_gates + kOutputGate * V);
      d_c = load_partial(args.d_new_c[row] + unit, lanes);
    }
    if (variant.peepholes)
      d_c = fused_multiply_add(d_z_o, load_peephole(variant.peepholes, kOutputPeephole, hidden, unit), d_c);
    const Vec<T> seen_g = masked_candidate<T>(args.masks, row, unit, lanes, g);
    const Vec<T> unclipped = fused_multiply_add(f, c_prev, i * seen_g);
    d_c = ((c >= clip) & (unclipped > clip)) | ((c <= -clip) & (unclipped < -clip)) ? Vec<T>{} : d_c;
    const Vec<T> d_i = variant.coupled_gates ? d_c * (seen_g - c_prev) : d_c * seen_g;
    const Vec<T> d_g = masked_candidate<T>(args.masks, row, unit, lanes, d_c * i);
    const Vec<T> d_z_i = d_i * (i * (T(1) - i));
    const Vec<T> d_z_f = variant.coupled_gates ? Vec<T>{} : d_c * c_prev * (f * (T(1) - f));
    Vec<T> d_c_prev = fused_multiply_add(d_c, f, d_kept);
    if (variant.peepholes) {
      d_c_prev = fused_multiply_add(d_z_i, load_peephole(variant.peepholes, kInputPeephole, hidden, unit), d_c_prev);
      if (!variant.coupled_gates)
        d_c_prev = fused_multiply_add(d_z_f, load_peephole(variant.peepholes, kForgetPeephole, hidden, unit), d_c_prev);
    }
    store(d_gates + kInputGate * V, d_z_i);
    store(d_gates + kForgetGate * V, d_z_f);
    store(d_gates + kCellGate * V, d_g * (T(1) - g * g));
    store(d_gates + kOutputGate * V, d_z_o);
    store_partial(args.d_c_prev[row] + unit, d_c_prev, lanes);
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
    if (!args.recurrent_transposed) return {args.d_gates_next, 0, 0, 0, nullptr, nullptr, nullptr};
    return {args.d_gates_next, blocks, W, args.d_gate_block_stride,
            args.recurrent_transposed + PanelLayout<T>::offset(panel, blocks * W),
            args.recurrent_transposed + PanelLayout<T>::offset(panel + 1, blocks * W), args.no_next};
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

template <typename T>
struct VariantBackwardPanel {
  const StepBackwardArgs<T>& args;
  Index panel;

  template <int N>
  LSTMFAST_INLINE void run() const {
    const BackwardTiles<T, N, VariantCell> tiles{args, panel};
    const Index first_unit = PanelLayout<T>::first_column(panel);
    for (Index row = args.row_begin; row < args.row_end; ++row) {
      Tile<T, 1, N> d_h;
      load_row(d_h.at[0], args.d_h_next + (row - args.row_begin) * args.hidden_size + first_unit,
               {kLanes<T>, args.hidden_size - first_unit, kLanes<T>});
      tiles.finish(d_h, row);
    }
  }
};

// `product` computes the product before it: a second set of tiles would enlarge the objects only to save a read from L1.
template <typename T>
void variant_step_backward(const StepBackwardArgs<T>& args) {
  const PanelLayout<T> layout{args.hidden_size};
  for (Index panel = args.panel_begin; panel < args.panel_end; ++panel)
    with_panel_vectors<kPanelVectors>(layout.vectors_in(panel), VariantBackwardPanel<T>{args, panel});
}

template <typename T>
void peephole_gradients(const PeepholeGradientArgs<T>& args) {
  constexpr Index V = kLanes<T>, W = kGateCount * V;
  for (Index block = args.block_begin; block < args.block_end; ++block) {
    const Index unit = block * V, lanes = args.hidden_size - unit;
    const T* d_gates = args.d_gates + block * args.block_stride;
    Vec<T> sums[kPeepholeCount];
    for (int p = 0; p < kPeepholeCount; ++p) sums[p] = load_partial(args.sums + p * args.hidden_size + unit, lanes);
    for (Index r = 0; r < args.rows; ++r, d_gates += W) {
      const Vec<T> c_prev = load_partial(args.c_prev[r] + unit, lanes), c = load_partial(args.c[r] + unit, lanes);
      sums[kInputPeephole] = fused_multiply_add(load(d_gates + kInputGate * V), c_prev, sums[kInputPeephole]);
      sums[kForgetPeephole] = fused_multiply_add(load(d_gates + kForgetGate * V), c_prev, sums[kForgetPeephole]);
      sums[kOutputPeephole] = fused_multiply_add(load(d_gates + kOutputGate * V), c, sums[kOutputPeephole]);
    }
    for (int p = 0; p < kPeepholeCount; ++p) store_partial(args.sums + p * args.hidden_size + unit, sums[p], lanes);
  }
}

}  // namespace
}  // namespace lstmfast

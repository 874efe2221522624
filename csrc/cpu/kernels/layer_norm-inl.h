// Layer normalisation in the cell (Ba, Kiros & Hinton 2016): of gate panels, between product and gates, and of c before
// its tanh. A row's statistics need the whole row, so each of these passes over rows that are still in cache.
#pragma once

#include "cpu/kernels/activations-inl.h"
#include "cpu/kernels/step-inl.h"

namespace lstmfast {
namespace {

LSTMFAST_INLINE float inverse_root(float x) { return 1 / __builtin_sqrtf(x); }
LSTMFAST_INLINE double inverse_root(double x) { return 1 / __builtin_sqrt(x); }

// 1 in the first `lanes` lanes, 0 in the others: units past the last one do not count.
template <typename T>
LSTMFAST_INLINE Vec<T> ones(Index lanes) {
  T values[kLanes<T>];
  for (Index i = 0; i < kLanes<T>; ++i) values[i] = i < lanes ? T(1) : T(0);
  return load<T>(values);
}

// One row of gate panels: body(block, first element in it, gate) for all vectors.
template <typename T, typename Body>
LSTMFAST_INLINE void for_each_vector(Index hidden, const Body& body) {
  const Index blocks = ceil_div(hidden, kLanes<T>);
  for (Index block = 0; block < blocks; ++block)
    for (int gate = 0; gate < kGateCount; ++gate) body(block, gate * kLanes<T>, gate);
}

// A sum for each group, from one for each gate: a single sum would be a chain that waits for every addition.
template <typename T, int kGroups>
LSTMFAST_INLINE void means_of_groups(const Vec<T> (&sums)[kGateCount], T count, T (&means)[kGroups]) {
  static_assert(kGroups == 1 || kGroups == kGateCount);
  if constexpr (kGroups == 1)
    means[0] = horizontal_sum<T>((sums[0] + sums[1]) + (sums[2] + sums[3])) / count;
  else
    for (int gate = 0; gate < kGateCount; ++gate) means[gate] = horizontal_sum<T>(sums[gate]) / count;
}

// The group's value for each gate.
template <typename T, int kGroups>
LSTMFAST_INLINE void spread(const T (&of_groups)[kGroups], Vec<T> (&of_gates)[kGateCount]) {
  for (int gate = 0; gate < kGateCount; ++gate) of_gates[gate] = broadcast<T>(of_groups[kGroups == 1 ? 0 : gate]);
}

template <typename T, int kGroups>
LSTMFAST_INLINE void normalize_row(const NormalizeGatesArgs<T>& args, Index row) {
  constexpr Index V = kLanes<T>, W = kGateCount * V;
  const Index hidden = args.hidden_size, last = ceil_div(hidden, V) - 1;
  const Vec<T> tail = ones<T>(hidden - last * V);
  const T count = static_cast<T>(hidden * (kGateCount / kGroups));
  T* const v = args.v + (row - args.v_first_row) * W;
  T* const z = args.z + (row - args.z_first_row) * W;
  Vec<T> sums[kGateCount] = {}, squares[kGateCount] = {}, mean[kGateCount], scale[kGateCount];
  T of_groups[kGroups];
  for_each_vector<T>(hidden, [&](Index block, Index at, int gate) {
    T* const here = v + block * args.v_block_stride + at;
    Vec<T> value = load(here);
    if (args.adds_z) store(here, value += load(z + block * args.z_block_stride + at));
    sums[gate] += value;
  });
  means_of_groups<T>(sums, count, of_groups);
  spread<T>(of_groups, mean);
  for_each_vector<T>(hidden, [&](Index block, Index at, int gate) {
    Vec<T> from_mean = load(v + block * args.v_block_stride + at) - mean[gate];
    if (block == last) from_mean *= tail;
    squares[gate] = fused_multiply_add(from_mean, from_mean, squares[gate]);
  });
  means_of_groups<T>(squares, count, of_groups);
  for (int g = 0; g < kGroups; ++g) {
    of_groups[g] = inverse_root(of_groups[g] + args.epsilon);
    if (args.scales) args.scales[row * kGroups + g] = of_groups[g];
  }
  spread<T>(of_groups, scale);
  for_each_vector<T>(hidden, [&](Index block, Index at, int gate) {
    T* const here = v + block * args.v_block_stride + at;
    T* const out = z + block * args.z_block_stride + at;
    Vec<T> normal = (load(here) - mean[gate]) * scale[gate];
    if (block == last) normal *= tail;
    const Vec<T> start = args.init ? load(args.init + block * W + at) : load(out);
    store(here, normal);
    store(out, fused_multiply_add(load(args.gain + block * W + at), normal, start));
  });
}

template <typename T>
void normalize_gates(const NormalizeGatesArgs<T>& args) {
  for (Index row = args.row_begin; row < args.row_end; ++row)
    args.groups == 1 ? normalize_row<T, 1>(args, row) : normalize_row<T, kGateCount>(args, row);
}

// v is what `normalize_gates` left: n = (v - mean) * scale. With d = gain * d_z, the gradient of the earlier v is
// scale * (d - mean(d) - n * mean(d * n)).
template <typename T, int kGroups>
LSTMFAST_INLINE void normalize_row_backward(const NormalizeGatesBackwardArgs<T>& args, Index row) {
  constexpr Index V = kLanes<T>, W = kGateCount * V;
  const Index hidden = args.hidden_size, last = ceil_div(hidden, V) - 1;
  const Vec<T> tail = ones<T>(hidden - last * V);
  const T count = static_cast<T>(hidden * (kGateCount / kGroups));
  const T* const v = args.v + row * W;
  const T* const d_z = args.d_z + (row - args.d_first_row) * W;
  T* const d_v = args.d_v + (row - args.d_first_row) * W;
  Vec<T> sums[kGateCount] = {}, products[kGateCount] = {}, mean[kGateCount], slope[kGateCount], scale[kGateCount];
  T of_groups[kGroups];
  for_each_vector<T>(hidden, [&](Index block, Index at, int gate) {
    const Vec<T> d = load(args.gain + block * W + at) * load(d_z + block * args.d_block_stride + at);
    sums[gate] += d;
    products[gate] = fused_multiply_add(d, load(v + block * args.v_block_stride + at), products[gate]);
  });
  means_of_groups<T>(sums, count, of_groups);
  spread<T>(of_groups, mean);
  means_of_groups<T>(products, count, of_groups);
  spread<T>(of_groups, slope);
  for (int g = 0; g < kGroups; ++g) of_groups[g] = args.scales[row * kGroups + g];
  spread<T>(of_groups, scale);
  for_each_vector<T>(hidden, [&](Index block, Index at, int gate) {
    const Vec<T> d = load(args.gain + block * W + at) * load(d_z + block * args.d_block_stride + at);
    const Vec<T> normal = load(v + block * args.v_block_stride + at);
    Vec<T> result = (d - mean[gate] - normal * slope[gate]) * scale[gate];
    if (block == last) result *= tail;
    store(d_v + block * args.d_block_stride + at, result);
  });
}

template <typename T>
void normalize_gates_backward(const NormalizeGatesBackwardArgs<T>& args) {
  for (Index row = args.row_begin; row < args.row_end; ++row)
    args.groups == 1 ? normalize_row_backward<T, 1>(args, row) : normalize_row_backward<T, kGateCount>(args, row);
}

template <typename T>
void gate_gain_gradients(const GateGainGradientArgs<T>& args) {
  constexpr Index V = kLanes<T>;
  for (Index block = args.block_begin; block < args.block_end; ++block) {
    const Index lanes = args.hidden_size - block * V;
    T* const out = args.sums + block * V;
    const T* d_gates = args.d_gates + block * args.block_stride;
    const T* v = args.v + block * args.v_block_stride;
    Vec<T> sums[kGateCount];
    for (int gate = 0; gate < kGateCount; ++gate) sums[gate] = load_partial(out + gate * args.hidden_size, lanes);
    for (Index r = 0; r < args.rows; ++r, d_gates += kGateCount * V, v += kGateCount * V)
      for (int gate = 0; gate < kGateCount; ++gate)
        sums[gate] = fused_multiply_add(load(d_gates + gate * V), load(v + gate * V), sums[gate]);
    for (int gate = 0; gate < kGateCount; ++gate) store_partial(out + gate * args.hidden_size, sums[gate], lanes);
  }
}

// Mean and 1 / sqrt(variance + epsilon) of a row of c.
template <typename T>
struct CellStatistics {
  T mean, scale;

  LSTMFAST_INLINE CellStatistics(const T* c, Index hidden, T epsilon) {
    Vec<T> sum{}, square{};
    for (Index unit = 0; unit < hidden; unit += kLanes<T>) sum += load_partial(c + unit, hidden - unit);
    mean = horizontal_sum<T>(sum) / static_cast<T>(hidden);
    for (Index unit = 0; unit < hidden; unit += kLanes<T>) {
      const Vec<T> from_mean = load_partial(c + unit, hidden - unit, mean) - mean;
      square = fused_multiply_add(from_mean, from_mean, square);
    }
    scale = inverse_root(horizontal_sum<T>(square) / static_cast<T>(hidden) + epsilon);
  }
};

template <typename T>
void normalized_cells(const NormalizedCellsArgs<T>& args) {
  constexpr Index V = kLanes<T>, W = kGateCount * V;
  const Index hidden = args.hidden_size;
  for (Index row = args.row_begin; row < args.row_end; ++row) {
    const T* const new_c = args.new_c[row];
    const CellStatistics<T> c_row(new_c, hidden, args.epsilon);
    if (args.statistics) {
      args.statistics[2 * row] = c_row.mean;
      args.statistics[2 * row + 1] = c_row.scale;
    }
    for (Index unit = 0; unit < hidden; unit += V) {
      const Index lanes = hidden - unit;
      const Vec<T> c = load_partial(new_c + unit, lanes);
      const Vec<T> normal = fused_multiply_add((c - c_row.mean) * c_row.scale, load_partial(args.cell_gain + unit, lanes),
                                               load_partial(args.cell_shift + unit, lanes));
      const Vec<T> o = load(args.gates + unit / V * args.gate_block_stride + row * W + kOutputGate * V);
      store_partial(args.h[row] + unit, o * vector_tanh<T>(normal), lanes);
      Vec<T> carried = args.carries_norm ? normal : c;
      if (args.kept_cell)
        carried = mixed<T>(load_partial(args.kept_cell[row] + unit, lanes), load_partial(args.c_prev[row] + unit, lanes),
                           carried);
      store_partial(args.c[row] + unit, carried, lanes);
    }
  }
}

// The gradients of o's z and of c before its normalisation, into the places where variant_step_backward reads them.
template <typename T>
void normalized_cells_backward(const NormalizedCellsBackwardArgs<T>& args) {
  constexpr Index V = kLanes<T>, W = kGateCount * V;
  const StepBackwardArgs<T>& step = args.step;
  const Index hidden = step.hidden_size;
  for (Index row = step.row_begin; row < step.row_end; ++row) {
    T *const new_c = step.new_c[row], *const d_new_c = step.d_new_c[row];
    T *const d_gain = args.d_gain[row], *const d_shift = args.d_shift[row];
    const T c_mean = args.statistics[2 * row], c_scale = args.statistics[2 * row + 1];
    Vec<T> sum{}, product{};
    for (Index unit = 0; unit < hidden; unit += V) {
      const Index lanes = hidden - unit;
      const Vec<T> gain = load_partial(args.cell_gain + unit, lanes);
      const Vec<T> c = new_cells(step, row, unit), normal = (c - c_mean) * c_scale;
      store_partial(new_c + unit, c, lanes);
      const Vec<T> t = vector_tanh<T>(fused_multiply_add(normal, gain, load_partial(args.cell_shift + unit, lanes)));
      const Index in_gates = unit / V * step.gate_block_stride + row * W + kOutputGate * V;
      const Vec<T> o = load(step.gates + in_gates);
      const Vec<T> d_h = load_partial(step.d_h_next + (row - step.row_begin) * hidden + unit, lanes);
      store(step.d_gates + unit / V * step.d_gate_block_stride + (row - step.d_gates_first_row) * W + kOutputGate * V,
            d_h * t * (o * (T(1) - o)));
      Vec<T> d_carried{};
      if (args.carries_norm) d_carried = carried_gradient(step, row, unit, load_partial(step.d_c[row] + unit, lanes));
      const Vec<T> d_normal = fused_multiply_add(d_h * o, T(1) - t * t, d_carried);
      store_partial(d_shift + unit, d_normal, lanes);
      store_partial(d_gain + unit, d_normal * normal, lanes);
      const Vec<T> d = d_normal * gain;
      sum += d;
      product = fused_multiply_add(d, normal, product);
      store_partial(d_new_c + unit, d, lanes);
    }
    const T mean = horizontal_sum<T>(sum) / static_cast<T>(hidden);
    const T slope = horizontal_sum<T>(product) / static_cast<T>(hidden);
    for (Index unit = 0; unit < hidden; unit += V) {
      const Index lanes = hidden - unit;
      const Vec<T> normal = (load_partial(new_c + unit, lanes) - c_mean) * c_scale;
      Vec<T> d_c = (load_partial(d_new_c + unit, lanes) - mean - normal * slope) * c_scale;
      if (!args.carries_norm) d_c += carried_gradient(step, row, unit, load_partial(step.d_c[row] + unit, lanes));
      store_partial(d_new_c + unit, d_c, lanes);
    }
  }
}

}  // namespace
}  // namespace lstmfast

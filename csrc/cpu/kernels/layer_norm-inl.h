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

// One row of gate panels: body(block, first element in it, group) for all vectors.
template <typename T, int kGroups, typename Body>
LSTMFAST_INLINE void for_each_vector(Index hidden, const Body& body) {
  const Index blocks = ceil_div(hidden, kLanes<T>);
  for (Index block = 0; block < blocks; ++block)
    for (int gate = 0; gate < kGateCount; ++gate) body(block, gate * kLanes<T>, kGroups == 1 ? 0 : gate);
}

template <typename T, int kGroups>
LSTMFAST_INLINE void normalize_row(const NormalizeGatesArgs<T>& args, Index row) {
  constexpr Index V = kLanes<T>, W = kGateCount * V;
  const Index hidden = args.hidden_size, last = ceil_div(hidden, V) - 1;
  const Vec<T> tail = ones<T>(hidden - last * V);
  const T count = static_cast<T>(hidden * (kGateCount / kGroups));
  T* const v = args.v + (row - args.v_first_row) * W;
  T* const z = args.z + (row - args.z_first_row) * W;
  Vec<T> sums[kGroups] = {}, squares[kGroups] = {}, mean[kGroups], scale[kGroups];
  for_each_vector<T, kGroups>(hidden, [&](Index block, Index at, int group) {
    T* const here = v + block * args.v_block_stride + at;
    Vec<T> value = load(here);
    if (args.adds_z) store(here, value += load(z + block * args.z_block_stride + at));
    sums[group] += value;
  });
  for (int g = 0; g < kGroups; ++g) mean[g] = broadcast<T>(horizontal_sum<T>(sums[g]) / count);
  for_each_vector<T, kGroups>(hidden, [&](Index block, Index at, int group) {
    Vec<T> from_mean = load(v + block * args.v_block_stride + at) - mean[group];
    if (block == last) from_mean *= tail;
    squares[group] = fused_multiply_add(from_mean, from_mean, squares[group]);
  });
  for (int g = 0; g < kGroups; ++g) {
    const T root = inverse_root(horizontal_sum<T>(squares[g]) / count + args.epsilon);
    scale[g] = broadcast<T>(root);
    if (args.scales) args.scales[row * kGroups + g] = root;
  }
  for_each_vector<T, kGroups>(hidden, [&](Index block, Index at, int group) {
    T* const here = v + block * args.v_block_stride + at;
    T* const out = z + block * args.z_block_stride + at;
    Vec<T> normal = (load(here) - mean[group]) * scale[group];
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
  Vec<T> sums[kGroups] = {}, products[kGroups] = {}, mean[kGroups], slope[kGroups], scale[kGroups];
  for_each_vector<T, kGroups>(hidden, [&](Index block, Index at, int group) {
    const Vec<T> d = load(args.gain + block * W + at) * load(d_z + block * args.d_block_stride + at);
    sums[group] += d;
    products[group] = fused_multiply_add(d, load(v + block * args.v_block_stride + at), products[group]);
  });
  for (int g = 0; g < kGroups; ++g) {
    mean[g] = broadcast<T>(horizontal_sum<T>(sums[g]) / count);
    slope[g] = broadcast<T>(horizontal_sum<T>(products[g]) / count);
    scale[g] = broadcast<T>(args.scales[row * kGroups + g]);
  }
  for_each_vector<T, kGroups>(hidden, [&](Index block, Index at, int group) {
    const Vec<T> d = load(args.gain + block * W + at) * load(d_z + block * args.d_block_stride + at);
    const Vec<T> normal = load(v + block * args.v_block_stride + at);
    Vec<T> result = (d - mean[group] - normal * slope[group]) * scale[group];
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
  for (Index block = args.block_begin; block < args.block_end; ++block)
    for (int gate = 0; gate < kGateCount; ++gate) {
      const Index unit = block * V, lanes = args.hidden_size - unit;
      T* const sums = args.sums + gate * args.hidden_size + unit;
      const T* d_gates = args.d_gates + block * args.block_stride + gate * V;
      const T* v = args.v + block * args.v_block_stride + gate * V;
      Vec<T> sum = load_partial(sums, lanes);
      for (Index r = 0; r < args.rows; ++r, d_gates += kGateCount * V, v += kGateCount * V)
        sum = fused_multiply_add(load(d_gates), load(v), sum);
      store_partial(sums, sum, lanes);
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
    for (Index unit = 0; unit < hidden; unit += V) store_partial(new_c + unit, new_cells(step, row, unit), hidden - unit);
    const CellStatistics<T> c_row(new_c, hidden, args.epsilon);
    Vec<T> sum{}, product{};
    for (Index unit = 0; unit < hidden; unit += V) {
      const Index lanes = hidden - unit;
      const Vec<T> gain = load_partial(args.cell_gain + unit, lanes);
      const Vec<T> normal = (load_partial(new_c + unit, lanes, c_row.mean) - c_row.mean) * c_row.scale;
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
      const Vec<T> normal = (load_partial(new_c + unit, lanes) - c_row.mean) * c_row.scale;
      Vec<T> d_c = (load_partial(d_new_c + unit, lanes) - mean - normal * slope) * c_row.scale;
      if (!args.carries_norm) d_c += carried_gradient(step, row, unit, load_partial(step.d_c[row] + unit, lanes));
      store_partial(d_new_c + unit, d_c, lanes);
    }
  }
}

}  // namespace
}  // namespace lstmfast

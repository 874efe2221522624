// One launch per time step: the recurrent product fused with the cells, on any device and for any shape. T launches
// make a sequence; a CUDA graph may contain them. Also the path of a single step, and of weights too large for
// registers. Blocks split units and rows, and their warps the depth of the product: every weight is read by one block
// for all rows of a tile. Partial sums are added in shared memory in the order of warps, so results are reproducible.
// Keeps no weights between steps; sequence.cuh does.
#pragma once

#include "cuda/layouts.cuh"

namespace lstmfast::cuda {

constexpr int kStepWarps = 8, kStepThreads = 32 * kStepWarps;
constexpr int kStepUnits = 8;  // float32: of a block
constexpr int kStepTiles = 4;  // bfloat16: of 8 rows, of a block

struct ForwardStep {
  Problem problem;
  ForwardArrays arrays;
  int t;             // the time step of this launch
  int first, last;   // whether it is the first or the last
  int exchanged_rows;
  const void* packed;
  const void* h_before;  // exchanged rows
  void* h_after;
};

struct BackwardStep {
  Problem problem;
  BackwardArrays arrays;
  int t;             // of the cells of this launch; -1: only the product for d_h0 remains
  int first;         // no step was processed before: there is no product
  int t_after;       // of the step processed before, whose product this is; read unless `first`
  int exchanged_rows;
  const void* packed;
  const void* d_z_after;  // exchanged rows
  void* d_z;
  float *d_h, *d_c;  // [batch, hidden]: the state between launches
};

// --- float32 ---------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void add_scaled(float (&sums)[kGateCount], float x, const float4& w) {
  sums[0] = fmaf(x, w.x, sums[0]);
  sums[1] = fmaf(x, w.y, sums[1]);
  sums[2] = fmaf(x, w.z, sums[2]);
  sums[3] = fmaf(x, w.w, sums[3]);
}

// The cell of one (row, unit), forward: the end of the step kernels, float32 and bfloat16.
template <class T>
__device__ __forceinline__ void finish_forward_step(const ForwardStep& s, int row, int unit,
                                                    const float (&product)[kGateCount]) {
  const Problem& p = s.problem;
  if (row >= s.exchanged_rows || unit >= padded_hidden(p.hidden)) return;
  const size_t exchanged = static_cast<size_t>(row) * padded_hidden(p.hidden) + unit;
  const ForwardInput in = load_forward_input(p, s.arrays, s.t, row, unit);
  T h = static_cast<const T*>(s.h_before)[exchanged];
  float c = initial_c(p, s.first ? s.arrays.c0 : s.arrays.c_n, row, unit);
  advance_cell<T>(p, s.arrays, s.t, row, unit, in, product, c, h);
  static_cast<T*>(s.h_after)[exchanged] = h;
  if (row < p.batch && unit < p.hidden) {
    s.arrays.c_n[static_cast<size_t>(row) * p.hidden + unit] = c;
    if (s.last) static_cast<T*>(s.arrays.h_n)[static_cast<size_t>(row) * p.hidden + unit] = h;
  }
}

// A block has 8 units and 4·kRows rows; a lane has one unit and kRows rows, a warp an eighth of the depth.
template <int kRows>
__global__ void __launch_bounds__(kStepThreads) forward_step_float32(ForwardStep s) {
  constexpr int kBlockRows = 4 * kRows;
  LSTMFAST_SHARED(float4, partial, [kStepWarps][kBlockRows][kStepUnits]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, lane_unit = lane % kStepUnits, group = lane / kStepUnits;
  const int first_unit = blockIdx.x * kStepUnits, first_row = blockIdx.y * kBlockRows;
  const int padded = padded_hidden(s.problem.hidden), depth = padded / kStepWarps;
  const float4* weights = static_cast<const float4*>(s.packed) + first_unit + lane_unit;
  const float* h = static_cast<const float*>(s.h_before) + static_cast<size_t>(first_row + group * kRows) * padded;
  float sums[kRows][kGateCount] = {};
  for (int k = warp * depth; k < (warp + 1) * depth + LSTMFAST_PLANTED(kStepDepthBound) * 4; k += 4) {
    float4 x[kRows];
#pragma unroll
    for (int row = 0; row < kRows; ++row)
      x[row] = *reinterpret_cast<const float4*>(h + static_cast<size_t>(row) * padded + k);
    const float4* w = weights + static_cast<size_t>(k) * padded;
    const float4 w0 = w[0], w1 = w[padded], w2 = w[2 * padded], w3 = w[3 * padded];
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      add_scaled(sums[row], x[row].x, w0);
      add_scaled(sums[row], x[row].y, w1);
      add_scaled(sums[row], x[row].z, w2);
      add_scaled(sums[row], x[row].w, w3);
    }
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row)
    partial[warp][group * kRows + row][lane_unit] = make_float4(sums[row][0], sums[row][1], sums[row][2], sums[row][3]);
  if (!LSTMFAST_PLANTED(kStepBarrier)) __syncthreads();
  const int cell = threadIdx.x;
  if (cell >= kBlockRows * kStepUnits) return;
  float product[kGateCount] = {};
#pragma unroll
  for (int w = 0; w < kStepWarps; ++w) {
    const float4 part = partial[w][cell / kStepUnits][cell % kStepUnits];
    product[0] += part.x;
    product[1] += part.y;
    product[2] += part.z;
    product[3] += part.w;
  }
  finish_forward_step<float>(s, first_row + cell / kStepUnits, first_unit + cell % kStepUnits, product);
}

__device__ __forceinline__ void store_exchanged(float* at, const float (&d_z)[kGateCount]) {
  *reinterpret_cast<float4*>(at) = make_float4(d_z[0], d_z[1], d_z[2], d_z[3]);
}
__device__ __forceinline__ void store_exchanged(bfloat16* at, const bfloat16 (&d_z)[kGateCount]) {
  *reinterpret_cast<uint2*>(at) = make_uint2(pack_pair(d_z[0], d_z[1]), pack_pair(d_z[2], d_z[3]));
}

template <class T>
__device__ __forceinline__ void finish_backward_step(const BackwardStep& s, int row, int unit, float product) {
  const Problem& p = s.problem;
  if (row >= s.exchanged_rows || unit >= padded_hidden(p.hidden)) return;
  const bool exists = row < p.batch && unit < p.hidden;
  const size_t cell = static_cast<size_t>(row) * p.hidden + unit;
  BackwardState state = {0.0f, 0.0f, false, false};
  if (s.first) {
    state = last_gradients<T>(p, s.arrays, row, unit);
  } else if (exists) {
    const StepKind after = step_kind(p, s.t_after, row, unit);
    state = {s.d_h[cell], s.d_c[cell], after.useful, after.starts_anew};
  }
  take_product(state, product);
  if (s.t < 0) {
    store_first_gradients<T>(p, s.arrays, row, unit, state);
    return;
  }
  const BackwardInput in = load_backward_input<T>(p, s.arrays, s.t, row, unit);
  T d_z[kGateCount];
  retreat_cell<T>(p, s.arrays, s.t, row, unit, in, state, d_z);
  store_exchanged(static_cast<T*>(s.d_z) + (static_cast<size_t>(row) * padded_hidden(p.hidden) + unit) * kGateCount, d_z);
  if (!exists) return;
  s.d_h[cell] = state.d_h;
  s.d_c[cell] = state.d_c;
}

// A lane has 4 units and kRows rows; the 4 groups of 8 lanes in a warp, and the warps, take turns in the depth.
template <int kRows>
__global__ void __launch_bounds__(kStepThreads) backward_step_float32(BackwardStep s) {
  constexpr int kBlockRows = 4 * kRows, kLaneUnits = 4, kTurns = 4 * kStepWarps;
  LSTMFAST_SHARED(float, partial, [kStepWarps][kBlockRows][kStepUnits]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int lane_unit = lane % 2, group = lane / 2 % 4, turn = warp * 4 + lane / 8;
  const int first_unit = blockIdx.x * kStepUnits, first_row = blockIdx.y * kBlockRows;
  const int padded = padded_hidden(s.problem.hidden);
  float sums[kRows][kLaneUnits] = {};
  if (!s.first) {
    const float4* weights = static_cast<const float4*>(s.packed) + first_unit + lane_unit;
    const float4* d_z = static_cast<const float4*>(s.d_z_after) + static_cast<size_t>(first_row + group * kRows) * padded;
    for (int k = turn; k < padded; k += kTurns) {
      float4 x[kRows], w[kLaneUnits];
#pragma unroll
      for (int row = 0; row < kRows; ++row) x[row] = d_z[static_cast<size_t>(row) * padded + k];
#pragma unroll
      for (int j = 0; j < kLaneUnits; ++j) w[j] = weights[static_cast<size_t>(k) * padded + 2 * j];
#pragma unroll
      for (int row = 0; row < kRows; ++row)
#pragma unroll
        for (int j = 0; j < kLaneUnits; ++j) sums[row][j] = dot(x[row], w[j], sums[row][j]);
    }
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row)
#pragma unroll
    for (int j = 0; j < kLaneUnits; ++j) {
      float sum = sums[row][j];
      sum += __shfl_xor_sync(kWholeWarp, sum, 8);
      sum += __shfl_xor_sync(kWholeWarp, sum, 16);
      if (lane < 8) partial[warp][group * kRows + row][lane_unit + 2 * j] = sum;
    }
  if (!LSTMFAST_PLANTED(kStepBarrier)) __syncthreads();
  const int cell = threadIdx.x;
  if (cell >= kBlockRows * kStepUnits) return;
  float product = 0.0f;
#pragma unroll
  for (int w = 0; w < kStepWarps; ++w) product += partial[w][cell / kStepUnits][cell % kStepUnits];
  finish_backward_step<float>(s, first_row + cell / kStepUnits, first_unit + cell % kStepUnits, product);
}

// --- bfloat16 --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint4 exchanged_vector(const void* rows, int depth, int row, int chunk, int lane_part) {
  return *reinterpret_cast<const uint4*>(static_cast<const bfloat16*>(rows) + static_cast<size_t>(row) * depth +
                                         chunk * kChunk + lane_part * 8);
}

// A block has 8 units and up to 4 tiles of 8 rows; warps take turns in the chunks of the depth.
static __global__ void __launch_bounds__(kStepThreads) forward_step_bfloat16(ForwardStep s) {
  LSTMFAST_SHARED(float4, partial, [kStepWarps][kStepTiles][2][32]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, part = lane % 4;
  const int padded = padded_hidden(s.problem.hidden), chunks = padded / kChunk;
  const int first_row = blockIdx.y * kStepTiles * kTileRows;
  const int tiles = min(kStepTiles, (s.exchanged_rows - first_row) / kTileRows);
  const uint4* weights = static_cast<const uint4*>(s.packed) + static_cast<size_t>(blockIdx.x) * chunks * 128 + lane;
  float sums[kStepTiles][2][4] = {};
  for (int chunk = warp; chunk < chunks + LSTMFAST_PLANTED(kStepDepthBound); chunk += kStepWarps) {
    const uint4* w = weights + static_cast<size_t>(chunk) * 128;
    const uint4 w00 = w[0], w01 = w[32], w10 = w[64], w11 = w[96];
#pragma unroll
    for (int tile = 0; tile < kStepTiles; ++tile) {
      if (tile >= tiles) continue;
      const uint4 h = exchanged_vector(s.h_before, padded, first_row + tile * kTileRows + g, chunk, part);
      multiply_accumulate(sums[tile][0], w00, h.x, h.y);
      multiply_accumulate(sums[tile][1], w01, h.x, h.y);
      multiply_accumulate(sums[tile][0], w10, h.z, h.w);
      multiply_accumulate(sums[tile][1], w11, h.z, h.w);
    }
  }
#pragma unroll
  for (int tile = 0; tile < kStepTiles; ++tile) {
    if (tile >= tiles) continue;
#pragma unroll
    for (int m = 0; m < 2; ++m)
      partial[warp][tile][m][lane] = make_float4(sums[tile][m][0], sums[tile][m][1], sums[tile][m][2], sums[tile][m][3]);
  }
  if (!LSTMFAST_PLANTED(kStepBarrier)) __syncthreads();
  if (warp >= tiles) return;
  float4 i_f = {0.0f, 0.0f, 0.0f, 0.0f}, g_o = i_f;  // the gate of its name for rows 2·part and 2·part + 1
#pragma unroll
  for (int w = 0; w < kStepWarps; ++w) {
    const float4 low = partial[w][warp][0][lane], high = partial[w][warp][1][lane];
    i_f = {i_f.x + low.x, i_f.y + low.y, i_f.z + low.z, i_f.w + low.w};
    g_o = {g_o.x + high.x, g_o.y + high.y, g_o.z + high.z, g_o.w + high.w};
  }
  const int row = first_row + warp * kTileRows + 2 * part, unit = blockIdx.x * kForwardTileUnits + g;
  const float first[kGateCount] = {i_f.x, i_f.z, g_o.x, g_o.z}, second[kGateCount] = {i_f.y, i_f.w, g_o.y, g_o.w};
  finish_forward_step<bfloat16>(s, row, unit, first);
  finish_forward_step<bfloat16>(s, row + 1, unit, second);
}

// A block has 16 units and up to 4 tiles of 8 rows.
static __global__ void __launch_bounds__(kStepThreads) backward_step_bfloat16(BackwardStep s) {
  LSTMFAST_SHARED(float4, partial, [kStepWarps][kStepTiles][32]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, part = lane % 4;
  const int depth = kGateCount * padded_hidden(s.problem.hidden), chunks = depth / kChunk;
  const int first_row = blockIdx.y * kStepTiles * kTileRows;
  const int tiles = min(kStepTiles, (s.exchanged_rows - first_row) / kTileRows);
  const uint4* weights = static_cast<const uint4*>(s.packed) + static_cast<size_t>(blockIdx.x) * chunks * 64 + lane;
  float sums[kStepTiles][4] = {};
  for (int chunk = s.first ? chunks : warp; chunk < chunks; chunk += kStepWarps) {
    const uint4 w0 = weights[static_cast<size_t>(chunk) * 64], w1 = weights[static_cast<size_t>(chunk) * 64 + 32];
#pragma unroll
    for (int tile = 0; tile < kStepTiles; ++tile) {
      if (tile >= tiles) continue;
      const uint4 d_z = exchanged_vector(s.d_z_after, depth, first_row + tile * kTileRows + g, chunk, part);
      multiply_accumulate(sums[tile], w0, d_z.x, d_z.y);
      multiply_accumulate(sums[tile], w1, d_z.z, d_z.w);
    }
  }
#pragma unroll
  for (int tile = 0; tile < kStepTiles; ++tile)
    if (tile < tiles) partial[warp][tile][lane] = make_float4(sums[tile][0], sums[tile][1], sums[tile][2], sums[tile][3]);
  if (!LSTMFAST_PLANTED(kStepBarrier)) __syncthreads();
  const int tile = warp / 2, half = warp % 2;  // of the units: rows g and g + 8 of the product
  if (tile >= tiles) return;
  float first = 0.0f, second = 0.0f;
#pragma unroll
  for (int w = 0; w < kStepWarps; ++w) {
    const float4 sum = partial[w][tile][lane];
    first += half ? sum.z : sum.x;
    second += half ? sum.w : sum.y;
  }
  const int row = first_row + tile * kTileRows + 2 * part;
  const int unit = blockIdx.x * kBackwardTileUnits + half * 8 + g;
  finish_backward_step<bfloat16>(s, row, unit, first);
  finish_backward_step<bfloat16>(s, row + 1, unit, second);
}

}  // namespace lstmfast::cuda

// sequence.cuh in float32: one launch for all time steps, weights in registers, true float32 multiply-adds. Tensor
// cores have no float32, so the layout is free: a lane keeps the weights of its values (forward the gates of a
// few units, backward a few units) for `vectors` times 4 depths, and a warp the depths of its 32 lanes. For each row, a
// lane has a partial sum for every value; lanes then exchange halves of them until each sum is complete in one lane.
// The division among blocks, slices, exchange and order of sums are as in sequence.cuh.
#pragma once

#include "cuda/sequence.cuh"

namespace lstmfast::cuda {

// Rows that a lane requests before it waits for the first: as many as leave registers for 4 vectors of weights.
__host__ __device__ constexpr int rows_at_once(int vectors) { return vectors >= 4 ? 2 : 4; }

// The word of an exchanged value.
__device__ __forceinline__ uint32_t word(float value) { return __float_as_uint(handed_on(value)); }

__device__ __forceinline__ float4 as_floats(const uint4& v) {
  return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
}

// The sum over the lanes of a warp of value number lane / (32 / kValues). Lanes exchange halves of their sums and add;
// once each has one value, they only add.
template <int kValues, int kMask = 16>
__device__ __forceinline__ float sum_over_lanes(const float (&sums)[kValues]) {
  if constexpr (kMask == 0) {
    return sums[0];
  } else if constexpr (kValues == 1) {
    const float sum[1] = {sums[0] + __shfl_xor_sync(kWholeWarp, sums[0], kMask)};
    return sum_over_lanes<1, kMask / 2>(sum);
  } else {
    constexpr int kHalf = kValues / 2;
    const bool upper = (threadIdx.x & kMask) != 0;
    float halves[kHalf];
#pragma unroll
    for (int j = 0; j < kHalf; ++j) {
      const float low = sums[j], high = sums[j + kHalf];
      halves[j] = (upper ? high : low) + __shfl_xor_sync(kWholeWarp, upper ? low : high, kMask);
    }
    return sum_over_lanes<kHalf, kMask / 2>(halves);
  }
}

// The position of a warp and a lane in a block.
template <int kUnitWarps, int kDepthWarps>
struct Float32Place {
  int lane, warp, depth_warp, unit_warp, group, block, slice, first_row;

  template <class Arrays>
  __device__ __forceinline__ explicit Float32Place(const Sequence<Arrays>& s)
      : lane(threadIdx.x % 32),
        warp(threadIdx.x / 32),
        depth_warp(warp % kDepthWarps),
        unit_warp(warp / kDepthWarps),
        group(blockIdx.x / s.blocks_per_group),
        block(blockIdx.x % s.blocks_per_group),
        slice(s.first_slice + group),
        first_row(slice * s.exchange.slice_rows) {}

  // The first of the 4 depths of a lane's vector.
  __device__ __forceinline__ int depth(int vector) const { return ((vector * kDepthWarps + depth_warp) * 32 + lane) * 4; }
};

// Products of all rows of a slice with a lane's weights: partial[row][depth warp][value of the block].
template <int kVariantValues, int kVectors, int kDepthWarps, class Exchange, class Place>
__device__ __forceinline__ void multiply_rows(const float4 (&weights)[kVectors][kVariantValues], Exchange& exchange,
                                              const Place& at, int slot, int rows, int depth, int block_values,
                                              float* partial) {
  constexpr int kLanesOfValue = 32 / kVariantValues, kRowsAtOnce = rows_at_once(kVectors);
#pragma unroll 1
  for (int first = 0; first < rows; first += kRowsAtOnce) {
    uint4 x[kRowsAtOnce][kVectors];
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r)
#pragma unroll
      for (int v = 0; v < kVectors; ++v)
        x[r][v] = at.depth(v) < depth + LSTMFAST_PLANTED(kChunkBound) ? exchange.peek(slot, first + r, at.depth(v))
                                                                      : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      float sums[kVariantValues] = {};
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        exchange.await(x[r][v], slot, first + r, at.depth(v));  // zeros past the depth
        const float4 h = as_floats(x[r][v]);
#pragma unroll
        for (int value = 0; value < kVariantValues; ++value) sums[value] = dot(h, weights[v][value], sums[value]);
      }
      const float sum = sum_over_lanes(sums);
      if (at.lane % kLanesOfValue == 0)
        partial[((first + r) * kDepthWarps + at.depth_warp) * block_values + at.unit_warp * kVariantValues +
                at.lane / kLanesOfValue] = sum;
    }
  }
}

template <int kVariant>
__global__ void __launch_bounds__(kForwardFloat32Variants[kVariant].threads(), 1)
    forward_sequence_float32(ForwardSequence s) {
  constexpr Float32Variant v = kForwardFloat32Variants[kVariant];
  constexpr int kLaneUnits = v.values / kGateCount, kBlockUnits = v.unit_warps * kLaneUnits;
  const Problem& p = s.problem;
  const Float32Place<v.unit_warps, v.depth_warps> at(s);
  const int rows = s.exchange.slice_rows, padded = s.exchange.depth;
  LSTMFAST_DYNAMIC_SHARED(float4, shared);
  const int partial_values = rows * v.depth_warps * v.block_values();  // of one buffer
  float* const all_partial = reinterpret_cast<float*>(shared);
  typename ExchangeOf<v.path, float>::Type exchange(s.exchange, at.slice, all_partial + v.buffers() * partial_values);

  float4 weights[v.vectors][v.values];  // of 4 depths
#pragma unroll
  for (int vector = 0; vector < v.vectors; ++vector)
#pragma unroll
    for (int u = 0; u < kLaneUnits; ++u) {
      const int depth = at.depth(vector), unit = at.block * kBlockUnits + at.unit_warp * kLaneUnits + u;
      const bool exists = depth < padded && unit < padded;
      float4 gates[4];  // of one depth
#pragma unroll
      for (int k = 0; k < 4; ++k)
        gates[k] = exists ? as_floats(s.packed[static_cast<size_t>(depth + k) * padded + unit]) : float4{};
      weights[vector][u * kGateCount] = make_float4(gates[0].x, gates[1].x, gates[2].x, gates[3].x);
      weights[vector][u * kGateCount + 1] = make_float4(gates[0].y, gates[1].y, gates[2].y, gates[3].y);
      weights[vector][u * kGateCount + 2] = make_float4(gates[0].z, gates[1].z, gates[2].z, gates[3].z);
      weights[vector][u * kGateCount + 3] = make_float4(gates[0].w, gates[1].w, gates[2].w, gates[3].w);
    }

  // A thread owns one cell of the slice, or none.
  const int own_row = threadIdx.x / kBlockUnits, row = at.first_row + own_row;
  const int own_unit = threadIdx.x % kBlockUnits, unit = at.block * kBlockUnits + own_unit;
  const bool owns = own_row < rows && unit < padded;
  float c = initial_c(p, s.arrays.c0, row, unit), h = 0.0f;
  if (owns && s.exchange.slots > 0)
    h = *first_handed_on<float>(s.exchange, at.slice, own_row, unit);
  exchange.begin();

  for (int step = 0; step < p.time_steps; ++step) {
    const int t = time_of_step(p, step);
    ForwardInput in = {};
    if (owns) in = load_forward_input(p, s.arrays, t, row, unit);
    float* const partial =
        all_partial + (v.buffers() == 2 && !LSTMFAST_PLANTED(kOneBuffer) ? step % 2 : 0) * partial_values;
    multiply_rows<v.values, v.vectors, v.depth_warps>(weights, exchange, at, step, rows, padded, v.block_values(), partial);
    if (!LSTMFAST_PLANTED(kSequenceBarrier)) __syncthreads();
    if (owns) {
      float product[kGateCount] = {};
#pragma unroll
      for (int w = 0; w < v.depth_warps; ++w) {
        const float4 part = reinterpret_cast<const float4*>(
            partial)[(own_row * v.depth_warps + w) * (v.block_values() / kGateCount) + own_unit];
        product[0] += part.x;
        product[1] += part.y;
        product[2] += part.z;
        product[3] += part.w;
      }
      advance_cell<float>(p, s.arrays, t, row, unit, in, product, c, h);
      exchange.publish(step + 1, own_row, unit, word(h));
    }
    exchange.end_step();
  }
  if (owns) store_last_state<float>(p, s.arrays, row, unit, c, h);
}

template <int kVariant>
__global__ void __launch_bounds__(kBackwardFloat32Variants[kVariant].threads(), 1)
    backward_sequence_float32(BackwardSequence s) {
  constexpr Float32Variant v = kBackwardFloat32Variants[kVariant];
  constexpr int kBlockUnits = v.block_values();
  const Problem& p = s.problem;
  const Float32Place<v.unit_warps, v.depth_warps> at(s);
  const int rows = s.exchange.slice_rows, depth = s.exchange.depth, padded = depth / kGateCount;
  LSTMFAST_DYNAMIC_SHARED(float4, shared);
  const int partial_values = rows * v.depth_warps * v.block_values();
  float* const all_partial = reinterpret_cast<float*>(shared);
  typename ExchangeOf<v.path, float>::Type exchange(s.exchange, at.slice, all_partial + v.buffers() * partial_values);

  float4 weights[v.vectors][v.values];  // of the 4 gates of an exchanged unit
#pragma unroll
  for (int vector = 0; vector < v.vectors; ++vector)
#pragma unroll
    for (int u = 0; u < v.values; ++u) {
      const int k = at.depth(vector) / kGateCount, unit = at.block * kBlockUnits + at.unit_warp * v.values + u;
      weights[vector][u] =
          k < padded && unit < padded ? as_floats(s.packed[static_cast<size_t>(k) * padded + unit]) : float4{};
    }

  const int own_row = threadIdx.x / kBlockUnits, row = at.first_row + own_row;
  const int own_unit = threadIdx.x % kBlockUnits, unit = at.block * kBlockUnits + own_unit;
  const bool owns = own_row < rows && unit < padded;
  BackwardState state = last_gradients<float>(p, s.arrays, row, unit);
  exchange.begin();

  for (int step = 0; step <= p.time_steps; ++step) {
    const int t = time_of_step(p, p.time_steps - 1 - step);
    BackwardInput in = {};
    if (owns && step < p.time_steps) in = load_backward_input<float>(p, s.arrays, t, row, unit);
    float* const partial =
        all_partial + (v.buffers() == 2 && !LSTMFAST_PLANTED(kOneBuffer) ? step % 2 : 0) * partial_values;
    if (step > 0) {
      multiply_rows<v.values, v.vectors, v.depth_warps>(weights, exchange, at, step - 1, rows, depth, v.block_values(),
                                                        partial);
      if (!LSTMFAST_PLANTED(kSequenceBarrier)) __syncthreads();
      if (owns) {
        float product = 0.0f;
#pragma unroll
        for (int w = 0; w < v.depth_warps; ++w)
          product += partial[(own_row * v.depth_warps + w) * v.block_values() + own_unit];
        take_product(state, product);
      }
    }
    if (step == p.time_steps) break;
    if (owns) {
      float d_z[kGateCount];
      retreat_cell<float>(p, s.arrays, t, row, unit, in, state, d_z);
      exchange.publish(step, own_row, unit * kGateCount, make_uint2(word(d_z[0]), word(d_z[1])));
      exchange.publish(step, own_row, unit * kGateCount + 2, make_uint2(word(d_z[2]), word(d_z[3])));
    }
    exchange.end_step();
  }
  if (owns) store_first_gradients<float>(p, s.arrays, row, unit, state);
}

}  // namespace lstmfast::cuda

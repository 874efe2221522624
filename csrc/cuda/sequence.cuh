// One launch for all time steps: the recurrent weights and c stay in registers, and only h (backward: the gates'
// gradients) is exchanged, by one of the two classes of exchange.cuh. bfloat16 weights and exchanged rows, float32
// sums. Blocks split units, warps of a block units and depth. Operands are swapped, weights on the left: a lane then
// ends with all gates of its own cells, and gate math needs no exchange. Partial sums of depth warps are added in
// shared memory in the order of warps, so results are reproducible. Slices of the batch are independent groups of
// blocks. All blocks of a group must run at the same time: a cooperative launch or a cluster.
#pragma once

#include "cuda/exchange.cuh"
#include "cuda/plan.h"

namespace lstmfast::cuda {

template <class Arrays>
struct Sequence {
  Problem problem;
  Arrays arrays;
  ExchangeArgs exchange;
  const uint4* packed;
  int blocks_per_group, first_slice;
};
using ForwardSequence = Sequence<ForwardArrays>;
using BackwardSequence = Sequence<BackwardArrays>;

template <int kPath, class T>
struct ExchangeOf;
template <class T>
struct ExchangeOf<LSTMFAST_CUDA_SEQUENCE, T> {
  using Type = GridExchange<T>;
};
template <class T>
struct ExchangeOf<LSTMFAST_CUDA_CLUSTER, T> {
  using Type = ClusterExchange<T>;
};

__device__ __forceinline__ int time_of_step(const Problem& p, int step) {
  return p.reverse ? p.time_steps - 1 - step : step;
}

// Chunks of an exchanged row that a lane requests before it waits for the first: L2 has a long latency, shared memory a
// short one, and each chunk takes 4 registers, of which 16 warps leave few.
LSTMFAST_HOST_DEVICE constexpr int peeks_at_once(const SequenceVariant& v) {
  const int most = v.path == LSTMFAST_CUDA_SEQUENCE ? 4 : v.warps() > 8 ? 1 : 2;
  return v.chunks < most ? v.chunks : most;
}

template <int kVariant>
__global__ void __launch_bounds__(kForwardVariants[kVariant].threads(), 1) forward_sequence(ForwardSequence s) {
  constexpr SequenceVariant v = kForwardVariants[kVariant];
  constexpr int kWarps = v.warps(), kBlockTiles = v.block_tiles();
  constexpr int kItems = (kBlockTiles * v.batch_tiles + kWarps - 1) / kWarps;  // tiles of cells that a warp owns
  const Problem& p = s.problem;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, part = lane % 4;
  const int depth_warp = warp % v.depth_warps, unit_warp = warp / v.depth_warps;
  const int group = blockIdx.x / s.blocks_per_group, block = blockIdx.x % s.blocks_per_group;
  const int slice = s.first_slice + group, first_row = slice * s.exchange.slice_rows;
  const int tiles = s.exchange.slice_rows / kTileRows;
  const int padded = s.exchange.depth, chunks = padded / kChunk, unit_tiles = padded / kForwardTileUnits;

  LSTMFAST_DYNAMIC_SHARED(float4, shared);
  const int partial_vectors = v.depth_warps * kBlockTiles * tiles * 2 * 32;  // of one buffer
  bfloat16* const shared_rows = reinterpret_cast<bfloat16*>(shared + v.buffers() * partial_vectors);
  typename ExchangeOf<v.path, bfloat16>::Type exchange(s.exchange, slice, shared_rows);

  uint4 weights[v.chunks][2][v.unit_tiles][2];  // [..][product][..][m]
#pragma unroll
  for (int c = 0; c < v.chunks; ++c)
#pragma unroll
    for (int u = 0; u < v.unit_tiles; ++u) {
      const int chunk = c * v.depth_warps + depth_warp, tile = (block * v.unit_warps + unit_warp) * v.unit_tiles + u;
      const bool exists = chunk < chunks && tile < unit_tiles;
      const uint4* fragment = s.packed + (static_cast<size_t>(tile) * chunks + chunk) * 128 + lane;
#pragma unroll
      for (int product = 0; product < 2; ++product)
#pragma unroll
        for (int m = 0; m < 2; ++m)
          weights[c][product][u][m] = exists ? fragment[(product * 2 + m) * 32] : make_uint4(0, 0, 0, 0);
    }

  // An item is a tile of 8 units and 8 rows; a lane has unit g of it and rows 2·part and 2·part + 1.
  const auto unit_of = [&](int item) { return (block * kBlockTiles + item % kBlockTiles) * kForwardTileUnits + g; };
  const auto row_of = [&](int item) { return item / kBlockTiles * kTileRows + 2 * part; };  // within the slice
  float c_state[kItems][2];
  bfloat16 h_state[kItems][2];
#pragma unroll
  for (int i = 0; i < kItems; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int item = warp + i * kWarps, row = row_of(item) + j, unit = unit_of(item);
      c_state[i][j] = initial_c(p, s.arrays.c0, first_row + row, unit);
      h_state[i][j] = from_float<bfloat16>(0.0f);
      if (item < kBlockTiles * tiles && unit < padded && s.exchange.slots > 0)
        h_state[i][j] = *first_handed_on<bfloat16>(s.exchange, slice, row, unit);
    }
  exchange.begin();

  for (int step = 0; step < p.time_steps; ++step) {
    const int t = time_of_step(p, step);
    ForwardInput in[kItems][2];  // requested before the wait for h
#pragma unroll
    for (int i = 0; i < kItems; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int item = warp + i * kWarps;
        if (item < kBlockTiles * tiles)
          in[i][j] = load_forward_input(p, s.arrays, t, first_row + row_of(item) + j, unit_of(item));
      }

    float4* const partial = shared + (v.buffers() == 2 && !LSTMFAST_PLANTED(kOneBuffer) ? step % 2 : 0) * partial_vectors;
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      const int row = tile * kTileRows + g;
      float sums[v.unit_tiles][2][4] = {};
      constexpr int kAtOnce = peeks_at_once(v);
#pragma unroll
      for (int first = 0; first < v.chunks; first += kAtOnce) {
        uint4 h[kAtOnce];
#pragma unroll
        for (int c = 0; c < kAtOnce; ++c) {
          const int chunk = (first + c) * v.depth_warps + depth_warp;
          if (chunk < chunks + LSTMFAST_PLANTED(kChunkBound)) h[c] = exchange.peek(step, row, chunk * kChunk + part * 8);
        }
#pragma unroll
        for (int c = 0; c < kAtOnce; ++c) {
          const int chunk = (first + c) * v.depth_warps + depth_warp;
          if (chunk >= chunks) continue;
          exchange.await(h[c], step, row, chunk * kChunk + part * 8);
#pragma unroll
          for (int u = 0; u < v.unit_tiles; ++u) {
            multiply_accumulate(sums[u][0], weights[first + c][0][u][0], h[c].x, h[c].y);
            multiply_accumulate(sums[u][1], weights[first + c][0][u][1], h[c].x, h[c].y);
            multiply_accumulate(sums[u][0], weights[first + c][1][u][0], h[c].z, h[c].w);
            multiply_accumulate(sums[u][1], weights[first + c][1][u][1], h[c].z, h[c].w);
          }
        }
      }
#pragma unroll
      for (int u = 0; u < v.unit_tiles; ++u)
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const int item = tile * kBlockTiles + unit_warp * v.unit_tiles + u;
          partial[((item * v.depth_warps + depth_warp) * 2 + m) * 32 + lane] =
              make_float4(sums[u][m][0], sums[u][m][1], sums[u][m][2], sums[u][m][3]);
        }
    }
    if (!LSTMFAST_PLANTED(kSequenceBarrier)) __syncthreads();

#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int item = warp + i * kWarps;
      if (item >= kBlockTiles * tiles) continue;
      float product[2][kGateCount] = {};
#pragma unroll
      for (int w = 0; w < v.depth_warps; ++w) {
        const float4 i_f = partial[((item * v.depth_warps + w) * 2) * 32 + lane];
        const float4 g_o = partial[((item * v.depth_warps + w) * 2 + 1) * 32 + lane];
        product[0][0] += i_f.x;
        product[1][0] += i_f.y;
        product[0][1] += i_f.z;
        product[1][1] += i_f.w;
        product[0][2] += g_o.x;
        product[1][2] += g_o.y;
        product[0][3] += g_o.z;
        product[1][3] += g_o.w;
      }
      const int unit = unit_of(item), row = row_of(item);
#pragma unroll
      for (int j = 0; j < 2; ++j)
        advance_cell<bfloat16>(p, s.arrays, t, first_row + row + j, unit, in[i][j], product[j], c_state[i][j],
                               h_state[i][j]);
      // Lanes of neighbouring units swap to get a pair each: the even unit's lane of the first row, the odd one's of
      // the second.
      const bool odd = g % 2;
      const float first = to_float(h_state[i][0]), second = to_float(h_state[i][1]), kept = odd ? second : first;
      const float given = __shfl_xor_sync(kWholeWarp, odd ? first : second, 4);
      const bfloat16 low = from_float<bfloat16>(odd ? given : kept), high = from_float<bfloat16>(odd ? kept : given);
      if (unit < padded) exchange.publish(step + 1, row + odd, unit & ~1, pack_pair(low, high));
    }
    exchange.end_step();
  }

#pragma unroll
  for (int i = 0; i < kItems; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int item = warp + i * kWarps;
      if (item < kBlockTiles * tiles)
        store_last_state<bfloat16>(p, s.arrays, first_row + row_of(item) + j, unit_of(item), c_state[i][j], h_state[i][j]);
    }
}

template <int kVariant>
__global__ void __launch_bounds__(kBackwardVariants[kVariant].threads(), 1) backward_sequence(BackwardSequence s) {
  constexpr SequenceVariant v = kBackwardVariants[kVariant];
  static_assert(v.unit_tiles == 1, "a warp has one tile of 16 units");
  // Cells are owned in halves of a tile, 8 units: as many per lane as forward.
  constexpr int kWarps = v.warps(), kBlockTiles = v.block_tiles(), kBlockHalves = 2 * kBlockTiles;
  constexpr int kItems = (kBlockHalves * v.batch_tiles + kWarps - 1) / kWarps;
  const Problem& p = s.problem;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, part = lane % 4;
  const int depth_warp = warp % v.depth_warps, unit_warp = warp / v.depth_warps;
  const int group = blockIdx.x / s.blocks_per_group, block = blockIdx.x % s.blocks_per_group;
  const int slice = s.first_slice + group, first_row = slice * s.exchange.slice_rows;
  const int tiles = s.exchange.slice_rows / kTileRows;
  const int padded = s.exchange.depth / kGateCount, chunks = s.exchange.depth / kChunk;
  const int unit_tiles = padded / kBackwardTileUnits;

  LSTMFAST_DYNAMIC_SHARED(float4, shared);
  const int partial_vectors = v.depth_warps * kBlockTiles * tiles * 32;
  bfloat16* const shared_rows = reinterpret_cast<bfloat16*>(shared + v.buffers() * partial_vectors);
  typename ExchangeOf<v.path, bfloat16>::Type exchange(s.exchange, slice, shared_rows);

  uint4 weights[v.chunks][2];
  const int weight_tile = block * v.unit_warps + unit_warp;
#pragma unroll
  for (int c = 0; c < v.chunks; ++c) {
    const int chunk = c * v.depth_warps + depth_warp;
    const bool exists = chunk < chunks && weight_tile < unit_tiles;
    const uint4* fragment = s.packed + (static_cast<size_t>(weight_tile) * chunks + chunk) * 64 + lane;
    weights[c][0] = exists ? fragment[0] : make_uint4(0, 0, 0, 0);
    weights[c][1] = exists ? fragment[32] : make_uint4(0, 0, 0, 0);
  }

  const auto unit_of = [&](int item) { return (block * kBlockHalves + item % kBlockHalves) * 8 + g; };
  const auto row_of = [&](int item) { return item / kBlockHalves * kTileRows + 2 * part; };
  BackwardState state[kItems][2];
#pragma unroll
  for (int i = 0; i < kItems; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int item = warp + i * kWarps;
      state[i][j] = last_gradients<bfloat16>(p, s.arrays, first_row + row_of(item) + j, unit_of(item));
    }
  exchange.begin();

  // Backward step `step` reverses the `step`-th step from the end; one more iteration computes the product for d_h0.
  for (int step = 0; step <= p.time_steps; ++step) {
    const int t = time_of_step(p, p.time_steps - 1 - step);
    BackwardInput in[kItems][2];
#pragma unroll
    for (int i = 0; i < kItems; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int item = warp + i * kWarps;
        if (item < kBlockHalves * tiles && step < p.time_steps)
          in[i][j] = load_backward_input<bfloat16>(p, s.arrays, t, first_row + row_of(item) + j, unit_of(item));
      }

    float4* const partial = shared + (v.buffers() == 2 && !LSTMFAST_PLANTED(kOneBuffer) ? step % 2 : 0) * partial_vectors;
    if (step > 0) {
#pragma unroll 1
      for (int tile = 0; tile < tiles; ++tile) {
        const int row = tile * kTileRows + g;
        float even[4] = {}, odd[4] = {};  // two sums, because each product waits for the previous one of its sum
        constexpr int kAtOnce = peeks_at_once(v);
#pragma unroll
        for (int first = 0; first < v.chunks; first += kAtOnce) {
          uint4 d_z[kAtOnce];
#pragma unroll
          for (int c = 0; c < kAtOnce; ++c) {
            const int chunk = (first + c) * v.depth_warps + depth_warp;
            if (chunk < chunks + LSTMFAST_PLANTED(kChunkBound)) d_z[c] = exchange.peek(step - 1, row, chunk * kChunk + part * 8);
          }
#pragma unroll
          for (int c = 0; c < kAtOnce; ++c) {
            const int chunk = (first + c) * v.depth_warps + depth_warp;
            if (chunk >= chunks) continue;
            exchange.await(d_z[c], step - 1, row, chunk * kChunk + part * 8);
            multiply_accumulate(even, weights[first + c][0], d_z[c].x, d_z[c].y);
            multiply_accumulate(odd, weights[first + c][1], d_z[c].z, d_z[c].w);
          }
        }
        partial[((tile * kBlockTiles + unit_warp) * v.depth_warps + depth_warp) * 32 + lane] =
            make_float4(even[0] + odd[0], even[1] + odd[1], even[2] + odd[2], even[3] + odd[3]);
      }
      if (!LSTMFAST_PLANTED(kSequenceBarrier)) __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int item = warp + i * kWarps;
      if (item >= kBlockHalves * tiles) continue;
      const int unit = unit_of(item), row = row_of(item);
      if (step > 0) {
        const bool half = item % 2;  // rows g or g + 8 of the product
        float first = 0.0f, second = 0.0f;
#pragma unroll
        for (int w = 0; w < v.depth_warps; ++w) {
          const float4 sum = partial[(item / 2 * v.depth_warps + w) * 32 + lane];
          first += half ? sum.z : sum.x;
          second += half ? sum.w : sum.y;
        }
        take_product(state[i][0], first);
        take_product(state[i][1], second);
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (step == p.time_steps) {
          store_first_gradients<bfloat16>(p, s.arrays, first_row + row + j, unit, state[i][j]);
          continue;
        }
        bfloat16 d_z[kGateCount];
        retreat_cell<bfloat16>(p, s.arrays, t, first_row + row + j, unit, in[i][j], state[i][j], d_z);
        if (unit < padded)
          exchange.publish(step, row + j, unit * kGateCount, make_uint2(pack_pair(d_z[0], d_z[1]), pack_pair(d_z[2], d_z[3])));
      }
    }
    if (step < p.time_steps) exchange.end_step();
  }
}

}  // namespace lstmfast::cuda

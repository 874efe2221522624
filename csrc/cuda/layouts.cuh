// The layouts of weights and exchanged rows while a sequence runs, and the kernel that writes them before. All sizes
// are padded with zeros to whole vectors of 16 bytes and whole tiles, so no other kernel handles a partial depth.
//
//   padded_hidden     hidden_size rounded up to 32
//   exchanged rows    forward: h, [padded_hidden]; backward: gradients of z, [padded_hidden][4]: the gates of a unit are
//                     adjacent, so one store publishes them
//   depth             length of an exchanged row, over which a product sums
//
//   float32 weights   [k][unit][4]: forward k is a depth and 4 are the gates of the unit; backward k is a unit of the
//                     exchanged row and 4 are its gates
//   bfloat16 weights  fragments of multiply_accumulate as lanes hold them: [tile][chunk of 32 depths][2][m][lane] of 16
//                     bytes. Lane 4g + t owns the depths 8t..8t + 7 of a chunk, four in each of its 2 products: any
//                     order of depths that both factors share will do, and this one makes a lane's loads of an
//                     exchanged row 16 bytes long.
//                     forward: a tile is 8 units; m = 0 has their gates i (rows g), f (rows g + 8), m = 1 has g, o: a lane
//                     ends with all four gates of its unit. backward: a tile is 16 units, one m.
#pragma once

#include "cuda/cell.cuh"

namespace lstmfast::cuda {

constexpr int kHiddenPadding = 32, kChunk = 32, kForwardTileUnits = 8, kBackwardTileUnits = 16, kTileRows = 8;
constexpr int kVectorBytes = 16;

__host__ __device__ constexpr int round_up(int value, int multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
__host__ __device__ constexpr int padded_hidden(int hidden) { return round_up(hidden, kHiddenPadding); }

// What the first kernel of a call writes: packed weights, the exchanged rows of slot 0, the fill of the other slots.
struct PrepareArgs {
  int hidden, batch;
  const void* recurrent_kernel;  // [hidden, 4*hidden]
  int64_t stride;
  const void* h0;         // [batch, hidden] or null; forward only
  void* packed;
  int64_t packed_vectors;
  void* exchange;         // [slices][slots][slice_rows][depth]
  int64_t exchange_vectors;
  int slots, slice_rows, depth;
  uint32_t fill;          // of slots other than 0, and of slot 0 too if `fill_first`
  int fill_first;
  uint32_t* status;
};

template <class T>
__device__ __forceinline__ T weight(const PrepareArgs& a, int row, int gate, int unit) {
  if (row >= a.hidden || unit >= a.hidden) return from_float<T>(0.0f);
  return static_cast<const T*>(a.recurrent_kernel)[row * a.stride + static_cast<int64_t>(gate) * a.hidden + unit];
}

template <class T>
struct ForwardWeights;
template <class T>
struct BackwardWeights;

template <>
struct ForwardWeights<float> {
  static __device__ __forceinline__ uint4 vector(const PrepareArgs& a, int64_t at) {
    const int padded = padded_hidden(a.hidden), k = static_cast<int>(at / padded), unit = static_cast<int>(at % padded);
    return {__float_as_uint(weight<float>(a, k, 0, unit)), __float_as_uint(weight<float>(a, k, 1, unit)),
            __float_as_uint(weight<float>(a, k, 2, unit)), __float_as_uint(weight<float>(a, k, 3, unit))};
  }
};

template <>
struct BackwardWeights<float> {
  static __device__ __forceinline__ uint4 vector(const PrepareArgs& a, int64_t at) {
    const int padded = padded_hidden(a.hidden), k = static_cast<int>(at / padded), unit = static_cast<int>(at % padded);
    return {__float_as_uint(weight<float>(a, unit, 0, k)), __float_as_uint(weight<float>(a, unit, 1, k)),
            __float_as_uint(weight<float>(a, unit, 2, k)), __float_as_uint(weight<float>(a, unit, 3, k))};
  }
};

template <>
struct ForwardWeights<bfloat16> {
  static __device__ __forceinline__ uint32_t pair(const PrepareArgs& a, int k, int gate, int unit) {
    return pack_pair(weight<bfloat16>(a, k, gate, unit), weight<bfloat16>(a, k + 1, gate, unit));
  }
  static __device__ __forceinline__ uint4 vector(const PrepareArgs& a, int64_t at) {
    const int lane = at % 32, m = at / 32 % 2, product = at / 64 % 2;
    const int64_t chunk_of_tile = at / 128;
    const int chunks = padded_hidden(a.hidden) / kChunk;
    const int chunk = static_cast<int>(chunk_of_tile % chunks), tile = static_cast<int>(chunk_of_tile / chunks);
    const int unit = tile * kForwardTileUnits + lane / 4, k = chunk * kChunk + lane % 4 * 8 + product * 4;
    return {pair(a, k, 2 * m, unit), pair(a, k, 2 * m + 1, unit), pair(a, k + 2, 2 * m, unit),
            pair(a, k + 2, 2 * m + 1, unit)};
  }
};

template <>
struct BackwardWeights<bfloat16> {
  static __device__ __forceinline__ uint32_t pair(const PrepareArgs& a, int unit, int gate, int k) {
    return pack_pair(weight<bfloat16>(a, unit, gate, k), weight<bfloat16>(a, unit, gate + 1, k));
  }
  static __device__ __forceinline__ uint4 vector(const PrepareArgs& a, int64_t at) {
    const int lane = at % 32, product = at / 32 % 2;
    const int64_t chunk_of_tile = at / 64;
    const int chunks = kGateCount * padded_hidden(a.hidden) / kChunk;
    const int chunk = static_cast<int>(chunk_of_tile % chunks), tile = static_cast<int>(chunk_of_tile / chunks);
    const int unit = tile * kBackwardTileUnits + lane / 4, k = chunk * (kChunk / kGateCount) + lane % 4 * 2 + product;
    return {pair(a, unit, 0, k), pair(a, unit + 8, 0, k), pair(a, unit, 2, k), pair(a, unit + 8, 2, k)};
  }
};

// Element `k` of the first exchanged row of a batch row.
template <class T>
__device__ __forceinline__ T first_exchanged(const PrepareArgs& a, int row, int k) {
  if (a.h0 == nullptr || row >= a.batch || k >= a.hidden) return from_float<T>(0.0f);
  const T value = static_cast<const T*>(a.h0)[static_cast<int64_t>(row) * a.hidden + k];
  if (LSTMFAST_PLANTED(kRawInitialState)) return value;
  return handed_on(value);
}

template <class T>
__device__ __forceinline__ uint4 first_exchanged_vector(const PrepareArgs& a, int row, int k) {
  union {
    T values[kVectorBytes / sizeof(T)];
    uint4 vector;
  } out;
#pragma unroll
  for (int j = 0; j < static_cast<int>(kVectorBytes / sizeof(T)); ++j) out.values[j] = first_exchanged<T>(a, row, k + j);
  return out.vector;
}

constexpr int kPrepareThreads = 256;

template <class T, class Weights>
__global__ void __launch_bounds__(kPrepareThreads) prepare(PrepareArgs a) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kPrepareThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kPrepareThreads;
  if (thread == 0) *a.status = 0;
  for (int64_t at = thread; at < a.packed_vectors; at += threads)
    static_cast<uint4*>(a.packed)[at] = Weights::vector(a, at);
  const int row_vectors = a.depth * static_cast<int>(sizeof(T)) / kVectorBytes;
  for (int64_t at = thread; at < a.exchange_vectors; at += threads) {
    const int64_t row_of_all = at / row_vectors, slot_of_all = row_of_all / a.slice_rows;
    uint4 vector = {a.fill, a.fill, a.fill, a.fill};
    if (slot_of_all % a.slots == 0 && !a.fill_first) {
      const int row = static_cast<int>(slot_of_all / a.slots * a.slice_rows + row_of_all % a.slice_rows);
      vector = first_exchanged_vector<T>(a, row, static_cast<int>(at % row_vectors * (kVectorBytes / sizeof(T))));
    }
    if (LSTMFAST_PLANTED(kUnfilledSlots) && slot_of_all % a.slots != 0) vector = {0, 0, 0, 0};
    static_cast<uint4*>(a.exchange)[at] = vector;
  }
}

}  // namespace lstmfast::cuda

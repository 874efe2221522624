// How the blocks that share a sequence exchange the rows of a step. Two classes with one interface:
//
//   peek, await   16 bytes of an exchanged row of a slot: request, then wait
//   publish       words of the block's own units, into the rows of a slot
//   end_step      between the last publish of a step and the first peek of the next
//
// GridExchange: through L2, between any blocks that run at the same time. A slot of its own for every step is filled
// with ones before the launch, a NaN that `handed_on` never makes: every value is its own flag, so there is no barrier,
// no fence and no order between words. A word that does not arrive within the spin limit sets the status and is used as
// it is, NaN: results are NaN from there on, in every block, and nothing hangs.
// ClusterExchange: through the shared memory of one block or one cluster, two alternating slots, one barrier per step.
#pragma once

#include "cuda/layouts.cuh"
#include "cuda/plan.h"

namespace lstmfast::cuda {

constexpr uint32_t kAbsent = 0xffffffffu;  // a float, or a pair of bfloat16, that has not been published
constexpr int kStatusInterval = 256;       // polls between checks whether another block has given up

struct ExchangeArgs {
  void* rows;  // [slices][slots][slice_rows][depth]
  int slots, slice_rows, depth;
  int cluster_size;
  int spin_limit;
  uint32_t* status;
};

// The address of an element of slot 0 of a slice, written by `prepare`.
template <class T>
__device__ __forceinline__ const T* first_handed_on(const ExchangeArgs& args, int slice, int row, int element) {
  const size_t row_of_all = static_cast<size_t>(slice) * args.slots * args.slice_rows + row;
  return static_cast<const T*>(args.rows) + row_of_all * args.depth + element;
}

template <class T>
__device__ __forceinline__ bool is_present(uint32_t word) {
  return word != kAbsent;
}
template <>
__device__ __forceinline__ bool is_present<bfloat16>(uint32_t pair) {
  return (pair & 0xffffu) != 0xffffu && pair >> 16 != 0xffffu;
}
template <class T>
__device__ __forceinline__ bool is_present(const uint4& v) {
  if (LSTMFAST_PLANTED(kHalfChecked)) return is_present<T>(v.x) && is_present<T>(v.y);
  return is_present<T>(v.x) && is_present<T>(v.y) && is_present<T>(v.z) && is_present<T>(v.w);
}

template <class T>
class GridExchange {
 public:
  __device__ __forceinline__ GridExchange(const ExchangeArgs& args, int slice, T*)
      : args_(args),
        rows_(const_cast<T*>(first_handed_on<T>(args, slice, 0, 0))),
        given_up_(false) {}

  __device__ __forceinline__ void begin() {}

  __device__ __forceinline__ uint4 peek(int slot, int row, int element) const {
    return load_relaxed_128(at(slot, row, element));
  }

  // All lanes of a warp call this together and return together.
  __device__ __forceinline__ void await(uint4& v, int slot, int row, int element) {
    if (LSTMFAST_PLANTED(kNotAwaited)) return;
    const T* address = at(slot, row, element);
    for (int spins = 0; !is_present<T>(v) && !given_up_; ++spins) {
      if (spins >= args_.spin_limit) {
        store_relaxed_32(args_.status, LSTMFAST_CUDA_STATUS_SPIN_LIMIT);
        given_up_ = true;
      } else if (spins % kStatusInterval == kStatusInterval - 1) {
        given_up_ = load_relaxed_32(args_.status) != LSTMFAST_CUDA_STATUS_GOOD;
      }
      pause_between_polls();
      v = load_relaxed_128(address);
    }
    __syncwarp();
  }

  __device__ __forceinline__ void publish(int slot, int row, int first, uint32_t word) {
    if (LSTMFAST_PLANTED(kUnpublished) && blockIdx.x == 0 && row == 0) return;
    store_relaxed_32(at(slot, row, first), word);
  }
  __device__ __forceinline__ void publish(int slot, int row, int first, uint2 words) {
    if (LSTMFAST_PLANTED(kUnpublished) && blockIdx.x == 0 && row == 0) return;
    store_relaxed_64(at(slot, row, first), words);
  }

  __device__ __forceinline__ void end_step() {}

 private:
  __device__ __forceinline__ T* at(int slot, int row, int element) const {
    return rows_ + (static_cast<size_t>(slot) * args_.slice_rows + row) * args_.depth + element;
  }

  const ExchangeArgs& args_;
  T* rows_;
  bool given_up_;
};

template <class T>
class ClusterExchange {
 public:
  __device__ __forceinline__ ClusterExchange(const ExchangeArgs& args, int slice, T* shared)
      : args_(args),
        first_rows_(first_handed_on<T>(args, slice, 0, 0)),
        shared_(shared),
        stride_(shared_row_stride(args.depth, sizeof(T))) {}

  // Loads slot 0 if it was prepared; afterwards every block may be written to.
  __device__ __forceinline__ void begin() {
    constexpr int kElements = kVectorBytes / sizeof(T);
    const int row_vectors = args_.depth / kElements;
    for (int v = threadIdx.x; args_.slots > 0 && v < args_.slice_rows * row_vectors; v += blockDim.x) {
      const int row = v / row_vectors, element = v % row_vectors * kElements;
      *reinterpret_cast<uint4*>(at(0, row, element)) =
          *reinterpret_cast<const uint4*>(first_rows_ + static_cast<size_t>(row) * args_.depth + element);
    }
    if (!LSTMFAST_PLANTED(kClusterBegin)) synchronize();
  }

  __device__ __forceinline__ uint4 peek(int slot, int row, int element) const {
    return *reinterpret_cast<const uint4*>(at(slot, row, element));
  }
  __device__ __forceinline__ void await(uint4&, int, int, int) {}

  template <class Words>
  __device__ __forceinline__ void publish(int slot, int row, int first, Words words) {
    Words* own = reinterpret_cast<Words*>(at(slot, row, first));
    if (args_.cluster_size == 1) {
      *own = words;
      return;
    }
#if !defined(__CUDACC__) || __CUDA_ARCH__ >= 900
    const auto cluster = cooperative_groups::this_cluster();
    for (int rank = 0; rank < args_.cluster_size - LSTMFAST_PLANTED(kLastRank); ++rank)
      *cluster.map_shared_rank(own, rank) = words;
#endif
  }

  __device__ __forceinline__ void end_step() {
    if (!LSTMFAST_PLANTED(kClusterEndStep)) synchronize();
  }

 private:
  __device__ __forceinline__ T* at(int slot, int row, int element) const {
    return shared_ + static_cast<size_t>((slot % 2) * args_.slice_rows + row) * stride_ + element;
  }

  __device__ __forceinline__ void synchronize() {
#if !defined(__CUDACC__) || __CUDA_ARCH__ >= 900
    if (args_.cluster_size > 1) {
      cooperative_groups::this_cluster().sync();
      return;
    }
#endif
    __syncthreads();
  }

  const ExchangeArgs& args_;
  const T* first_rows_;
  T* shared_;
  int stride_;
};

}  // namespace lstmfast::cuda

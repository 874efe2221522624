// How the blocks that share a sequence hand one another the rows of a step. Two ways with the same face:
//
//   peek, await   16 bytes of an exchanged row of a slot, asked for and then there
//   publish       words of the own units into the rows of a slot
//   end_step      between the last publish of a step and the first peek of the next
//
// GridExchange: through L2, between any blocks that run at the same time. A slot of its own for every step is filled with
// 0xFFFF before the launch, a NaN that rounding to bfloat16 never makes: every word is its own flag, so there is no
// barrier, no fence and no order between words. A word that does not come within the spin limit sets the status and is
// taken for what it is, NaN: results are then NaN from there on, in every block, and nothing hangs.
// ClusterExchange: through the shared memory of one block or one cluster, two slots in turn, a barrier a step.
#pragma once

#include "cuda/layouts.cuh"
#include "cuda/lstmfast_cuda.h"

namespace lstmfast::cuda {

constexpr uint32_t kAbsent = 0xffffffffu;  // a pair of words that have not been published
constexpr int kStatusInterval = 256;       // polls between two looks at whether another block has given up

struct ExchangeArgs {
  bfloat16* rows;  // [slices][slots][slice_rows][depth]
  int slots, slice_rows, depth;
  int cluster_size;
  int spin_limit;
  uint32_t* status;
};

__device__ __forceinline__ bool is_present(uint32_t pair) {
  return (pair & 0xffffu) != 0xffffu && pair >> 16 != 0xffffu;
}
__device__ __forceinline__ bool is_present(const uint4& v) {
  if (LSTMFAST_PLANTED(kHalfChecked)) return is_present(v.x) && is_present(v.y);
  return is_present(v.x) && is_present(v.y) && is_present(v.z) && is_present(v.w);
}

class GridExchange {
 public:
  __device__ __forceinline__ GridExchange(const ExchangeArgs& args, int slice, bfloat16*)
      : args_(args),
        rows_(args.rows + static_cast<size_t>(slice) * args.slots * args.slice_rows * args.depth),
        given_up_(false) {}

  __device__ __forceinline__ void begin() {}

  __device__ __forceinline__ uint4 peek(int slot, int row, int chunk, int part) const {
    return load_relaxed_128(at(slot, row, chunk * kChunk + part * 8));
  }

  // All lanes of a warp come here together and leave together.
  __device__ __forceinline__ void await(uint4& v, int slot, int row, int chunk, int part) {
    if (LSTMFAST_PLANTED(kNotAwaited)) return;
    const bfloat16* address = at(slot, row, chunk * kChunk + part * 8);
    for (int spins = 0; !is_present(v) && !given_up_; ++spins) {
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
  __device__ __forceinline__ bfloat16* at(int slot, int row, int element) const {
    return rows_ + (static_cast<size_t>(slot) * args_.slice_rows + row) * args_.depth + element;
  }

  const ExchangeArgs& args_;
  bfloat16* rows_;
  bool given_up_;
};

class ClusterExchange {
 public:
  __device__ __forceinline__ ClusterExchange(const ExchangeArgs& args, int slice, bfloat16* shared)
      : args_(args),
        first_rows_(args.rows + static_cast<size_t>(slice) * args.slots * args.slice_rows * args.depth),
        shared_(shared),
        stride_(args.depth % 64 == 0 ? args.depth + 32 : args.depth) {}

  // Slot 0 as it was prepared, if it was; then every block may be written to.
  __device__ __forceinline__ void begin() {
    const int row_vectors = args_.depth / 8;
    for (int v = threadIdx.x; args_.slots > 0 && v < args_.slice_rows * row_vectors; v += blockDim.x) {
      const int row = v / row_vectors, element = v % row_vectors * 8;
      *reinterpret_cast<uint4*>(at(0, row, element)) =
          *reinterpret_cast<const uint4*>(first_rows_ + static_cast<size_t>(row) * args_.depth + element);
    }
    if (!LSTMFAST_PLANTED(kClusterBegin)) synchronize();
  }

  __device__ __forceinline__ uint4 peek(int slot, int row, int chunk, int part) const {
    return *reinterpret_cast<const uint4*>(at(slot, row, chunk * kChunk + part * 8));
  }
  __device__ __forceinline__ void await(uint4&, int, int, int, int) {}

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
  __device__ __forceinline__ bfloat16* at(int slot, int row, int element) const {
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
  const bfloat16* first_rows_;
  bfloat16* shared_;
  int stride_;
};

}  // namespace lstmfast::cuda

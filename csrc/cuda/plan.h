// Which kernel runs a sequence, in how many blocks, and where everything lies in its workspace. Pure functions of the
// device's properties and the problem's shape: no CUDA call, so that every decision is tested without a GPU.
#pragma once

#include <cstdint>

#include "cuda/lstmfast_cuda.h"

#ifdef __CUDACC__
#define LSTMFAST_HOST_DEVICE __host__ __device__
#else
#define LSTMFAST_HOST_DEVICE
#endif

namespace lstmfast::cuda {

constexpr int kMostHidden = 2048;
constexpr int kStatusBytes = 256;  // of the workspace's head; its first word is the status

// How the warps of a block share a product whose weights stay in registers: `unit_warps` times `depth_warps` warps; a warp
// holds `unit_tiles` tiles of units (forward 8 units, backward 16) and `chunks` chunks of 32 depths of them, and there are
// registers for `batch_tiles` tiles of 8 rows' cells.
struct SequenceVariant {
  int path;
  int unit_warps, depth_warps, chunks, unit_tiles, batch_tiles;

  LSTMFAST_HOST_DEVICE constexpr int warps() const { return unit_warps * depth_warps; }
  LSTMFAST_HOST_DEVICE constexpr int threads() const { return 32 * warps(); }
  LSTMFAST_HOST_DEVICE constexpr int block_tiles() const { return unit_warps * unit_tiles; }
  LSTMFAST_HOST_DEVICE constexpr int most_depth() const { return depth_warps * chunks * 32; }
  LSTMFAST_HOST_DEVICE constexpr int buffers() const { return path == LSTMFAST_CUDA_SEQUENCE ? 2 : 1; }
};

// A lane's weights take 16·chunks·unit_tiles registers forward and 8·chunks·unit_tiles backward. 65,536 registers of an SM
// leave a thread 255 with 8 warps and 128 with 16.
constexpr SequenceVariant kForwardVariants[] = {
    {LSTMFAST_CUDA_CLUSTER, 4, 2, 1, 2, 2},   // 64 units in one block
    {LSTMFAST_CUDA_CLUSTER, 8, 2, 2, 2, 1},   // 128 units in one block
    {LSTMFAST_CUDA_CLUSTER, 4, 2, 8, 1, 2},   // 512 units, 32 a block
    {LSTMFAST_CUDA_SEQUENCE, 1, 8, 2, 1, 4},  // 512 units, 8 a block
    {LSTMFAST_CUDA_SEQUENCE, 1, 8, 4, 1, 4},  // 1,024 units, 8 a block
    {LSTMFAST_CUDA_SEQUENCE, 1, 8, 4, 2, 4},  // 1,024 units, 16 a block: devices of fewer SMs
};
constexpr SequenceVariant kBackwardVariants[] = {
    {LSTMFAST_CUDA_CLUSTER, 4, 2, 4, 1, 2},    // 64 units in one block
    {LSTMFAST_CUDA_CLUSTER, 8, 1, 16, 1, 1},   // 128 units in one block
    {LSTMFAST_CUDA_CLUSTER, 2, 4, 16, 1, 2},   // 512 units, 32 a block
    {LSTMFAST_CUDA_SEQUENCE, 1, 8, 16, 1, 4},  // 1,024 units, 16 a block
};
constexpr int kForwardVariantCount = sizeof kForwardVariants / sizeof kForwardVariants[0];
constexpr int kBackwardVariantCount = sizeof kBackwardVariants / sizeof kBackwardVariants[0];

enum Direction { kForward, kBackward };

constexpr int tile_units(Direction direction) { return direction == kForward ? 8 : 16; }
// Values that a lane has of one product of a tile of units with 8 rows, in float4.
constexpr int tile_vectors(Direction direction) { return direction == kForward ? 2 : 1; }

// Rows of h that blocks keep in shared memory lie this far apart, in bfloat16: an odd multiple of 64 bytes, so that the
// two rows that a quarter of a warp reads never meet in a bank.
constexpr int shared_row_stride(int depth) { return depth % 64 == 0 ? depth + 32 : depth; }

// Dynamic shared memory of a block: partial sums, and in clusters two buffers of exchanged rows behind them.
constexpr int partial_bytes(const SequenceVariant& v, Direction direction, int tiles) {
  return v.buffers() * v.depth_warps * v.block_tiles() * tiles * tile_vectors(direction) * 32 * 16;
}
constexpr int shared_bytes(const SequenceVariant& v, Direction direction, int depth, int tiles) {
  const int rows = v.path == LSTMFAST_CUDA_CLUSTER ? 2 * 8 * tiles * shared_row_stride(depth) * 2 : 0;
  return partial_bytes(v, direction, tiles) + rows;
}

struct WorkspaceLayout {
  int64_t packed, packed_bytes;
  int64_t exchange, exchange_bytes;  // [slices][slots][slice_rows][depth]
  int64_t state, state_bytes;        // backward steps: d_h and d_c between launches
  int64_t bytes;
  int slices, slots, slice_rows, depth, element_bytes;
};

const LstmfastCudaDirectionPlan& direction_plan(const LstmfastCudaPlan& plan, Direction direction);
WorkspaceLayout workspace_layout(const LstmfastCudaPlan& plan, Direction direction, int64_t time_steps);

}  // namespace lstmfast::cuda

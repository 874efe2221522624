// Which kernel runs a sequence, in how many blocks, and the layout of its workspace. Pure functions of the device's
// properties and the problem's shape: no CUDA call, so every decision is tested without a GPU.
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
constexpr int kStatusBytes = 256;  // at the start of the workspace; the first word is the status

// How the warps of a block share a product whose weights stay in registers: `unit_warps` times `depth_warps` warps.
// Each holds `unit_tiles` tiles of units (forward 8 units, backward 16), `chunks` chunks of 32 depths of them, and the
// cells of `batch_tiles` tiles of 8 rows.
struct SequenceVariant {
  int path;
  int unit_warps, depth_warps, chunks, unit_tiles, batch_tiles;

  LSTMFAST_HOST_DEVICE constexpr int warps() const { return unit_warps * depth_warps; }
  LSTMFAST_HOST_DEVICE constexpr int threads() const { return 32 * warps(); }
  LSTMFAST_HOST_DEVICE constexpr int block_tiles() const { return unit_warps * unit_tiles; }
  LSTMFAST_HOST_DEVICE constexpr int most_depth() const { return depth_warps * chunks * 32; }
  LSTMFAST_HOST_DEVICE constexpr int buffers() const { return path == LSTMFAST_CUDA_SEQUENCE ? 2 : 1; }
};

// A lane's weights take 16·chunks·unit_tiles registers forward and 8·chunks·unit_tiles backward. 65,536 registers of an
// SM leave a thread 255 with 8 warps and 128 with 16.
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

// float32: a lane holds `values` values (forward the 4 gates of values / 4 units, backward `values` units) for
// `vectors` times 4 depths, 4·vectors·values registers, and a warp the depths of its lanes. A thread owns one cell.
struct Float32Variant {
  int path;
  int unit_warps, depth_warps, vectors, values, most_rows;

  LSTMFAST_HOST_DEVICE constexpr int threads() const { return 32 * unit_warps * depth_warps; }
  LSTMFAST_HOST_DEVICE constexpr int block_values() const { return unit_warps * values; }
  LSTMFAST_HOST_DEVICE constexpr int most_depth() const { return depth_warps * vectors * 32 * 4; }
  LSTMFAST_HOST_DEVICE constexpr int buffers() const { return path == LSTMFAST_CUDA_SEQUENCE ? 2 : 1; }
};
constexpr Float32Variant kForwardFloat32Variants[] = {
    {LSTMFAST_CUDA_CLUSTER, 4, 2, 1, 16, 16},   // 256 units, 16 a block
    {LSTMFAST_CUDA_SEQUENCE, 4, 2, 1, 16, 16},  // 256 units, 16 a block
    {LSTMFAST_CUDA_SEQUENCE, 2, 4, 1, 16, 32},  // 512 units, 8 a block
    {LSTMFAST_CUDA_SEQUENCE, 2, 4, 2, 16, 32},  // 1,024 units, 8 a block
};
constexpr Float32Variant kBackwardFloat32Variants[] = {
    {LSTMFAST_CUDA_CLUSTER, 2, 4, 2, 8, 16},   // 256 units, 16 a block
    {LSTMFAST_CUDA_SEQUENCE, 2, 4, 2, 8, 16},  // 256 units, 16 a block
    {LSTMFAST_CUDA_SEQUENCE, 1, 8, 4, 8, 32},  // 1,024 units, 8 a block
};

enum Direction { kForward, kBackward };

constexpr int tile_units(Direction direction) { return direction == kForward ? 8 : 16; }

// The stride of rows of h in shared memory. In bfloat16 an odd multiple of 64 bytes, so that the two rows that a
// quarter of a warp reads never share a bank; in float32 it reads one row.
LSTMFAST_HOST_DEVICE constexpr int shared_row_stride(int depth, int element_bytes) {
  return element_bytes == 2 && depth % 64 == 0 ? depth + 32 : depth;
}

// The properties of a variant, of either dtype, that plans and checks use.
struct VariantFacts {
  int path, threads, block_units, most_depth;
  int row_step, most_rows;  // of a slice
  int unit_warps;           // each reads every row
  int partial_row_bytes;    // of shared memory, for partial sums of one row
  int element_bytes;

  // Dynamic shared memory of a block: partial sums, and in clusters two slots of exchanged rows after them.
  int shared_bytes(int depth, int rows) const {
    const int slots = path == LSTMFAST_CUDA_CLUSTER ? 2 : 0;
    return rows * (partial_row_bytes + slots * shared_row_stride(depth, element_bytes) * element_bytes);
  }
};
int variant_count(int dtype, Direction direction);
VariantFacts variant_facts(int dtype, Direction direction, int variant);

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

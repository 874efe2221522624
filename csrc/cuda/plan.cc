// Estimates the time of every path on a device and chooses the fastest that fits. The estimates are arithmetic on data
// sheets (README.md) and only have to rank the paths.
#include "cuda/plan.h"

#include <algorithm>
#include <iterator>

namespace lstmfast::cuda {
namespace {

constexpr int kMostClusterSize = 16;
constexpr int kRegisters = 65536;               // assumed by the variants of plan.h
constexpr int kStepUnits[] = {8, 16};           // of a block: float32 and bfloat16 forward, bfloat16 backward
constexpr int kFewRows = 4, kStepRows = 16;     // of a float32 block: variant 0 and 1
constexpr int kTileRows = 8, kStepTileRows = 32;  // of bfloat16: a tile, a block

int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }
int round_up(int64_t value, int multiple) { return ceil_div(value, multiple) * multiple; }
int padded_hidden(int64_t hidden) { return round_up(hidden, 32); }
int depth_of(int64_t hidden, Direction direction) { return padded_hidden(hidden) * (direction == kForward ? 1 : 4); }

// --- estimates, in cycles --------------------------------------------------------------------------------------------

constexpr float kCellCycles = 400;               // sums of partial products, gates, c and h
constexpr float kGridExchangeCycles = 1400;      // a store to L2 and a load that sees it
constexpr float kClusterExchangeCycles = 500;    // distributed shared memory and the cluster's barrier
constexpr float kBlockExchangeCycles = 100;      // shared memory and the block's barrier
constexpr float kL2BytesPerCycle = 64, kSharedBytesPerCycle = 128;  // into one SM
constexpr float kSharedL2BytesPerCycle = 26;     // into one SM when all of them read: 40 % of a single one's
constexpr float kLaunchMicroseconds = 2.2f;      // from one small kernel to the next in a stream
constexpr float kBeyondL2 = 3;                   // slowdown of reading weights that do not fit L2
constexpr float kShuffleOverhead = 1.4f;         // of float32 sequences: sums over lanes

// Multiply-adds of an SM per cycle.
float products_per_cycle(const LstmfastCudaDevice& device, int element_bytes) {
  const int capability = 10 * device.compute_major + device.compute_minor;
  if (element_bytes == 4) return capability <= 80 ? 64.0f : 128.0f;  // T4, A100; all others
  return device.compute_minor == 0 && capability <= 100 ? 1024.0f : 512.0f;  // A100, H100, B200; all others
}

float microseconds(const LstmfastCudaDevice& device, float cycles) {
  return cycles / static_cast<float>(std::max(device.clock_mhz, 1));
}

float step_estimate(const LstmfastCudaDevice& device, int64_t hidden, int64_t batch, int dtype, int block_rows) {
  const int element_bytes = dtype == LSTMFAST_CUDA_FLOAT32 ? 4 : 2;
  const float weights = 4.0f * hidden * hidden, bytes = weights * element_bytes;
  const float passes = static_cast<float>(ceil_div(batch, block_rows)), sms = static_cast<float>(device.sm_count);
  const float slowdown = bytes > 0.7f * device.l2_bytes ? kBeyondL2 : 1;
  const float reading = passes * bytes * slowdown / (kSharedL2BytesPerCycle * sms);
  const float multiplying = weights * batch / (products_per_cycle(device, element_bytes) * sms);
  return kLaunchMicroseconds + microseconds(device, kCellCycles + kGridExchangeCycles + std::max(reading, multiplying));
}

float sequence_estimate(const LstmfastCudaDevice& device, const VariantFacts& v, Direction direction, int depth,
                        const LstmfastCudaDirectionPlan& plan) {
  const bool cluster = v.path == LSTMFAST_CUDA_CLUSTER;
  const float exchange = !cluster                 ? kGridExchangeCycles
                         : plan.cluster_size == 1 ? kBlockExchangeCycles
                                                  : kClusterExchangeCycles;
  // Every warp that shares units reads the rows again, from shared memory or L2.
  const float row_bytes = static_cast<float>(plan.slice_rows) * depth * v.element_bytes;
  const float reading = row_bytes * v.unit_warps / (cluster ? kSharedBytesPerCycle : kL2BytesPerCycle);
  const float products = static_cast<float>(v.block_units) * (direction == kForward ? 4 : 1) * depth * plan.slice_rows;
  const float overhead = v.element_bytes == 4 ? kShuffleOverhead : 1;
  const float multiplying = products * overhead / products_per_cycle(device, v.element_bytes);
  const int waves = cluster ? ceil_div(static_cast<int64_t>(plan.groups) * plan.cluster_size, device.sm_count) : 1;
  const float cells = kCellCycles * ceil_div(v.block_units * plan.slice_rows, 2 * v.threads);
  return microseconds(device, exchange + cells + reading + multiplying) * plan.launches * waves;
}

// --- directions ------------------------------------------------------------------------------------------------------

LstmfastCudaDirectionPlan step_plan(const LstmfastCudaDevice& device, int64_t hidden, int64_t batch, int dtype,
                                    Direction direction) {
  LstmfastCudaDirectionPlan plan = {};
  const bool float32 = dtype == LSTMFAST_CUDA_FLOAT32;
  plan.path = LSTMFAST_CUDA_STEP;
  plan.variant = float32 && batch > kFewRows ? 1 : 0;
  const int block_rows = !float32 ? kStepTileRows : plan.variant == 0 ? kFewRows : kStepRows;
  const int block_units = kStepUnits[!float32 && direction == kBackward];
  plan.threads = 256;
  plan.slice_rows = round_up(batch, float32 ? block_rows : kTileRows);
  plan.blocks_per_group = padded_hidden(hidden) / block_units * ceil_div(plan.slice_rows, block_rows);
  plan.groups = plan.launches = plan.cluster_size = 1;
  plan.microseconds_per_step = step_estimate(device, hidden, batch, dtype, block_rows);
  return plan;
}

// The plan of one variant; without a path if it does not fit the shape or the device.
LstmfastCudaDirectionPlan variant_plan(const LstmfastCudaDevice& device, int64_t hidden, int64_t batch, int dtype,
                                       Direction direction, int variant) {
  const VariantFacts v = variant_facts(dtype, direction, variant);
  const int depth = depth_of(hidden, direction);
  const bool cluster = v.path == LSTMFAST_CUDA_CLUSTER;
  int blocks = ceil_div(padded_hidden(hidden), v.block_units);
  while (cluster && (blocks & (blocks - 1)) != 0) ++blocks;  // clusters are powers of two
  LstmfastCudaDirectionPlan plan = {};
  if (depth > v.most_depth || blocks > device.sm_count) return plan;
  if (cluster && blocks > (device.compute_major >= 9 && device.compute_major <= 10 ? kMostClusterSize : 1)) return plan;
  if (!cluster && !device.cooperative_launch) return plan;
  if (device.registers_per_sm < kRegisters) return plan;
  // A launch has no more blocks than SMs, even if an SM could hold several: all blocks then run at the same time.
  const int most_groups = device.sm_count / blocks;
  int rows = v.most_rows;
  while (rows > 0 && v.shared_bytes(depth, rows) > device.shared_bytes_per_block) rows -= v.row_step;
  if (rows <= 0) return plan;
  const int row_steps = ceil_div(batch, v.row_step);
  rows = std::min(rows, v.row_step * ceil_div(row_steps, std::min(most_groups, row_steps)));
  plan.variant = variant;
  plan.threads = v.threads;
  plan.blocks_per_group = blocks;
  plan.slice_rows = rows;
  const int slices = ceil_div(batch, plan.slice_rows);
  plan.groups = cluster ? slices : std::min(slices, most_groups);
  plan.launches = ceil_div(slices, plan.groups);
  plan.cluster_size = cluster ? blocks : 1;
  plan.shared_bytes = v.shared_bytes(depth, rows);
  plan.path = v.path;
  plan.microseconds_per_step = sequence_estimate(device, v, direction, depth, plan);
  return plan;
}

// The fastest by estimate; `path` forces one unless it is NO_PATH.
LstmfastCudaDirectionPlan best_plan(const LstmfastCudaDevice& device, int64_t hidden, int64_t batch, int dtype,
                                    Direction direction, int path) {
  LstmfastCudaDirectionPlan best = {};
  const auto consider = [&](const LstmfastCudaDirectionPlan& plan) {
    if (plan.path == LSTMFAST_CUDA_NO_PATH || (path != LSTMFAST_CUDA_NO_PATH && plan.path != path)) return;
    if (best.path == LSTMFAST_CUDA_NO_PATH || plan.microseconds_per_step < best.microseconds_per_step) best = plan;
  };
  consider(step_plan(device, hidden, batch, dtype, direction));
  for (int v = 0; v < variant_count(dtype, direction); ++v)
    consider(variant_plan(device, hidden, batch, dtype, direction, v));
  return best;
}

}  // namespace

int variant_count(int dtype, Direction direction) {
  const bool float32 = dtype == LSTMFAST_CUDA_FLOAT32;
  const size_t forward = float32 ? std::size(kForwardFloat32Variants) : std::size(kForwardVariants);
  const size_t backward = float32 ? std::size(kBackwardFloat32Variants) : std::size(kBackwardVariants);
  return static_cast<int>(direction == kForward ? forward : backward);
}

VariantFacts variant_facts(int dtype, Direction direction, int variant) {
  constexpr int kFloatBytes = 4, kBfloat16Bytes = 2, kWarpVectorBytes = 32 * 16;
  if (dtype == LSTMFAST_CUDA_FLOAT32) {
    constexpr int kRowStep = 4;
    const Float32Variant& v = (direction == kForward ? kForwardFloat32Variants : kBackwardFloat32Variants)[variant];
    const int partial = v.buffers() * v.depth_warps * v.block_values() * kFloatBytes;
    const int block_units = v.block_values() / (direction == kForward ? 4 : 1);
    return {v.path, v.threads(), block_units, v.most_depth(), kRowStep, v.most_rows, v.unit_warps, partial, kFloatBytes};
  }
  const SequenceVariant& v = (direction == kForward ? kForwardVariants : kBackwardVariants)[variant];
  const int tile_vectors = direction == kForward ? 2 : 1;  // of a lane, in a product of 8 rows
  const int partial = v.buffers() * v.depth_warps * v.block_tiles() * tile_vectors * kWarpVectorBytes / kTileRows;
  const int block_units = v.block_tiles() * tile_units(direction), most_rows = kTileRows * v.batch_tiles;
  return {v.path, v.threads(), block_units, v.most_depth(), kTileRows, most_rows, v.unit_warps, partial, kBfloat16Bytes};
}

const LstmfastCudaDirectionPlan& direction_plan(const LstmfastCudaPlan& plan, Direction direction) {
  return direction == kForward ? plan.forward : plan.backward;
}

WorkspaceLayout workspace_layout(const LstmfastCudaPlan& plan, Direction direction, int64_t time_steps) {
  const LstmfastCudaDirectionPlan& d = direction_plan(plan, direction);
  const auto aligned = [](int64_t bytes) { return (bytes + 255) / 256 * 256; };
  const int64_t padded = padded_hidden(plan.hidden_size);
  WorkspaceLayout at = {};
  at.element_bytes = plan.dtype == LSTMFAST_CUDA_FLOAT32 ? 4 : 2;
  at.slice_rows = d.slice_rows;
  at.slices = d.path == LSTMFAST_CUDA_STEP ? 1 : ceil_div(plan.batch, d.slice_rows);
  at.depth = depth_of(plan.hidden_size, direction);
  switch (d.path) {
    case LSTMFAST_CUDA_STEP: at.slots = 2; break;
    case LSTMFAST_CUDA_SEQUENCE: at.slots = static_cast<int>(time_steps) + (direction == kForward); break;
    default: at.slots = direction == kForward; break;  // h0; between steps rows are in shared memory
  }
  at.packed = kStatusBytes;
  at.packed_bytes = aligned(4 * padded * padded * at.element_bytes);
  at.exchange = at.packed + at.packed_bytes;
  at.exchange_bytes = aligned(static_cast<int64_t>(at.slices) * at.slots * at.slice_rows * at.depth * at.element_bytes);
  at.state = at.exchange + at.exchange_bytes;
  if (d.path == LSTMFAST_CUDA_STEP && direction == kBackward)
    at.state_bytes = 2 * aligned(plan.batch * plan.hidden_size * static_cast<int64_t>(sizeof(float)));
  at.bytes = at.state + at.state_bytes;
  return at;
}

}  // namespace lstmfast::cuda

using namespace lstmfast::cuda;

extern "C" int lstmfast_cuda_plan_path(const LstmfastCudaDevice* device, int64_t hidden_size, int64_t batch,
                                       int32_t dtype, int32_t training, int32_t path, LstmfastCudaPlan* plan) {
  if (device == nullptr || plan == nullptr) return LSTMFAST_CUDA_MISSING_POINTER;
  constexpr int64_t kMostRows = 16 * 65535;  // a grid's y dimension
  if (hidden_size < 1 || hidden_size > kMostHidden || batch < 1 || batch > kMostRows) return LSTMFAST_CUDA_INVALID_SHAPE;
  if (dtype != LSTMFAST_CUDA_FLOAT32 && dtype != LSTMFAST_CUDA_BFLOAT16) return LSTMFAST_CUDA_INVALID_DTYPE;
  const int capability = 10 * device->compute_major + device->compute_minor;
  if (capability < 75 || device->sm_count < 1) return LSTMFAST_CUDA_UNSUPPORTED_DEVICE;
  if (dtype == LSTMFAST_CUDA_BFLOAT16 && capability < 80) return LSTMFAST_CUDA_UNSUPPORTED_DEVICE;
  LstmfastCudaPlan made = {};
  made.hidden_size = hidden_size;
  made.batch = batch;
  made.dtype = dtype;
  made.training = training != 0;
  made.forward = best_plan(*device, hidden_size, batch, dtype, kForward, path);
  if (made.forward.path == LSTMFAST_CUDA_NO_PATH) return LSTMFAST_CUDA_INVALID_PLAN;
  if (training) {
    made.backward = best_plan(*device, hidden_size, batch, dtype, kBackward, path);
    if (made.backward.path == LSTMFAST_CUDA_NO_PATH) return LSTMFAST_CUDA_INVALID_PLAN;
  }
  *plan = made;
  return 0;
}

extern "C" int lstmfast_cuda_plan(const LstmfastCudaDevice* device, int64_t hidden_size, int64_t batch, int32_t dtype,
                                  int32_t training, LstmfastCudaPlan* plan) {
  return lstmfast_cuda_plan_path(device, hidden_size, batch, dtype, training, LSTMFAST_CUDA_NO_PATH, plan);
}

extern "C" int64_t lstmfast_cuda_workspace_bytes(const LstmfastCudaPlan* plan, int64_t time_steps, int32_t backward) {
  if (plan == nullptr || time_steps < 1 || time_steps > INT32_MAX - 1) return 0;
  const Direction direction = backward ? kBackward : kForward;
  if (direction_plan(*plan, direction).path == LSTMFAST_CUDA_NO_PATH) return 0;
  return workspace_layout(*plan, direction, time_steps).bytes;
}

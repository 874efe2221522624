// Kernels that show what the emulator does and what it finds: `selftest CASE SEED`, driven by test_cuda_emulator.py.
//
// Prints one line: "code=C wrong=N error=WORDS", C being what the launch returned and N how many results were not as
// they should be. Cases whose mistakes belong to a sanitizer end by that sanitizer's hand.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "cuda_emu.h"

namespace cg = cooperative_groups;

namespace {

// An array of its exact size on the heap, so that ASan sees the first element past it.
template <class T>
struct Array {
  explicit Array(size_t count, T value = T()) : count(count), data(static_cast<T*>(std::malloc(count * sizeof(T)))) {
    for (size_t k = 0; k < count; ++k) data[k] = value;
  }
  Array(const Array&) = delete;
  ~Array() { std::free(data); }
  T& operator[](size_t k) { return data[k]; }
  size_t count;
  T* data;
};

struct Result {
  int code;
  long wrong;
};

// --- barriers and shared memory -------------------------------------------------------------------------------------

// Each thread's value goes to its right neighbour, `rounds` times, through one shared array: two barriers a round.
template <bool kMissingBarrier>
__global__ void __launch_bounds__(96) rotate(int* values, int rounds) {
  LSTMFAST_SHARED(int, kept, [96]);
  const unsigned t = threadIdx.x;
  int* own = values + blockIdx.x * blockDim.x + t;
  for (int round = 0; round < rounds; ++round) {
    kept[t] = *own;
    __syncthreads();
    *own = kept[(t + blockDim.x - 1) % blockDim.x];
    if (!kMissingBarrier) __syncthreads();
  }
}
template <bool kMissingBarrier>
Result run_rotate() {
  constexpr int kBlocks = 3, kThreads = 96, kRounds = 5;
  Array<int> values(kBlocks * kThreads);
  std::iota(values.data, values.data + values.count, 0);
  const int code =
      LSTMFAST_LAUNCH((rotate<kMissingBarrier>), dim3(kBlocks), dim3(kThreads), 0, nullptr, values.data, kRounds);
  long wrong = 0;
  for (int b = 0; b < kBlocks; ++b) {
    for (int t = 0; t < kThreads; ++t) {
      wrong += values[b * kThreads + t] != b * kThreads + (t + kThreads - kRounds) % kThreads;
    }
  }
  return {code, wrong};
}

// The indices of every thread, in three dimensions.
__global__ void write_number(unsigned* numbers) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned all = block * blockDim.x * blockDim.y * blockDim.z + thread;
  numbers[all] = all;
}
Result indices() {
  Array<unsigned> numbers(2 * 3 * 4 * 5 * 3 * 2, ~0u);
  const int code = LSTMFAST_LAUNCH(write_number, dim3(2, 3, 4), dim3(5, 3, 2), 0, nullptr, numbers.data);
  long wrong = 0;
  for (unsigned k = 0; k < numbers.count; ++k) wrong += numbers[k] != k;
  return {code, wrong};
}

__global__ void read_before_write(float* out) {
  LSTMFAST_SHARED(float, fixed, [8]);
  LSTMFAST_DYNAMIC_SHARED(float, sized);
  out[threadIdx.x] = fixed[threadIdx.x];
  out[8 + threadIdx.x] = sized[threadIdx.x];
}
Result unwritten_shared_memory_is_nan() {
  Array<float> out(16, 0.0f);
  const int code = LSTMFAST_LAUNCH(read_before_write, dim3(1), dim3(8), 8 * sizeof(float), nullptr, out.data);
  long wrong = 0;
  for (size_t k = 0; k < out.count; ++k) wrong += !std::isnan(out[k]);
  return {code, wrong};
}

// Static, dynamic and global memory, one element too far.
enum Which { kStatic, kDynamic, kGlobal };
__global__ void read_past_the_end(Which which, const float* values, float* out) {
  LSTMFAST_SHARED(float, fixed, [8]);
  LSTMFAST_DYNAMIC_SHARED(float, sized);
  fixed[threadIdx.x] = sized[threadIdx.x] = 1.0f;
  __syncthreads();
  const float* memory = which == kStatic ? fixed : which == kDynamic ? sized : values;
  out[threadIdx.x] = memory[threadIdx.x + 1];
}
template <Which kWhich>
Result past_the_end() {
  Array<float> values(8, 1.0f), out(8);
  const size_t bytes = 8 * sizeof(float);
  return {LSTMFAST_LAUNCH(read_past_the_end, dim3(1), dim3(8), bytes, nullptr, kWhich, values.data, out.data), 0};
}

// --- warps ----------------------------------------------------------------------------------------------------------

__global__ void shuffles_and_votes(int* wrong) {
  const int lane = threadIdx.x % 32, lanes = 32;
  const unsigned all = 0xffffffffu;
  int bad = 0;
  bad += __shfl_sync(all, 100 + lane, 5) != 105;
  bad += __shfl_sync(all, lane, lane + 1) != (lane + 1) % lanes;
  bad += __shfl_xor_sync(all, lane * 1.5, 16) != (lane ^ 16) * 1.5;
  bad += __shfl_down_sync(all, lane, 3) != (lane + 3 < lanes ? lane + 3 : lane);
  bad += __shfl_up_sync(all, lane, 2u) != (lane >= 2 ? lane - 2 : lane);
  bad += __shfl_sync(all, lane, 3, 8) != lane / 8 * 8 + 3;
  bad += __shfl_down_sync(all, lane, 5, 8) != (lane % 8 + 5 < 8 ? lane + 5 : lane);
  bad += __shfl_up_sync(all, lane, 5, 8) != (lane % 8 >= 5 ? lane - 5 : lane);
  bad += __ballot_sync(all, lane % 3 == 0) != 0x49249249u;
  bad += __any_sync(all, lane == 31) != 1 || __any_sync(all, 0) != 0;
  bad += __all_sync(all, 1) != 1 || __all_sync(all, lane != 7) != 0;
  float sum = static_cast<float>(lane);
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(all, sum, distance);
  bad += sum != 496.0f;
  __syncwarp();
  wrong[threadIdx.x] = bad;
}
Result shuffles() {
  Array<int> wrong(128, -1);
  const int code = LSTMFAST_LAUNCH(shuffles_and_votes, dim3(1), dim3(128), 0, nullptr, wrong.data);
  return {code, std::accumulate(wrong.data, wrong.data + wrong.count, 0L)};
}

// Where an element of a fragment lies, in the words of the PTX manual ("Matrix fragments for mma.m16n8k16"): element i
// of lane's fragment, with groupID = lane / 4 and threadID_in_group = lane % 4.
struct Position {
  int row, column;
};
Position in_a(int lane, int i) {
  const bool first_rows = (0 <= i && i < 2) || (4 <= i && i < 6);
  return {first_rows ? lane / 4 : lane / 4 + 8, i < 4 ? lane % 4 * 2 + (i & 1) : lane % 4 * 2 + (i & 1) + 8};
}
Position in_b(int lane, int i) { return {i < 2 ? lane % 4 * 2 + (i & 1) : lane % 4 * 2 + (i & 1) + 8, lane / 4}; }
Position in_d(int lane, int i) { return {i < 2 ? lane / 4 : lane / 4 + 8, lane % 4 * 2 + (i & 1)}; }

__global__ void one_product(const uint32_t* a, const uint32_t* b, float* d) {
  const unsigned lane = threadIdx.x;
  uint32_t of_a[4], of_b[2];
  float of_d[4];
  for (int r = 0; r < 4; ++r) of_a[r] = a[4 * lane + r];
  for (int r = 0; r < 2; ++r) of_b[r] = b[2 * lane + r];
  for (int r = 0; r < 4; ++r) of_d[r] = d[4 * lane + r];
  cuda_emu::mma_m16n8k16(of_d, of_a, of_b);
  for (int r = 0; r < 4; ++r) d[4 * lane + r] = of_d[r];
}
Result matrix_product() {
  // Whole numbers of different sizes, exact in bfloat16 as their products are in float32: any misplaced one shows.
  int a[16][16], b[16][8], d[16][8];
  for (int r = 0; r < 16; ++r) {
    for (int k = 0; k < 16; ++k) a[r][k] = (r * 37 + k * 11) % 251 - 125;
    for (int n = 0; n < 8; ++n) b[r][n] = (r * 53 + n * 29) % 239 - 119, d[r][n] = 1000 * r + n;
  }
  const auto pack = [](int low, int high) {
    return static_cast<uint32_t>(cuda_emu::bf16(static_cast<float>(low)).bits) |
           static_cast<uint32_t>(cuda_emu::bf16(static_cast<float>(high)).bits) << 16;
  };
  Array<uint32_t> of_a(32 * 4), of_b(32 * 2);
  Array<float> of_d(32 * 4);
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 8; i += 2) {
      const Position low = in_a(lane, i), high = in_a(lane, i + 1);
      of_a[lane * 4 + i / 2] = pack(a[low.row][low.column], a[high.row][high.column]);
    }
    for (int i = 0; i < 4; i += 2) {
      const Position low = in_b(lane, i), high = in_b(lane, i + 1);
      of_b[lane * 2 + i / 2] = pack(b[low.row][low.column], b[high.row][high.column]);
    }
    for (int i = 0; i < 4; ++i) of_d[lane * 4 + i] = static_cast<float>(d[in_d(lane, i).row][in_d(lane, i).column]);
  }
  const int code = LSTMFAST_LAUNCH(one_product, dim3(1), dim3(32), 0, nullptr, of_a.data, of_b.data, of_d.data);
  long wrong = 0;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const Position at = in_d(lane, i);
      int sum = d[at.row][at.column];
      for (int k = 0; k < 16; ++k) sum += a[at.row][k] * b[k][at.column];
      wrong += of_d[lane * 4 + i] != static_cast<float>(sum);
    }
  }
  return {code, wrong};
}

Result bfloat16() {
  const std::map<float, uint16_t> rounded = {
      {0.0f, 0x0000}, {1.0f, 0x3f80}, {-2.5f, 0xc020}, {1.00390625f, 0x3f80}, {1.01171875f, 0x3f82},
      {3.4e38f, 0x7f80}, {INFINITY, 0x7f80}, {-INFINITY, 0xff80}, {1e-45f, 0x0000}};
  long wrong = 0;
  for (const auto& [value, bits] : rounded) wrong += __float2bfloat16(value).bits != bits;
  wrong += __float2bfloat16(NAN).bits != 0x7fff || !std::isnan(__bfloat162float(__float2bfloat16(NAN)));
  for (unsigned bits = 0; bits < 0x7f80; ++bits) {  // every finite one comes back as it was
    wrong += __float2bfloat16(__bfloat162float(__ushort_as_bfloat16(static_cast<uint16_t>(bits)))).bits != bits;
  }
  return {0, wrong};
}

// --- grids and clusters ---------------------------------------------------------------------------------------------

// Blocks hand their numbers around the grid through memory, a grid barrier in every round.
template <bool kMissingBarrier>
__global__ void rotate_grid(int* values, int rounds) {
  cg::grid_group grid = cg::this_grid();
  const unsigned from = (blockIdx.x + gridDim.x - 1) % gridDim.x, count = gridDim.x * blockDim.x;
  for (int round = 0; round < rounds; ++round) {
    const int* in = values + round % 2 * count;
    int* out = values + (round + 1) % 2 * count;
    out[blockIdx.x * blockDim.x + threadIdx.x] = in[from * blockDim.x + threadIdx.x];
    if (!kMissingBarrier) grid.sync();
  }
}
template <bool kMissingBarrier>
Result run_rotate_grid() {
  constexpr int kBlocks = 7, kThreads = 33, kRounds = 4, kCount = kBlocks * kThreads;
  Array<int> values(2 * kCount);
  std::iota(values.data, values.data + kCount, 0);
  const int code = LSTMFAST_LAUNCH_COOPERATIVE((rotate_grid<kMissingBarrier>), dim3(kBlocks), dim3(kThreads), 0,
                                               nullptr, values.data, kRounds);
  long wrong = 0;
  for (int b = 0; b < kBlocks; ++b) {
    for (int t = 0; t < kThreads; ++t) {
      wrong += values[b * kThreads + t] != (b + kBlocks - kRounds) % kBlocks * kThreads + t;
    }
  }
  return {code, wrong};
}

// Blocks of a cluster write into each other's shared memory, static and dynamic.
enum ClusterBug { kNone, kNoBarrierBefore, kNoBarrierBetween, kNoBarrierAfter, kRankTooLarge, kForeignAddress };
template <ClusterBug kBug>
__global__ void rotate_cluster(int* out) {
  cg::cluster_group cluster = cg::this_cluster();
  LSTMFAST_SHARED(int, fixed, [32]);
  LSTMFAST_DYNAMIC_SHARED(int, sized);
  const unsigned rank = cluster.block_rank(), size = cluster.num_blocks(), t = threadIdx.x;
  if (kBug != kNoBarrierBefore) cluster.sync();
  const unsigned to = kBug == kRankTooLarge ? size : (rank + 1) % size;
  cluster.map_shared_rank(&fixed[t], to)[0] = static_cast<int>(rank * 100 + t);
  cluster.map_shared_rank(kBug == kForeignAddress ? out : sized, to)[t] = static_cast<int>(rank * 1000 + t);
  if (kBug != kNoBarrierBetween) cluster.sync();
  out[blockIdx.x * 32 + t] = fixed[t] + sized[t];
  if (kBug == kNoBarrierAfter && rank == 0) return;
  if (kBug == kNoBarrierAfter) {
    for (int k = 0; k < 8; ++k) __nanosleep(20);
    cluster.map_shared_rank(&fixed[t], 0)[0] = 0;
  }
}
template <ClusterBug kBug>
Result run_rotate_cluster() {
  constexpr int kSize = 4, kClusters = 2;
  Array<int> out(kSize * kClusters * 32);
  const int code = LSTMFAST_LAUNCH_CLUSTER((rotate_cluster<kBug>), kSize, dim3(kSize * kClusters), dim3(32),
                                           32 * sizeof(int), nullptr, out.data);
  long wrong = 0;
  for (int b = 0; b < kSize * kClusters; ++b) {
    const int from = (b + kSize - 1) % kSize;
    for (int t = 0; t < 32; ++t) wrong += out[b * 32 + t] != from * 1100 + 2 * t;
  }
  return {code, wrong};
}

// --- words that are their own flags ---------------------------------------------------------------------------------

// Block b waits for the number that block b - 1 publishes, four words at a time, and publishes the next.
enum Flow { kWhole, kPollsFirstWordOnly, kNobodyStores, kPlainWords };
template <Flow kFlow, bool kPauses>
__global__ void hand_on(uint4* slots) {
  if (threadIdx.x) return;
  const unsigned b = blockIdx.x;
  uint4 word = {0, 0, 0, 0};
  if (b) {
    const auto ready = [](const uint4& v) {
      return v.x != ~0u && (kFlow == kPollsFirstWordOnly || (v.y != ~0u && v.z != ~0u && v.w != ~0u));
    };
    while (!ready(word = cuda_emu::load_relaxed(slots + b - 1))) {
      if (kPauses) __nanosleep(20);
    }
  }
  const uint4 next = {word.x + 1, word.y + 2, word.z + 3, word.w + 4};
  if (kFlow == kNobodyStores) return;
  if (kFlow == kPlainWords) {
    slots[b] = next;
  } else {
    cuda_emu::store_relaxed(slots + b, next);
  }
}
template <Flow kFlow, bool kPauses>
Result run_hand_on() {
  constexpr unsigned kBlocks = 9;
  Array<uint4> slots(kBlocks, uint4{~0u, ~0u, ~0u, ~0u});
  const int code =
      LSTMFAST_LAUNCH_COOPERATIVE((hand_on<kFlow, kPauses>), dim3(kBlocks), dim3(1), 0, nullptr, slots.data);
  long wrong = 0;
  for (unsigned b = 0; b < kBlocks; ++b) {
    const uint4 v = slots[b];
    wrong += v.x != b + 1 || v.y != 2 * (b + 1) || v.z != 3 * (b + 1) || v.w != 4 * (b + 1);
  }
  return {code, wrong};
}

// The lanes of one warp exchange through shared memory, with __syncwarp or with a shuffle, which orders nothing.
template <bool kBarrier>
__global__ void warp_exchange(int* out) {
  LSTMFAST_SHARED(int, kept, [32]);
  const unsigned t = threadIdx.x;
  kept[t] = static_cast<int>(t);
  if (kBarrier) {
    __syncwarp();
  } else {
    __shfl_sync(0xffffffffu, t, 0);
  }
  out[t] = kept[31 - t];
}
template <bool kBarrier>
Result run_warp_exchange() {
  Array<int> out(32);
  const int code = LSTMFAST_LAUNCH((warp_exchange<kBarrier>), dim3(1), dim3(32), 0, nullptr, out.data);
  long wrong = 0;
  for (int t = 0; t < 32; ++t) wrong += out[t] != 31 - t;
  return {code, wrong};
}

// --- mistakes -------------------------------------------------------------------------------------------------------

enum Mistake {
  kReturnedBeforeBarrier, kReturnedDuringBarrier, kDifferentBarriers, kWarpsApart, kReturnedLane, kPartialMask,
  kGridBarrier, kMisalignedVector, kMisalignedRelaxed, kStaticTooLarge, kDynamicTooLarge, kOverAligned,
  kReturnedBeforeGridBarrier, kReturnedBeforeClusterBarrier, kProductOfFewLanes, kTrap
};
__global__ void make(Mistake mistake, float* values) {
  const unsigned t = threadIdx.x;
  switch (mistake) {
    case kReturnedBeforeBarrier:
      if (t < 3) return;
      for (int k = 0; k < 4; ++k) __nanosleep(20);
      __syncthreads();
      break;
    case kReturnedDuringBarrier:
      if (t == 63) {
        for (int k = 0; k < 4; ++k) __nanosleep(20);
        return;
      }
      __syncthreads();
      break;
    case kDifferentBarriers:
      if (t < 32) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case kWarpsApart:
      if (t % 32 < 16) {
        __syncwarp();
      } else {
        __syncthreads();
      }
      break;
    case kReturnedLane:
      if (t == 0) return;
      for (int k = 0; k < 4; ++k) __nanosleep(20);
      __shfl_sync(0xffffffffu, t, 1);
      break;
    case kPartialMask: __shfl_sync(0x0000ffffu, t, 1); break;
    case kGridBarrier: cg::this_grid().sync(); break;
    case kMisalignedVector: values[0] = __ldg(reinterpret_cast<const float4*>(values + 1)).x; break;
    case kMisalignedRelaxed: values[0] = cuda_emu::load_relaxed(reinterpret_cast<const float2*>(values + 1)).x; break;
    case kStaticTooLarge: {
      LSTMFAST_SHARED(float, first, [12 * 1024]);
      LSTMFAST_SHARED(float, second, [1]);
      first[t] = second[0] = 0.0f;
      break;
    }
    case kDynamicTooLarge: {  // each alone would fit
      LSTMFAST_DYNAMIC_SHARED(float, sized);
      LSTMFAST_SHARED(float, fixed, [12 * 1024]);
      sized[t] = fixed[t] = 0.0f;
      break;
    }
    case kOverAligned: {
      struct alignas(32) Wide { float values[8]; };
      LSTMFAST_DYNAMIC_SHARED(Wide, sized);
      sized[0].values[0] = 0.0f;
      break;
    }
    case kReturnedBeforeGridBarrier:
      if (blockIdx.x == 0) return;
      for (int k = 0; k < 4; ++k) __nanosleep(20);
      cg::this_grid().sync();
      break;
    case kReturnedBeforeClusterBarrier:
      if (blockIdx.x == 0) return;
      for (int k = 0; k < 4; ++k) __nanosleep(20);
      cg::this_cluster().sync();
      break;
    case kProductOfFewLanes: {
      float d[4] = {};
      const uint32_t a[4] = {}, b[2] = {};
      cuda_emu::mma_m16n8k16(d, a, b);
      break;
    }
    case kTrap: __trap();
  }
}
template <Mistake kMistake>
Result mistake() {
  Array<float> values(64, 0.0f);
  const size_t dynamic_bytes = kMistake == kDynamicTooLarge ? 200 * 1024 : 0;
  const dim3 grid(2), block(kMistake == kProductOfFewLanes ? 24 : 64);
  if (kMistake == kReturnedBeforeGridBarrier) {
    return {LSTMFAST_LAUNCH_COOPERATIVE(make, grid, block, dynamic_bytes, nullptr, kMistake, values.data), 0};
  }
  const unsigned cluster_size = kMistake == kReturnedBeforeClusterBarrier ? 2 : 1;
  return {LSTMFAST_LAUNCH_CLUSTER(make, cluster_size, grid, block, dynamic_bytes, nullptr, kMistake, values.data), 0};
}

__global__ void nothing() {}
template <unsigned kGrid, unsigned kBlock, unsigned kCluster, unsigned kKilobytes>
Result shape() {
  return {LSTMFAST_LAUNCH_CLUSTER(nothing, kCluster, dim3(kGrid), dim3(kBlock), kKilobytes * 1024, nullptr), 0};
}
template <int kMajor>
Result cluster_on() {
  cuda_emu::Device device;
  device.major = kMajor;
  cuda_emu::set_device(device);
  return shape<4, 32, 2, 0>();
}
template <unsigned kBlocks, unsigned kKilobytes>  // on a device of 4 multiprocessors
Result cooperative() {
  cuda_emu::Device device;
  device.multiprocessors = 4;
  cuda_emu::set_device(device);
  return {LSTMFAST_LAUNCH_COOPERATIVE(nothing, dim3(kBlocks), dim3(1024), kKilobytes * 1024, nullptr), 0};
}

__global__ void static_memory() {
  LSTMFAST_SHARED(float, fixed, [10 * 1024]);
  fixed[threadIdx.x] = 0.0f;
}
Result cooperative_too_much_static_memory() {
  cuda_emu::Device device;
  device.multiprocessors = 2;
  cuda_emu::set_device(device);
  return {LSTMFAST_LAUNCH_COOPERATIVE(static_memory, dim3(11), dim3(32), 0, nullptr), 0};  // 2 x 5 fit
}

// A failed launch must leave nothing behind that the next one trips over.
Result a_good_launch_after_a_bad_one() {
  const Result bad = mistake<kDifferentBarriers>();
  const Result good = run_rotate<false>();
  return {good.code, good.wrong + (bad.code != cuda_emu::kLaunchFailure)};
}

// The order in which threads come to a counter, as one number.
__global__ void note_order(unsigned* count, unsigned* order) {
  order[atomicAdd(count, 1u)] = blockIdx.x * 8 + threadIdx.x;
}
Result print_order() {
  Array<unsigned> count(1, 0u), order(32, 0u);
  const int code = LSTMFAST_LAUNCH(note_order, dim3(4), dim3(8), 0, nullptr, count.data, order.data);
  for (size_t k = 0; k < order.count; ++k) printf("%u ", order[k]);
  printf("\n");
  return {code, 0};
}

const std::map<std::string, Result (*)()> kCases = {
    {"barriers", run_rotate<false>},
    {"indices", indices},
    {"unwritten_shared_memory_is_nan", unwritten_shared_memory_is_nan},
    {"shuffles_and_votes", shuffles},
    {"matrix_product", matrix_product},
    {"bfloat16", bfloat16},
    {"grid_barriers", run_rotate_grid<false>},
    {"clusters", run_rotate_cluster<kNone>},
    {"data_flow", run_hand_on<kWhole, true>},
    {"data_flow_without_pauses", run_hand_on<kWhole, false>},
    {"warp_exchange", run_warp_exchange<true>},
    {"good_after_bad", a_good_launch_after_a_bad_one},
    {"order", print_order},
    {"missing_barrier", run_rotate<true>},
    {"missing_warp_barrier", run_warp_exchange<false>},
    {"missing_grid_barrier", run_rotate_grid<true>},
    {"missing_cluster_barrier_between", run_rotate_cluster<kNoBarrierBetween>},
    {"missing_cluster_barrier_before", run_rotate_cluster<kNoBarrierBefore>},
    {"missing_cluster_barrier_after", run_rotate_cluster<kNoBarrierAfter>},
    {"plain_words", run_hand_on<kPlainWords, true>},
    {"torn_vector", run_hand_on<kPollsFirstWordOnly, true>},
    {"past_static", past_the_end<kStatic>},
    {"past_dynamic", past_the_end<kDynamic>},
    {"past_global", past_the_end<kGlobal>},
    {"returned_before_barrier", mistake<kReturnedBeforeBarrier>},
    {"returned_during_barrier", mistake<kReturnedDuringBarrier>},
    {"different_barriers", mistake<kDifferentBarriers>},
    {"warps_apart", mistake<kWarpsApart>},
    {"returned_lane", mistake<kReturnedLane>},
    {"partial_mask", mistake<kPartialMask>},
    {"grid_barrier_in_ordinary_launch", mistake<kGridBarrier>},
    {"misaligned_vector", mistake<kMisalignedVector>},
    {"misaligned_relaxed", mistake<kMisalignedRelaxed>},
    {"static_too_large", mistake<kStaticTooLarge>},
    {"dynamic_too_large", mistake<kDynamicTooLarge>},
    {"over_aligned", mistake<kOverAligned>},
    {"returned_before_grid_barrier", mistake<kReturnedBeforeGridBarrier>},
    {"returned_before_cluster_barrier", mistake<kReturnedBeforeClusterBarrier>},
    {"product_of_few_lanes", mistake<kProductOfFewLanes>},
    {"trap", mistake<kTrap>},
    {"endless_spin", run_hand_on<kNobodyStores, true>},
    {"endless_spin_without_pauses", run_hand_on<kNobodyStores, false>},
    {"rank_too_large", run_rotate_cluster<kRankTooLarge>},
    {"foreign_address", run_rotate_cluster<kForeignAddress>},
    {"no_blocks", shape<0, 32, 1, 0>},
    {"no_threads", shape<1, 0, 1, 0>},
    {"too_many_threads", shape<1, 1025, 1, 0>},
    {"grid_not_of_clusters", shape<6, 32, 4, 0>},
    {"cluster_of_three", shape<6, 32, 3, 0>},
    {"too_much_dynamic_memory", shape<1, 32, 1, 228>},
    {"cluster_before_sm_90", cluster_on<8>},
    {"cooperative_that_fits", cooperative<8, 0>},
    {"cooperative_too_many_blocks", cooperative<9, 0>},
    {"cooperative_too_much_memory", cooperative<5, 120>},
    {"cooperative_too_much_static_memory", cooperative_too_much_static_memory},
};

}  // namespace

int main(int argc, char** argv) {
  const auto found = argc == 3 ? kCases.find(argv[1]) : kCases.end();
  if (found == kCases.end()) {
    fprintf(stderr, "usage: selftest CASE SEED\n");
    return 2;
  }
  cuda_emu::set_schedule(static_cast<unsigned>(std::atoi(argv[2])));
  const Result result = found->second();
  printf("code=%d wrong=%ld error=%s\n", result.code, result.wrong, cuda_emu::last_error().c_str());
  return 0;
}

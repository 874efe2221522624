// CUDA kernels on the CPU, for tests: what a kernel's source needs of CUDA, for g++ and clang++ in place of nvcc.
//
// One CUDA thread is one fiber, and all fibers of a launch run on the calling OS thread, so that a run is repeatable.
// The order in which they are resumed is a seed (`set_schedule`). What kernels of this project use is here: barriers,
// shuffles and votes, cooperative grids, clusters with distributed shared memory, relaxed words for polling, bfloat16
// and its tensor-core product. Shared arrays have their exact size and begin filled with 0xFF, so that AddressSanitizer
// sees the first byte past the end and a read before any write is NaN. Under ThreadSanitizer every CUDA thread is a
// TSan fiber, and a switch orders nothing: only barriers do, as on a GPU.
//
// A launch returns 0 or one of CUDA's error codes; `last_error` then says in words what was wrong and where.
//
// It refuses to be a model of a GPU: memory is sequentially consistent (but for torn vector loads), co-residency is a
// matter of arithmetic, approximate intrinsics are exact, and nothing is said about time. It takes no partial warp
// masks, no inline PTX, no textures, no atomics beyond those below.
#pragma once

#ifdef __CUDACC__
#error "cuda_emu.h is for host compilers; nvcc has CUDA itself"
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__  // empty: libstdc++ writes __attribute__((__noinline__))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// The scheduler writes these before it resumes a thread.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_emu {

// --- for whoever launches -------------------------------------------------------------------------------------------

// The device that launches are judged by; at first an H100. Sizes in bytes.
struct Device {
  int major = 9, minor = 0;
  unsigned multiprocessors = 132;
  unsigned threads_per_multiprocessor = 2048;
  unsigned blocks_per_multiprocessor = 32;
  size_t shared_per_block = 227 * 1024;  // with opt-in; 48 KiB of it may be static
  size_t shared_per_multiprocessor = 228 * 1024;
};
const Device& device();
void set_device(const Device& device);

// The codes are CUDA's own.
enum Error : int {
  kSuccess = 0,
  kInvalidValue = 1,                // more shared memory than there is
  kInvalidConfiguration = 9,        // a launch shape that no device has
  kLaunchFailure = 719,             // the kernel did what it must not
  kCooperativeLaunchTooLarge = 720  // blocks that must run at once do not fit the device
};
const std::string& last_error();  // of the last launch; empty if it went well

// 0: threads run in the order of their numbers, blocks too. Any other seed shuffles threads in every round and blocks,
// and lets other threads run between the words of a relaxed vector load.
void set_schedule(unsigned seed);
// Rounds without progress (a barrier passed, a word stored, a thread done) after which spinning counts as endless.
void set_spin_limit(unsigned rounds);
void set_stack_bytes(size_t bytes);  // of a CUDA thread; 128 KiB at first

// What the last launch did.
struct Statistics {
  unsigned long threads = 0, switches = 0, barriers = 0;  // barriers: rendezvous that came about, of any kind
  size_t shared_bytes = 0;                                // of the block that had most
};
const Statistics& statistics();

struct LaunchShape {
  dim3 grid, block;
  size_t dynamic_bytes = 0;
  unsigned cluster_size = 1;
  bool cooperative = false;
};
int launch(const LaunchShape& shape, const std::function<void()>& thread_body);

// Arguments are converted to the kernel's parameters and copied, as a launch does.
template <class... Parameters, class... Arguments>
int launch_kernel(const LaunchShape& shape, void (*kernel)(Parameters...), Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "a kernel must be given as many arguments as it takes");
  const std::tuple<std::decay_t<Parameters>...> copies(static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  return launch(shape, [kernel, &copies] { std::apply(kernel, copies); });
}

// --- for the functions below ----------------------------------------------------------------------------------------

// Where in the source a thread stands. As default arguments these name the caller's line.
struct Place {
  const char* operation;
  const char* file;
  int line;
};
#define CUDA_EMU_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

unsigned lane();
unsigned thread_number();  // within the block
void block_sync(const Place& place);
void warp_sync(unsigned mask, bool orders_memory, const Place& place);
uint64_t warp_exchange(unsigned mask, uint64_t value, int source_lane, const Place& place);
unsigned warp_ballot(unsigned mask, bool predicate, const Place& place);
void grid_sync(const Place& place);
void cluster_sync(const Place& place);
unsigned cluster_rank();
unsigned cluster_size();
void* map_shared_rank(const void* address, unsigned rank, const Place& place);
void* shared_array(const void* site, size_t bytes, const Place& place);
void* dynamic_shared(size_t alignment, const Place& place);
void mma_m16n8k16_bf16(float* d, const uint32_t* a, const uint32_t* b, const Place& place);
void pause(const Place& place);          // lets the others run; spinning is no progress
void note_relaxed_load(const Place& place);
void note_relaxed_store();
void maybe_tear(const Place& place);     // between two words of a vector
[[noreturn]] void fail(const Place& place, const char* format, ...) __attribute__((format(printf, 2, 3)));

template <class T>
void check_aligned(const T* address, const Place& place) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T)) {
    fail(place, "misaligned access: %p is no multiple of %zu", static_cast<const void*>(address), sizeof(T));
  }
}

template <class T>
T shuffle(unsigned mask, T value, int source_lane, const Place& place) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "shuffles move at most 8 bytes");
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  word = warp_exchange(mask, word, source_lane, place);
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// Words that other blocks may write while this one reads: ld.relaxed and st.relaxed. Neither orders anything else. A
// vector is as many words as it has and may be seen half written; a kernel must look at each.
template <class T>
T load_relaxed(const T* address, CUDA_EMU_CALLER) {
  static_assert(sizeof(T) % 4 == 0 && std::is_trivially_copyable<T>::value, "relaxed loads read 4-byte words");
  const Place place{"relaxed load", file, line};
  check_aligned(address, place);
  note_relaxed_load(place);
  uint32_t words[sizeof(T) / 4];
  const uint32_t* source = reinterpret_cast<const uint32_t*>(address);
  for (size_t k = 0; k < sizeof(T) / 4; ++k) {
    if (k) maybe_tear(place);
    words[k] = __atomic_load_n(source + k, __ATOMIC_RELAXED);
  }
  T value;
  std::memcpy(&value, words, sizeof value);
  return value;
}
template <class T>
void store_relaxed(T* address, T value, CUDA_EMU_CALLER) {
  static_assert(sizeof(T) % 4 == 0 && std::is_trivially_copyable<T>::value, "relaxed stores write 4-byte words");
  const Place place{"relaxed store", file, line};
  check_aligned(address, place);
  uint32_t words[sizeof(T) / 4];
  std::memcpy(words, &value, sizeof value);
  uint32_t* target = reinterpret_cast<uint32_t*>(address);
  for (size_t k = 0; k < sizeof(T) / 4; ++k) {
    if (k) maybe_tear(place);
    __atomic_store_n(target + k, words[k], __ATOMIC_RELAXED);
  }
  note_relaxed_store();
}

// bfloat16: the upper half of a float32; conversion rounds to nearest even, NaN becomes 0x7fff.
struct bf16 {
  uint16_t bits;
  bf16() = default;
  explicit bf16(float value) {
    uint32_t u;
    std::memcpy(&u, &value, 4);
    const bool is_nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = is_nan ? 0x7fff : static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
  }
  explicit operator float() const {
    const uint32_t u = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &u, 4);
    return value;
  }
};
struct alignas(4) bf162 { bf16 x, y; };

// D[16, 8] += A[16, 16] * B[16, 8], the lanes holding what PTX gives them for mma.sync.aligned.m16n8k16.row.col:
// lane 4g + t has A's rows g and g + 8 at columns 2t, 2t + 1 and those plus 8; B's rows 2t, 2t + 1 and those plus 8 at
// column g; D's rows g and g + 8 at columns 2t, 2t + 1. Summed in float64, rounded once: a tensor core rounds more.
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], CUDA_EMU_CALLER) {
  mma_m16n8k16_bf16(d, a, b, {"mma.m16n8k16", file, line});
}

}  // namespace cuda_emu

// --- CUDA's names ---------------------------------------------------------------------------------------------------

inline void __syncthreads(CUDA_EMU_CALLER) { cuda_emu::block_sync({"__syncthreads", file, line}); }
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_EMU_CALLER) {
  cuda_emu::warp_sync(mask, true, {"__syncwarp", file, line});
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_EMU_CALLER) {
  const int base = static_cast<int>(cuda_emu::lane()) & ~(width - 1);
  return cuda_emu::shuffle(mask, value, base + (source & (width - 1)), {"__shfl_sync", file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CUDA_EMU_CALLER) {
  const int own = static_cast<int>(cuda_emu::lane()), source = own ^ lanes, segment = ~(width - 1);
  const bool beyond = (source & segment) > (own & segment);
  return cuda_emu::shuffle(mask, value, beyond ? own : source, {"__shfl_xor_sync", file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, CUDA_EMU_CALLER) {
  const int own = static_cast<int>(cuda_emu::lane()), distance = static_cast<int>(lanes);
  const bool beyond = (own & (width - 1)) + distance >= width;
  return cuda_emu::shuffle(mask, value, beyond ? own : own + distance, {"__shfl_down_sync", file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32, CUDA_EMU_CALLER) {
  const int own = static_cast<int>(cuda_emu::lane()), distance = static_cast<int>(lanes);
  const bool beyond = (own & (width - 1)) < distance;
  return cuda_emu::shuffle(mask, value, beyond ? own : own - distance, {"__shfl_up_sync", file, line});
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_EMU_CALLER) {
  return cuda_emu::warp_ballot(mask, predicate != 0, {"__ballot_sync", file, line});
}
inline int __any_sync(unsigned mask, int predicate, CUDA_EMU_CALLER) {
  return cuda_emu::warp_ballot(mask, predicate != 0, {"__any_sync", file, line}) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_EMU_CALLER) {
  return cuda_emu::warp_ballot(mask, predicate == 0, {"__all_sync", file, line}) == 0;
}
inline void __nanosleep(unsigned, CUDA_EMU_CALLER) { cuda_emu::pause({"__nanosleep", file, line}); }
[[noreturn]] inline void __trap(CUDA_EMU_CALLER) { cuda_emu::fail({"__trap", file, line}, "the kernel gave up"); }

// Caches are not modelled; alignment is.
#define CUDA_EMU_LOAD(name)                          \
  template <class T>                                 \
  T name(const T* address, CUDA_EMU_CALLER) {        \
    cuda_emu::check_aligned(address, {#name, file, line}); \
    return *address;                                 \
  }
CUDA_EMU_LOAD(__ldg)
CUDA_EMU_LOAD(__ldcg)
CUDA_EMU_LOAD(__ldca)
CUDA_EMU_LOAD(__ldcs)
CUDA_EMU_LOAD(__ldlu)
#undef CUDA_EMU_LOAD
#define CUDA_EMU_STORE(name)                         \
  template <class T>                                 \
  void name(T* address, T value, CUDA_EMU_CALLER) {  \
    cuda_emu::check_aligned(address, {#name, file, line}); \
    *address = value;                                \
  }
CUDA_EMU_STORE(__stcg)
CUDA_EMU_STORE(__stcs)
CUDA_EMU_STORE(__stwb)
CUDA_EMU_STORE(__stwt)
#undef CUDA_EMU_STORE

inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __threadfence(); }

template <class T>
T atomicAdd(T* address, T value) {
  static_assert(std::is_integral<T>::value, "sums of floats by atomics depend on the schedule: not in this project");
  cuda_emu::note_relaxed_store();
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicExch(T* address, T value) {
  cuda_emu::note_relaxed_store();
  return __atomic_exchange_n(address, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicCAS(T* address, T expected, T value) {
  cuda_emu::note_relaxed_store();
  __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
template <class T>
T atomicOr(T* address, T value) {
  cuda_emu::note_relaxed_store();
  return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}

inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
#define CUDA_EMU_BIT_CAST(name, To, From) \
  inline To name(From value) {            \
    To bits;                              \
    std::memcpy(&bits, &value, 4);        \
    return bits;                          \
  }
CUDA_EMU_BIT_CAST(__float_as_uint, unsigned, float)
CUDA_EMU_BIT_CAST(__float_as_int, int, float)
CUDA_EMU_BIT_CAST(__uint_as_float, float, unsigned)
CUDA_EMU_BIT_CAST(__int_as_float, float, int)
#undef CUDA_EMU_BIT_CAST
#define CUDA_EMU_MIN_MAX(T)                              \
  constexpr T min(T a, T b) { return b < a ? b : a; }    \
  constexpr T max(T a, T b) { return a < b ? b : a; }
CUDA_EMU_MIN_MAX(int)
CUDA_EMU_MIN_MAX(unsigned)
CUDA_EMU_MIN_MAX(long)
CUDA_EMU_MIN_MAX(unsigned long)
CUDA_EMU_MIN_MAX(float)
#undef CUDA_EMU_MIN_MAX

using __nv_bfloat16 = cuda_emu::bf16;
using __nv_bfloat162 = cuda_emu::bf162;
inline __nv_bfloat16 __float2bfloat16(float value) { return cuda_emu::bf16(value); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return cuda_emu::bf16(value); }
inline float __bfloat162float(__nv_bfloat16 value) { return static_cast<float>(value); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {cuda_emu::bf16(x), cuda_emu::bf16(y)}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  __nv_bfloat16 value;
  value.bits = bits;
  return value;
}

namespace cooperative_groups {
struct thread_block {
  void sync(CUDA_EMU_CALLER) const { cuda_emu::block_sync({"thread_block.sync", file, line}); }
  unsigned thread_rank() const { return cuda_emu::thread_number(); }
};
inline thread_block this_thread_block() { return {}; }
struct grid_group {
  void sync(CUDA_EMU_CALLER) const { cuda_emu::grid_sync({"grid.sync", file, line}); }
};
inline grid_group this_grid() { return {}; }
struct cluster_group {
  void sync(CUDA_EMU_CALLER) const { cuda_emu::cluster_sync({"cluster.sync", file, line}); }
  unsigned block_rank() const { return cuda_emu::cluster_rank(); }
  unsigned num_blocks() const { return cuda_emu::cluster_size(); }
  template <class T>
  T* map_shared_rank(T* address, unsigned rank, CUDA_EMU_CALLER) const {
    return static_cast<T*>(cuda_emu::map_shared_rank(address, rank, {"map_shared_rank", file, line}));
  }
};
inline cluster_group this_cluster() { return {}; }
}  // namespace cooperative_groups

// The parts of the runtime's interface that a host function of kernels needs. "Device memory" is the heap.
using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t = nullptr) {
  std::memset(address, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* number) {
  *number = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

// --- shared memory and launches, as both compilers see them; nvcc's side is in csrc/cuda/portable.cuh ---------------

#define LSTMFAST_SHARED(T, name, ...)         \
  static const char name##_site = 0;          \
  using name##_array = T __VA_ARGS__;         \
  name##_array& name = *static_cast<name##_array*>( \
      ::cuda_emu::shared_array(&name##_site, sizeof(name##_array), {"shared array " #name, __FILE__, __LINE__}))
#define LSTMFAST_DYNAMIC_SHARED(T, name) \
  T* name = static_cast<T*>(::cuda_emu::dynamic_shared(alignof(T), {"dynamic shared " #name, __FILE__, __LINE__}))

#define LSTMFAST_LAUNCH(kernel, grid, block, dynamic_bytes, stream, ...) \
  ((void)(stream), ::cuda_emu::launch_kernel({(grid), (block), (dynamic_bytes), 1, false}, (kernel), ##__VA_ARGS__))
#define LSTMFAST_LAUNCH_COOPERATIVE(kernel, grid, block, dynamic_bytes, stream, ...) \
  ((void)(stream), ::cuda_emu::launch_kernel({(grid), (block), (dynamic_bytes), 1, true}, (kernel), ##__VA_ARGS__))
#define LSTMFAST_LAUNCH_CLUSTER(kernel, cluster_size, grid, block, dynamic_bytes, stream, ...)               \
  ((void)(stream), ::cuda_emu::launch_kernel({(grid), (block), (dynamic_bytes), (cluster_size), false}, (kernel), \
                                             ##__VA_ARGS__))

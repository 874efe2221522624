// What differs between nvcc and the host's compiler with the emulator of tests/support/cuda_emu. Kernels declare shared
// memory and launch by the macros below, and access words that other blocks write by the functions below. All inline
// PTX of the project is here, one instruction per function.
// Refuses to wrap anything else of CUDA: barriers, shuffles and cooperative groups are used directly.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#define LSTMFAST_SHARED(T, name, ...) __shared__ T name __VA_ARGS__
#define LSTMFAST_DYNAMIC_SHARED(T, name)                                        \
  extern __shared__ __align__(16) unsigned char lstmfast_dynamic_shared_bytes[]; \
  T* name = reinterpret_cast<T*>(lstmfast_dynamic_shared_bytes)

namespace lstmfast::cuda {

enum class LaunchKind { kPlain, kCooperative, kCluster };

// One launch. Arguments are converted to the kernel's parameters, as <<<>>> does. Returns a cudaError_t.
template <class Parameter, class Argument>
int launch_kernel(LaunchKind kind, unsigned cluster_size, void (*kernel)(Parameter), dim3 grid, dim3 block,
                  size_t dynamic_bytes, void* stream, const Argument& argument) {
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (dynamic_bytes > kWithoutAsking) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(dynamic_bytes));
    if (error != cudaSuccess) return error;
  }
  constexpr unsigned kPortableCluster = 8;
  if (kind == LaunchKind::kCluster && cluster_size > kPortableCluster) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attribute = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  if (kind == LaunchKind::kCooperative) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  } else if (kind == LaunchKind::kCluster) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {cluster_size, 1, 1};
  }
  if (kind != LaunchKind::kPlain) {
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, Parameter(argument));
}

}  // namespace lstmfast::cuda

#define LSTMFAST_LAUNCH(kernel, grid, block, dynamic_bytes, stream, ...)                                           \
  ::lstmfast::cuda::launch_kernel(::lstmfast::cuda::LaunchKind::kPlain, 1, (kernel), (grid), (block), (dynamic_bytes), \
                                  (stream), __VA_ARGS__)
#define LSTMFAST_LAUNCH_COOPERATIVE(kernel, grid, block, dynamic_bytes, stream, ...)                        \
  ::lstmfast::cuda::launch_kernel(::lstmfast::cuda::LaunchKind::kCooperative, 1, (kernel), (grid), (block), \
                                  (dynamic_bytes), (stream), __VA_ARGS__)
#define LSTMFAST_LAUNCH_CLUSTER(kernel, cluster_size, grid, block, dynamic_bytes, stream, ...)                       \
  ::lstmfast::cuda::launch_kernel(::lstmfast::cuda::LaunchKind::kCluster, (cluster_size), (kernel), (grid), (block), \
                                  (dynamic_bytes), (stream), __VA_ARGS__)

#else

#include "cuda_emu.h"  // defines the same names

#endif

// Bugs that a test plants by name, to check that the tests catch them; tests/support/cuda_planted.h numbers them. In
// every other build each is the constant false.
#ifdef LSTMFAST_PLANTED_BUGS
#include "cuda_planted.h"
#define LSTMFAST_PLANTED(bug) (::lstmfast::cuda::planted_bug == ::lstmfast::cuda::PlantedBug::bug)
#else
#define LSTMFAST_PLANTED(bug) false
#endif

namespace lstmfast::cuda {

constexpr unsigned kWholeWarp = 0xffffffffu;

// d[16, 8] += a[16, 16]·b[16, 8], bfloat16 in, float32 out. Lane 4g + t holds d[g][2t], d[g][2t + 1], d[g + 8][2t],
// d[g + 8][2t + 1]; in a.x, a.y the pairs a[g][2t..], a[g + 8][2t..] and in a.z, a.w the same 8 columns further; in b0,
// b1 the pairs b[2t..][g], b[2t + 8..][g]. Needs compute capability 8.0, which plans check.
__device__ __forceinline__ void multiply_accumulate(float (&d)[4], const uint4& a, uint32_t b0, uint32_t b1) {
#ifndef __CUDACC__
  const uint32_t a_words[4] = {a.x, a.y, a.z, a.w}, b_words[2] = {b0, b1};
  cuda_emu::mma_m16n8k16(d, a_words, b_words);
#elif __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
#else
  __trap();
#endif
}

// Words that other blocks write while this one reads. They are read from L2 and order no other access; the four words
// of a vector may be from different times.
__device__ __forceinline__ uint4 load_relaxed_128(const void* address) {
#ifdef __CUDACC__
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address)
               : "memory");
  return v;
#else
  return cuda_emu::load_relaxed(static_cast<const uint4*>(address));
#endif
}

__device__ __forceinline__ uint32_t load_relaxed_32(const void* address) {
#ifdef __CUDACC__
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(address) : "memory");
  return v;
#else
  return cuda_emu::load_relaxed(static_cast<const uint32_t*>(address));
#endif
}

__device__ __forceinline__ void store_relaxed_32(void* address, uint32_t word) {
#ifdef __CUDACC__
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(word) : "memory");
#else
  cuda_emu::store_relaxed(static_cast<uint32_t*>(address), word);
#endif
}

__device__ __forceinline__ void store_relaxed_64(void* address, uint2 words) {
#ifdef __CUDACC__
  asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1,%2};" ::"l"(address), "r"(words.x), "r"(words.y) : "memory");
#else
  cuda_emu::store_relaxed(static_cast<uint2*>(address), words);
#endif
}

// Called between polls of a word. A GPU runs other warps anyway; the emulator's fibers must yield.
__device__ __forceinline__ void pause_between_polls() {
#ifndef __CUDACC__
  cuda_emu::pause({"poll", __FILE__, __LINE__});
#endif
}

}  // namespace lstmfast::cuda

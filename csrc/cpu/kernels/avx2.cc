// AVX2 and FMA: 32-byte vectors, 16 registers. Intel Haswell (2013), AMD Zen (2017) and later.
#include <immintrin.h>

#include "core/inline.h"

namespace lstmfast {
namespace {

constexpr int kVectorBytes = 32;
constexpr int kTileRows = 3;  // 3 x 4 accumulators, 3 broadcasts and 1 weight: all 16 registers

LSTMFAST_INLINE __m256 fused_multiply_add(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
LSTMFAST_INLINE __m256d fused_multiply_add(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }

#define LSTMFAST_ISA_HAS_WIDE_PRODUCTS
using WidePairs = unsigned long long __attribute__((vector_size(kVectorBytes)));
LSTMFAST_INLINE WidePairs multiply_low_halves(WidePairs a, WidePairs b) {
  return (WidePairs)_mm256_mul_epu32((__m256i)a, (__m256i)b);
}

}  // namespace
}  // namespace lstmfast

#include "cpu/kernels/kernels-inl.h"

extern "C" const lstmfast::Kernels* lstmfast_kernels_avx2() noexcept { return &lstmfast::kKernels; }

// What AVX2 and FMA bring to the kernel source: 32-byte vectors and 16 registers.
#pragma once

#include <immintrin.h>

#include "core/inline.h"

namespace lstmfast {
namespace {

constexpr int kVectorBytes = 32;
constexpr int kTileRows = 3;  // 3 x 4 accumulators, 3 broadcasts and 1 weight: all 16 registers

LSTMFAST_INLINE __m256 fused_multiply_add(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
LSTMFAST_INLINE __m256d fused_multiply_add(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }

// VPMADDWD on pairs; avx2_vnni.cc has an instruction that also adds.
#ifndef LSTMFAST_ISA_HAS_DOT_PRODUCTS
#define LSTMFAST_ISA_HAS_PAIR_PRODUCTS
template <typename Words>
LSTMFAST_INLINE Words multiply_pairs(Words a, Words b) {
  return (Words)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}
#endif

#define LSTMFAST_ISA_HAS_WIDE_PRODUCTS
using WidePairs = unsigned long long __attribute__((vector_size(kVectorBytes)));
LSTMFAST_INLINE WidePairs multiply_low_halves(WidePairs a, WidePairs b) {
  return (WidePairs)_mm256_mul_epu32((__m256i)a, (__m256i)b);
}

}  // namespace
}  // namespace lstmfast

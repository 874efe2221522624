// What AVX-512 (F, BW, DQ, VL) brings to the kernel source: 64-byte vectors and 32 registers.
#pragma once

#include <immintrin.h>

#include "core/inline.h"

namespace lstmfast {
namespace {

constexpr int kVectorBytes = 64;
constexpr int kTileRows = 6;  // 6 x 4 accumulators, 4 weights, 1 broadcast: 29 of 32 registers

LSTMFAST_INLINE __m512 fused_multiply_add(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
LSTMFAST_INLINE __m512d fused_multiply_add(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }

// As in vec-inl.h, in fewer instructions. 2^n has no limits here: it may also be infinite or vanish.
#define LSTMFAST_ISA_HAS_POWERS_OF_TWO
constexpr int kToNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
LSTMFAST_INLINE __m512 nearest_integer(__m512 u, __m512& rest) {
  rest = _mm512_reduce_ps(u, kToNearest);
  return u - rest;
}
LSTMFAST_INLINE __m512d nearest_integer(__m512d u, __m512d& rest) {
  rest = _mm512_reduce_pd(u, kToNearest);
  return u - rest;
}
LSTMFAST_INLINE __m512 times_power_of_two(__m512 a, __m512 n) { return _mm512_scalef_ps(a, n); }
LSTMFAST_INLINE __m512d times_power_of_two(__m512d a, __m512d n) { return _mm512_scalef_pd(a, n); }

#define LSTMFAST_ISA_HAS_MASKS
LSTMFAST_INLINE unsigned first_lanes(Index lanes) { return lanes > 0 ? (1u << lanes) - 1 : 0; }
LSTMFAST_INLINE __m512 load_first(const float* p, Index lanes, float fill) {
  return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), static_cast<__mmask16>(first_lanes(lanes)), p);
}
LSTMFAST_INLINE __m512d load_first(const double* p, Index lanes, double fill) {
  return _mm512_mask_loadu_pd(_mm512_set1_pd(fill), static_cast<__mmask8>(first_lanes(lanes)), p);
}
LSTMFAST_INLINE void store_first(float* p, __m512 v, Index lanes) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(first_lanes(lanes)), v);
}
LSTMFAST_INLINE void store_first(double* p, __m512d v, Index lanes) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(first_lanes(lanes)), v);
}

// VPMADDWD on pairs; avx512_vnni-inl.h has an instruction that also adds.
#ifndef LSTMFAST_ISA_HAS_DOT_PRODUCTS
#define LSTMFAST_ISA_HAS_PAIR_PRODUCTS
template <typename Words>
LSTMFAST_INLINE Words multiply_pairs(Words a, Words b) {
  return (Words)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}
#endif

#define LSTMFAST_ISA_HAS_WIDE_PRODUCTS
using WidePairs = unsigned long long __attribute__((vector_size(kVectorBytes)));
LSTMFAST_INLINE WidePairs multiply_low_halves(WidePairs a, WidePairs b) {
  return (WidePairs)_mm512_mul_epu32((__m512i)a, (__m512i)b);
}

}  // namespace
}  // namespace lstmfast

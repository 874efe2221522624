// What NEON on 64-bit Arm brings to the kernel source: 16-byte vectors, 32 registers, fused multiply-add.
#pragma once

#include <arm_neon.h>

#include "core/inline.h"

namespace lstmfast {
namespace {

constexpr int kVectorBytes = 16;
constexpr int kTileRows = 6;  // 6 x 4 accumulators, 4 weights, 1 broadcast: 29 of 32 registers

LSTMFAST_INLINE float32x4_t fused_multiply_add(float32x4_t a, float32x4_t b, float32x4_t c) {
  return vfmaq_f32(c, a, b);
}
LSTMFAST_INLINE float64x2_t fused_multiply_add(float64x2_t a, float64x2_t b, float64x2_t c) {
  return vfmaq_f64(c, a, b);
}

// neon.cc and neon_dotprod.cc multiply int8 fours as signed bytes. int16 pairs are left to the generic code: no instruction
// makes more than four of their products, as many as FMLA of float32, so no path chooses them.
#define LSTMFAST_ISA_HAS_SIGNED_FOURS

#define LSTMFAST_ISA_HAS_WIDE_PRODUCTS
using WidePairs = unsigned long long __attribute__((vector_size(kVectorBytes)));
LSTMFAST_INLINE WidePairs multiply_low_halves(WidePairs a, WidePairs b) {
  return (WidePairs)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
}

}  // namespace
}  // namespace lstmfast

// NEON on 64-bit Arm. Every AArch64 CPU.
#include "cpu/kernels/neon-inl.h"
#include "cpu/kernels/vec-inl.h"

namespace lstmfast {
namespace {

constexpr bool kHasDotProductsOfFours = false;

LSTMFAST_INLINE VecBits<float> spread_fours(int word) { return word - VecBits<float>{}; }

// Four instructions for 16 products. A sum of two, at most 2 * 127 * 127, is an int16.
LSTMFAST_INLINE VecBits<float> add_products_of_fours(VecBits<float> a, VecBits<float> b, VecBits<float> sum) {
  const int8x16_t left = (int8x16_t)a, right = (int8x16_t)b;
  const int16x8_t low = vmull_s8(vget_low_s8(left), vget_low_s8(right)), high = vmull_high_s8(left, right);
  return (VecBits<float>)vpadalq_s16((int32x4_t)sum, vpaddq_s16(low, high));
}

}  // namespace
}  // namespace lstmfast

#include "cpu/kernels/kernels-inl.h"

extern "C" const lstmfast::Kernels* lstmfast_kernels_neon() noexcept { return &lstmfast::kKernels; }

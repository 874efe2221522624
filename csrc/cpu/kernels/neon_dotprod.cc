// NEON with FEAT_DotProd of Armv8.2: dot products of int8 fours in one instruction. AWS Graviton 2, Apple M1, Raspberry
// Pi 5 and later.
#if !defined(__clang__)
#pragma GCC target("arch=armv8.2-a+dotprod")  // its assembler takes the instruction for no earlier one
#endif
#include "cpu/kernels/neon-inl.h"
#include "cpu/kernels/vec-inl.h"

namespace lstmfast {
namespace {

constexpr bool kHasDotProductsOfFours = true;

// SDOT multiplies by one lane, so that a left word need not be broadcast: on Neoverse N1 and Cortex-A76 a load to all
// lanes occupies one of the two units that multiply. As assembly, because Clang makes such loads of the intrinsic's
// factor.
LSTMFAST_INLINE float spread_fours(int word) {
  float lane;
  __builtin_memcpy(&lane, &word, sizeof lane);
  return lane;
}
LSTMFAST_INLINE VecBits<float> add_products_of_fours(float a, VecBits<float> b, VecBits<float> sum) {
  asm(".arch_extension dotprod\n\tsdot %0.4s, %1.16b, %2.4b[0]" : "+w"(sum) : "w"(b), "w"(a));
  return sum;
}

}  // namespace
}  // namespace lstmfast

#include "cpu/kernels/dot-inl.h"

extern "C" const lstmfast::DotKernelSet* lstmfast_kernels_neon_dotprod() noexcept { return &lstmfast::kDotKernels; }

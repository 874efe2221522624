// Any CPU: 16-byte vectors in the compiler's baseline instructions (SSE2 on x86-64).

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "core/inline.h"

namespace lstmfast {
namespace {

constexpr int kVectorBytes = 16;
constexpr int kTileRows = 2;  // 2 x 4 accumulators, 4 weights, 1 broadcast and a product: 14 of 16 registers

template <typename V>
LSTMFAST_INLINE V fused_multiply_add(V a, V b, V c) {
  return a * b + c;  // two roundings: these CPUs have no fused instruction
}

#if defined(__SSE2__)
#define LSTMFAST_ISA_HAS_PAIR_PRODUCTS
template <typename Words>
LSTMFAST_INLINE Words multiply_pairs(Words a, Words b) {
  return (Words)_mm_madd_epi16((__m128i)a, (__m128i)b);
}

#define LSTMFAST_ISA_HAS_WIDE_PRODUCTS
using WidePairs = unsigned long long __attribute__((vector_size(kVectorBytes)));
LSTMFAST_INLINE WidePairs multiply_low_halves(WidePairs a, WidePairs b) {
  return (WidePairs)_mm_mul_epu32((__m128i)a, (__m128i)b);
}
#endif

}  // namespace
}  // namespace lstmfast

#include "cpu/kernels/kernels-inl.h"

extern "C" const lstmfast::Kernels* lstmfast_kernels_generic() noexcept { return &lstmfast::kKernels; }

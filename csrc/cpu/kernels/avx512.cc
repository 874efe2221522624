// AVX-512 (F, BW, DQ, VL): 64-byte vectors, 32 registers. Intel Skylake-X (2017), AMD Zen 4 (2022) and later.
#include <immintrin.h>

#include "core/inline.h"

namespace lstmfast {
namespace {

constexpr int kVectorBytes = 64;
constexpr int kTileRows = 6;  // 6 x 4 accumulators, 4 weights, 1 broadcast: 29 of 32 registers

LSTMFAST_INLINE __m512 fused_multiply_add(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
LSTMFAST_INLINE __m512d fused_multiply_add(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }

}  // namespace
}  // namespace lstmfast

#include "cpu/kernels/kernels-inl.h"

extern "C" const lstmfast::Kernels* lstmfast_kernels_avx512() noexcept { return &lstmfast::kKernels; }

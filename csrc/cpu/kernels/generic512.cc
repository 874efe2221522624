// The shapes of AVX-512 from baseline instructions: slow, and built only for tests (LSTMFAST_TEST_ISAS), so that every
// line of the 64-byte kernels also runs on CPUs that have no AVX-512.

#include "core/inline.h"

namespace lstmfast {
namespace {

constexpr int kVectorBytes = 64;
constexpr int kTileRows = 6;  // as in avx512.cc

template <typename V>
LSTMFAST_INLINE V fused_multiply_add(V a, V b, V c) {
  return a * b + c;  // two roundings: these CPUs have no fused instruction
}

}  // namespace
}  // namespace lstmfast

#include "cpu/kernels/kernels-inl.h"

extern "C" const lstmfast::Kernels* lstmfast_kernels_generic512() noexcept { return &lstmfast::kKernels; }

// Any CPU: 16-byte vectors of whatever the compiler's baseline offers (SSE2 on x86-64).

#include "core/inline.h"

namespace lstmfast {
namespace {

constexpr int kVectorBytes = 16;
constexpr int kTileRows = 2;  // 2 x 4 accumulators, 4 weights, 1 broadcast and a product: 14 of 16 registers

template <typename V>
LSTMFAST_INLINE V fused_multiply_add(V a, V b, V c) {
  return a * b + c;  // two roundings: these CPUs have no fused instruction
}

}  // namespace
}  // namespace lstmfast

#include "cpu/kernels/kernels-inl.h"

extern "C" const lstmfast::Kernels* lstmfast_kernels_generic() noexcept { return &lstmfast::kKernels; }

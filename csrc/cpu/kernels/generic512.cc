// The shapes of AVX-512 and AMX from baseline instructions: slow, and built only for tests (LSTMFAST_TEST_ISAS), so
// that the 64-byte kernels, and the bf16x and int8 products except tile instructions, also run on CPUs that have neither.

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
#include "cpu/kernels/tile_registers-inl.h"
// These ask for the registers above.
#include "cpu/kernels/bf16x-inl.h"
#include "cpu/kernels/int8_tiles-inl.h"

namespace lstmfast {
namespace {

constexpr DotKernelSet kWithInt8Tiles{kDotKernels.int16, kInt8TileKernels};
constexpr Kernels kWithTiles{kKernels.float32, kKernels.float64, kKernels.step_bfloat16, &kWithInt8Tiles, &kBf16xKernels};

}  // namespace
}  // namespace lstmfast

extern "C" const lstmfast::Kernels* lstmfast_kernels_generic512() noexcept { return &lstmfast::kWithTiles; }

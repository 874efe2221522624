// AMX tiles with bfloat16: Intel Sapphire Rapids (2023) and later. Only what AVX-512 lacks: bf16x products. The rest of
// this ISA is the table of avx512.cc, the int16 products of avx512_vnni.cc and the int8 products of amx_int8.cc.
#define LSTMFAST_TILE_PRODUCT _tile_dpbf16ps
#include "cpu/bf16x_kernels.h"
#include "cpu/kernels/amx_tiles-inl.h"

namespace lstmfast {
namespace {

constexpr int kVectorBytes = 64;

class TileRegisters : public AmxTiles {
 public:
  static constexpr int kMostParts = kBf16xMostParts;
  static constexpr bool kLeftByPairs = false;

  template <int kTile>
  LSTMFAST_INLINE void open(const float* from, Index stride) {
    load<kTile>(from, stride);
  }
  template <int kTile>
  LSTMFAST_INLINE void open_zero(const float*, Index) {
    zero<kTile>();
  }
  template <int kTile>
  LSTMFAST_INLINE void close(float* to, Index stride) const {
    store<kTile>(to, stride);
  }
};

}  // namespace
}  // namespace lstmfast

#include "cpu/kernels/bf16x-inl.h"

extern "C" const lstmfast::Bf16xKernels* lstmfast_kernels_amx() noexcept { return &lstmfast::kBf16xKernels; }

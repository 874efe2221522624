// The tile registers of AMX, whatever they multiply. The including .cc defines LSTMFAST_TILE_PRODUCT first: the
// intrinsic that does.
#pragma once

#include <immintrin.h>

#include "core/inline.h"

namespace lstmfast {
namespace {

// What ldtilecfg reads: palette 1, eight registers of 16 rows of 64 bytes.
struct alignas(64) TileConfiguration {
  unsigned char palette = 1, start_row = 0;
  unsigned char reserved[14] = {};
  unsigned short row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  unsigned char rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfiguration) == 64, "as the hardware reads it");
constexpr TileConfiguration kTileConfiguration{};

// The compiler does not see what these instructions read and write, and GCC's intrinsics do not declare it: without the
// barriers it may move stores to a tile's memory from one side of the tile's load to the other.
LSTMFAST_INLINE void order_memory() { asm volatile("" ::: "memory"); }

// Intrinsics need literal register numbers.
#define LSTMFAST_FOR_TILE(number, instruction) \
  do {                                         \
    if constexpr ((number) == 0) instruction(0); \
    if constexpr ((number) == 1) instruction(1); \
    if constexpr ((number) == 2) instruction(2); \
    if constexpr ((number) == 3) instruction(3); \
    if constexpr ((number) == 4) instruction(4); \
    if constexpr ((number) == 5) instruction(5); \
    if constexpr ((number) == 6) instruction(6); \
    if constexpr ((number) == 7) instruction(7); \
  } while (false)

// The thread's tile registers, in use from `configure` to `release`, which resets them so that neither other libraries
// nor context switches pay for them.
class AmxTiles {
 public:
  LSTMFAST_INLINE void configure() {
    order_memory();
    _tile_loadconfig(&kTileConfiguration);
  }
  LSTMFAST_INLINE void release() { _tile_release(); }

  template <int kTile>
  LSTMFAST_INLINE void zero() {
#define LSTMFAST_ZERO(tile) _tile_zero(tile)
    LSTMFAST_FOR_TILE(kTile, LSTMFAST_ZERO);
#undef LSTMFAST_ZERO
  }

  template <int kTile>
  LSTMFAST_INLINE void load(const void* from, Index stride) {
    order_memory();
#define LSTMFAST_LOAD(tile) _tile_loadd(tile, from, stride)
    LSTMFAST_FOR_TILE(kTile, LSTMFAST_LOAD);
#undef LSTMFAST_LOAD
    order_memory();
  }

  template <int kTile>
  LSTMFAST_INLINE void store(void* to, Index stride) const {
#define LSTMFAST_STORE(tile) _tile_stored(tile, to, stride)
    LSTMFAST_FOR_TILE(kTile, LSTMFAST_STORE);
#undef LSTMFAST_STORE
    order_memory();
  }

  template <int kTo, int kLeft, int kRight>
  LSTMFAST_INLINE void multiply() {
    constexpr int kAll = 100 * kTo + 10 * kLeft + kRight;
    if constexpr (kAll == 46) LSTMFAST_TILE_PRODUCT(0, 4, 6);
    if constexpr (kAll == 147) LSTMFAST_TILE_PRODUCT(1, 4, 7);
    if constexpr (kAll == 246) LSTMFAST_TILE_PRODUCT(2, 4, 6);
    if constexpr (kAll == 347) LSTMFAST_TILE_PRODUCT(3, 4, 7);
    if constexpr (kAll == 256) LSTMFAST_TILE_PRODUCT(2, 5, 6);
    if constexpr (kAll == 357) LSTMFAST_TILE_PRODUCT(3, 5, 7);
    static_assert(kAll == 46 || kAll == 147 || kAll == 246 || kAll == 347 || kAll == 256 || kAll == 357, "listed above");
  }
};
#undef LSTMFAST_FOR_TILE

}  // namespace
}  // namespace lstmfast

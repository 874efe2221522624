// AMX tiles with bfloat16: Intel Sapphire Rapids (2023) and later. Only what AVX-512 lacks: bf16x products. Everything
// else of this ISA is the table of avx512.cc.
#include <immintrin.h>

#include "core/inline.h"
#include "cpu/bf16x_kernels.h"

namespace lstmfast {
namespace {

constexpr int kVectorBytes = 64;

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
class TileRegisters {
 public:
  static constexpr int kMostParts = kBf16xMostParts;
  static constexpr bool kLeftByPairs = false;

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

  template <int kTo, int kLeft, int kRight>
  LSTMFAST_INLINE void multiply() {
    constexpr int kAll = 100 * kTo + 10 * kLeft + kRight;
    if constexpr (kAll == 46) _tile_dpbf16ps(0, 4, 6);
    if constexpr (kAll == 147) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kAll == 246) _tile_dpbf16ps(2, 4, 6);
    if constexpr (kAll == 347) _tile_dpbf16ps(3, 4, 7);
    if constexpr (kAll == 256) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kAll == 357) _tile_dpbf16ps(3, 5, 7);
    static_assert(kAll == 46 || kAll == 147 || kAll == 246 || kAll == 347 || kAll == 256 || kAll == 357, "listed above");
  }
};
#undef LSTMFAST_FOR_TILE

}  // namespace
}  // namespace lstmfast

#include "cpu/kernels/bf16x-inl.h"

extern "C" const lstmfast::Bf16xKernels* lstmfast_kernels_amx() noexcept { return &lstmfast::kBf16xKernels; }

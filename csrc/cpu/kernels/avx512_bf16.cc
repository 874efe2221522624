// AVX-512 with BF16: dot products of pairs of bfloat16 into float32. Intel Cooper Lake (2020), AMD Zen 4 (2022) and later.
// Only what AVX-512 has not: bf16x products of one part, at twice the rate of float32 on AMD. Two parts are three products,
// which would be slower than float32.
#include "cpu/bf16x_kernels.h"
#include "cpu/kernels/avx512-inl.h"
#include "cpu/kernels/vec-inl.h"

namespace lstmfast {
namespace {

// The accumulators of a block lie in memory, their own or where `open` found them, and pass through the real registers some
// rows at a time.
class TileRegisters {
 public:
  static constexpr int kMostParts = 1;
  static constexpr bool kLeftByPairs = true;

  void configure() {}
  void release() {}

  template <int kTile>
  LSTMFAST_INLINE void zero() {
    for (int row = 0; row < 16; ++row) own<kTile>()[row] = Vec<float>{};
  }

  // Rows of 64 bytes, `stride` bytes apart.
  template <int kTile>
  LSTMFAST_INLINE void load(const void* from, Index stride) {
    for (int row = 0; row < 16; ++row)
      own<kTile>()[row] = lstmfast::load(reinterpret_cast<const float*>(static_cast<const char*>(from) + row * stride));
  }

  template <int kTile>
  LSTMFAST_INLINE void store(void* to, Index stride) const {
    for (int row = 0; row < 16; ++row)
      lstmfast::store(reinterpret_cast<float*>(static_cast<char*>(to) + row * stride), tiles_[kTile][row]);
  }

  template <int kTile>
  LSTMFAST_INLINE void open(float* at, Index stride) {
    const Index step = stride / static_cast<Index>(sizeof(float));
    places_[kTile] = {at, step, at, step};
  }
  template <int kTile>
  LSTMFAST_INLINE void open_zero(float* at, Index stride) {
    alignas(64) static constexpr float kZeros[16] = {};
    places_[kTile] = {at, stride / static_cast<Index>(sizeof(float)), kZeros, 0};
  }
  template <int kTile>
  LSTMFAST_INLINE void close(float* to, Index stride) const {
    if (places_[kTile].at != to) store<kTile>(to, stride);
  }

  // Accumulators += R row tiles times C column tiles, each `to_next` elements from the one before it.
  template <int R, int C, bool kLeftByPairs>
  LSTMFAST_NOINLINE void multiply_block(const Bfloat16* left, const Bfloat16* right, Index to_next, Index depth_tiles) {
    constexpr int kRows = C == 4 ? 6 : 8;  // times C accumulators, C weights and a broadcast: at most 29 registers
    for (int r = 0; r < R; ++r) {
      int row = 0;
      for (; row + kRows <= 16; row += kRows)
        multiply_rows<kRows, C, kLeftByPairs>(r, row, left + r * to_next, right, to_next, depth_tiles);
      if constexpr (16 % kRows != 0)
        multiply_rows<16 % kRows, C, kLeftByPairs>(r, row, left + r * to_next, right, to_next, depth_tiles);
    }
  }

 private:
  template <int kRows, int C, bool kLeftByPairs>
  LSTMFAST_INLINE void multiply_rows(int r, int row, const Bfloat16* left, const Bfloat16* right, Index to_next,
                                     Index depth_tiles) {
    Vec<float> sums[kRows][C];
    LSTMFAST_UNROLL
    for (int i = 0; i < kRows; ++i)
      for (int c = 0; c < C; ++c) sums[i][c] = lstmfast::load(places_[2 * r + c].start(row + i));
    constexpr int kRowStep = kLeftByPairs ? 1 : 16, kPairStep = kLeftByPairs ? 16 : 1;
    const int* pairs = reinterpret_cast<const int*>(left) + row * kRowStep;
    for (Index k = 0; k < depth_tiles; ++k, pairs += kBf16xTile / 2, right += kBf16xTile)
      for (int pair = 0; pair < 16; ++pair) {
        Vec<float> b[C];
        for (int c = 0; c < C; ++c)
          b[c] = lstmfast::load(reinterpret_cast<const float*>(right + c * to_next) + pair * 16);
        LSTMFAST_UNROLL
        for (int i = 0; i < kRows; ++i) {
          const Vec<float> a = (Vec<float>)_mm512_set1_epi32(pairs[i * kRowStep + pair * kPairStep]);
          // As assembly for the reason given in avx512_vnni-inl.h.
          for (int c = 0; c < C; ++c) asm("vdpbf16ps %2, %1, %0" : "+v"(sums[i][c]) : "v"(a), "v"(b[c]));
        }
      }
    LSTMFAST_UNROLL
    for (int i = 0; i < kRows; ++i)
      for (int c = 0; c < C; ++c) lstmfast::store(places_[2 * r + c].row(row + i), sums[i][c]);
  }

  struct Place {
    float* at;
    Index step;
    const float* begins_at;
    Index begin_step;
    LSTMFAST_INLINE const float* start(Index r) const { return begins_at + r * begin_step; }
    LSTMFAST_INLINE float* row(Index r) const { return at + r * step; }
  };
  template <int kTile>
  LSTMFAST_INLINE Vec<float>* own() {
    float* at = reinterpret_cast<float*>(tiles_[kTile]);
    places_[kTile] = {at, 16, at, 16};
    return tiles_[kTile];
  }

  Vec<float> tiles_[4][16];
  Place places_[4];
};

}  // namespace
}  // namespace lstmfast

#include "cpu/kernels/bf16x-inl.h"

extern "C" const lstmfast::Bf16xKernels* lstmfast_kernels_avx512_bf16() noexcept { return &lstmfast::kBf16xKernels; }

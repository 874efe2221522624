// Products of int8 fours in tile registers. They read the factors as dot-inl.h packs them: a left tile is 16 rows of 16
// words, a right tile 16 words of depth of one gate. The sums are exact, so the bits are those of every other ISA.
// The including .cc defines `Int8TileRegisters` first: registers of 16 x 64 bytes that can configure, release, load,
// store and multiply (unsigned times signed bytes). amx_tiles-inl.h has those of AMX, tile_registers-inl.h a stand-in.
#pragma once

#include "cpu/kernels/dot-inl.h"

namespace lstmfast {
namespace {

constexpr Index kTileSide = 16;  // rows, words of depth, and columns
static_assert(kLanes<float> == kTileSide, "gate panels have the lanes of a tile");
static_assert(kDotPiece % kTileSide == 0, "only the last piece of a panel ends in a smaller tile");

// Fewer rows are multiplied in vectors. Calculated, not measured: 16 words of depth of a panel take four products of
// tiles, 64 cycles however many rows are in use, or 32 cycles a row in vectors (two dot products a cycle); and the tiles
// of a piece take 96 more to load and store their sums. So tiles gain from 6 rows on at any depth, and from 3 in whole
// pieces.
constexpr Index kFewestTileRows = 6;

template <int kNumber>
struct Number {
  static constexpr int value = kNumber;
};
// Calls body(Number<0>), ..., body(Number<kCount - 1>): registers are named by constants.
template <int kCount, int kNumber = 0, typename Body>
LSTMFAST_INLINE void for_each_number(const Body& body) {
  if constexpr (kNumber < kCount) {
    body(Number<kNumber>{});
    for_each_number<kCount, kNumber + 1>(body);
  }
}

class Int8TileUnit;
struct Int8InTiles : Int8Fours {
  using Unit = Int8TileUnit;
};

class Int8TileUnit {
 public:
  static constexpr bool kIsFast = true;
  static constexpr Index kRowsReadAtOnce = kTileSide;

  LSTMFAST_INLINE explicit Int8TileUnit(Index rows) : in_use_(rows >= kFewestTileRows) {
    if (in_use_) registers_.configure();
  }
  LSTMFAST_INLINE ~Int8TileUnit() {
    if (in_use_) registers_.release();
  }

  LSTMFAST_INLINE void multiply(const DotTiles<Int8InTiles>& piece, Index count) {
    Index row = 0;
    if (count >= kFewestTileRows) {
      alignas(64) int rest[kTileSide * W];
      const Index rest_words = piece.depth % kTileSide;
      if (rest_words > 0) {
        __builtin_memcpy(rest, piece.piece + (piece.depth - rest_words) * W, sizeof(int) * rest_words * W);
        __builtin_memset(rest + rest_words * W, 0, sizeof(int) * (kTileSide - rest_words) * W);
      }
      for (; count - row >= kTileSide + kFewestTileRows; row += 2 * kTileSide) run<2>(piece, rest, row, count);
      for (; count - row >= kFewestTileRows; row += kTileSide) run<1>(piece, rest, row, count);
    }
    run_tiles<smaller_tile(kTileRows)>(row, count, piece);
  }

 private:
  static constexpr Index W = kGateCount * kTileSide;

  // Up to R tiles of rows. Blocks of 2 x 2 tiles need the fewest loads; a single row tile takes all four gates, because
  // a sum is ready for its next product only after the time of three others.
  template <int R>
  LSTMFAST_INLINE void run(const DotTiles<Int8InTiles>& piece, const int* rest, Index row, Index count) {
    constexpr int C = kGateCount / R;
    alignas(64) int sums[R * kTileSide * W];
    for (Index column = 0; column < W; column += C * kTileSide)
      multiply_block<R, C>(piece, piece.words + row * piece.stride, rest + column, column, sums + column);
    for (Index r = 0; r < R * kTileSide && row + r < count; ++r) {
      DotWords of_row[kGateCount];
      for (int n = 0; n < kGateCount; ++n) of_row[n] = load_words(sums + r * W + n * kTileSide);
      piece.add(row + r, of_row);
    }
  }

  template <int R, int C>
  LSTMFAST_NOINLINE void multiply_block(const DotTiles<Int8InTiles>& piece, const int* left, const int* rest,
                                        Index column, int* sums) {
    // Read once: the compiler must assume that a tile load may access any memory.
    const Index stride = piece.stride, depth = piece.depth;
    const int *right = piece.piece + column, *starts = piece.starts + column;
    for_each_number<R * C>([&](auto n) { registers_.template load<n.value>(starts + n.value % C * kTileSide, 0); });
    Index k = 0;
    for (; k + kTileSide <= depth; k += kTileSide, left += kTileSide, right += kTileSide * W)
      multiply_tiles<R, C>(left, stride, right);
    if (k < depth) multiply_tiles<R, C>(left, stride, rest);
    for_each_number<R * C>([&](auto n) {
      int* to = sums + n.value / C * kTileSide * W + n.value % C * kTileSide;
      registers_.template store<n.value>(to, kRowBytes);
    });
  }

  // Registers: sums 0 to 3, left 4 and 5, right 6 and 7.
  template <int R, int C>
  LSTMFAST_INLINE void multiply_tiles(const int* left, Index stride, const int* right) {
    const Index left_bytes = stride * static_cast<Index>(sizeof(int));
    registers_.template load<4>(left, left_bytes);
    if constexpr (R == 2) registers_.template load<5>(left + kTileSide * stride, left_bytes);
    for_each_number<C>([&](auto c) {
      constexpr int kRight = 6 + c.value % 2;
      registers_.template load<kRight>(right + c.value * kTileSide, kRowBytes);
      registers_.template multiply<c.value, 4, kRight>();
      if constexpr (R == 2) registers_.template multiply<C + c.value, 5, kRight>();
    });
  }

  static constexpr Index kRowBytes = W * static_cast<Index>(sizeof(int));
  Int8TileRegisters registers_;
  bool in_use_;
};

constexpr DotKernels kInt8TileKernels = make_dot_kernels<Int8InTiles>();

}  // namespace
}  // namespace lstmfast

// Bf16x products: packing floats as sums of bfloat16, and the loop over tiles that multiplies them. bf16x_kernels.h
// defines them and their memory layout.
// The including .cc defines kVectorBytes (64) and `TileRegisters` first: registers of 16 x 64 bytes that can configure,
// release, zero, load, store and multiply; open, open_zero and close are load, zero and store of a tile that has its place in memory.
// Everything else is here, and is tested on CPUs without them (tile_registers-inl.h).
#pragma once

#include "core/gates.h"
#include "cpu/kernels/vec-inl.h"
#include "cpu/bf16x_kernels.h"

namespace lstmfast {
namespace {

static_assert(kLanes<float> == kBf16xColumns, "gate panels have the lanes of a tile");

// ---- splitting floats in parts

typedef unsigned Words __attribute__((vector_size(kVectorBytes)));

// The nearest bfloat16 (ties to even), as a float. Overflows above kBf16xLargest, where it is not used.
LSTMFAST_INLINE Words rounded(Vec<float> x) {
  const Words bits = (Words)x;
  return (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
}

// Lanes in which x may not be split: not finite, or too large.
LSTMFAST_INLINE VecBits<float> refused(Vec<float> x) {
  constexpr int kLargestBits = (127 + 48) << 23;
  static_assert(kBf16xLargest == 0x1p48f, "its bits");
  return ((VecBits<float>)x & 0x7fffffff) > kLargestBits;
}

// Element k of the depth is paired with element k + 16, not with its neighbour: any order that both factors share
// will do, and this one needs no shuffling. The rest after a part is exact: it is the float's lower bits.
LSTMFAST_INLINE void split_pairs(Vec<float> first, Vec<float> second, int parts, Bfloat16* packed) {
  for (int part = 0; part < parts; ++part, packed += kBf16xTile) {
    const Words a = rounded(first), b = rounded(second);
    store(reinterpret_cast<float*>(packed), (Vec<float>)(a >> 16 | b));
    first -= (Vec<float>)a;
    second -= (Vec<float>)b;
  }
}

// ---- transposing

#if defined(__clang__)
#define LSTMFAST_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LSTMFAST_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Words{__VA_ARGS__})
#endif
LSTMFAST_INLINE Words interleave_low(Words a, Words b) {
  return LSTMFAST_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
LSTMFAST_INLINE Words interleave_high(Words a, Words b) {
  return LSTMFAST_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#undef LSTMFAST_SHUFFLE

// 16 rows of 16 pairs, in place: four rounds of a perfect shuffle of all 256 are the transpose.
LSTMFAST_NOINLINE void transpose_tile(Bfloat16* tile) {
  float* rows = reinterpret_cast<float*>(tile);
  Words now[16], next[16];
  for (int i = 0; i < 16; ++i) now[i] = (Words)load(rows + i * 16);
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < 8; ++i) {
      next[2 * i] = interleave_low(now[i], now[i + 8]);
      next[2 * i + 1] = interleave_high(now[i], now[i + 8]);
    }
    for (int i = 0; i < 16; ++i) now[i] = next[i];
  }
  for (int i = 0; i < 16; ++i) store(rows + i * 16, (Vec<float>)now[i]);
}

// ---- packing

// A run of up to 16 adjacent elements in every line of a source; empty if `lanes` <= 0.
struct Run {
  Index offset, lanes;
};

// Sources: `count` lines, each cut into runs. A line is a row of memory, whatever it means to the product.
struct LinesByPointer {
  const float* const* lines;
  Index count, blocks, block_length, block_stride;

  LSTMFAST_INLINE const float* line(Index i) const { return lines[i]; }
  LSTMFAST_INLINE Run run(Index index) const {
    const Index first = index * kBf16xColumns;
    if (blocks == 1) return {first, block_length - first};
    const Index block = first / block_length, within = first % block_length;
    return {block * block_stride + within, block < blocks ? block_length - within : 0};
  }
};

struct MatrixLines {
  const float* data;
  Index stride, count, columns;

  LSTMFAST_INLINE const float* line(Index i) const { return data + i * stride; }
  LSTMFAST_INLINE Run run(Index index) const { return {index * kBf16xColumns, columns - index * kBf16xColumns}; }
};

// Lines of a kernel [count, 4*hidden], in the order of gate panels.
struct KernelLines {
  const float* data;
  Index stride, count, hidden;

  LSTMFAST_INLINE const float* line(Index i) const { return data + i * stride; }
  LSTMFAST_INLINE Run run(Index index) const {
    const Index unit = index / kGateCount * kBf16xColumns;
    return {index % kGateCount * hidden + unit, hidden - unit};
  }
};

struct GatePanelLines {
  const float* panels;
  Index block_stride, count;

  LSTMFAST_INLINE const float* line(Index i) const { return panels + i * kGateCount * kBf16xColumns; }
  LSTMFAST_INLINE Run run(Index index) const {
    return {index / kGateCount * block_stride + index % kGateCount * kBf16xColumns, kBf16xColumns};
  }
};

template <typename Source>
LSTMFAST_INLINE Vec<float> values(const Source& source, Index line, Run run) {
  return line < source.count && run.lanes > 0 ? load_partial(source.line(line) + run.offset, run.lanes) : Vec<float>{};
}

enum class Factor { kLeft, kRight };
enum class Depth { kAlongLines, kAcrossLines };

// Left tiles have a row in each vector of pairs, right tiles a column in each lane; whichever form the source does not
// have needs a transpose.
template <Factor kFactor, Depth kDepth, typename Source>
bool pack_tiles(const Source& source, Index tiles, Index depth, int parts, Bfloat16* packed) {
  VecBits<float> bad{};
  for (Index tile = 0; tile < tiles; ++tile)
    for (Index k = 0; k < depth; k += kBf16xDepth, packed += parts * kBf16xTile) {
      const Index half_depth = kBf16xDepth / 2;
      const Run here = source.run(kDepth == Depth::kAlongLines ? k / half_depth : tile);
      const Run after = kDepth == Depth::kAlongLines ? source.run(k / half_depth + 1) : here;
      const Index first_line = kDepth == Depth::kAlongLines ? tile * kBf16xRows : k;
      const Index step = kDepth == Depth::kAlongLines ? 0 : half_depth;
      for (Index i = 0; i < kBf16xRows; ++i) {
        const Vec<float> first = values(source, first_line + i, here);
        const Vec<float> second = values(source, first_line + i + step, after);
        bad |= refused(first) | refused(second);
        split_pairs(first, second, parts, packed + i * kBf16xDepth);
      }
      constexpr bool kLeftAcross = kFactor == Factor::kLeft && kDepth == Depth::kAcrossLines;
      if ((kLeftAcross && !TileRegisters::kLeftByPairs) || (kFactor == Factor::kRight && kDepth == Depth::kAlongLines))
        for (int part = 0; part < parts; ++part) transpose_tile(packed + part * kBf16xTile);
    }
  int any = 0;
  for (Index lane = 0; lane < kLanes<float>; ++lane) any |= bad[lane];
  return any == 0;
}

bool bf16x_pack_rows(const Bf16xRows& rows, Index count, int parts, Bfloat16* left) {
  const LinesByPointer source{rows.rows, count, rows.depth_blocks, rows.block_length, rows.block_stride};
  return pack_tiles<Factor::kLeft, Depth::kAlongLines>(source, ceil_div(count, kBf16xRows),
                                                       rows.depth_blocks * rows.block_length, parts, left);
}

// Lines are shortened to [begin, end) by moving their beginning: run 0 is at `begin`.
struct LinesFrom {
  const float* const* lines;
  Index count, begin, end;

  LSTMFAST_INLINE const float* line(Index i) const { return lines[i] + begin; }
  LSTMFAST_INLINE Run run(Index index) const { return {index * kBf16xRows, end - begin - index * kBf16xRows}; }
};

bool bf16x_pack_rows_transposed(const float* const* rows, Index depth, Index begin, Index end, int parts,
                                Bfloat16* left) {
  return pack_tiles<Factor::kLeft, Depth::kAcrossLines>(LinesFrom{rows, depth, begin, end},
                                                        ceil_div(end - begin, kBf16xRows), depth, parts, left);
}

bool bf16x_pack_gates(const float* kernel, Index stride, Index depth, Index hidden, int parts, Bfloat16* right) {
  const Index tiles = ceil_div(hidden, kBf16xColumns) * kGateCount;
  return pack_tiles<Factor::kRight, Depth::kAcrossLines>(KernelLines{kernel, stride, depth, hidden}, tiles, depth, parts,
                                                         right);
}

bool bf16x_pack_gates_transposed(const float* kernel, Index stride, Index columns, Index hidden, int parts,
                                 Bfloat16* right) {
  const Index depth = ceil_div(hidden, kBf16xColumns) * kGateCount * kBf16xColumns;
  return pack_tiles<Factor::kRight, Depth::kAlongLines>(KernelLines{kernel, stride, columns, hidden},
                                                        ceil_div(columns, kBf16xColumns), depth, parts, right);
}

bool bf16x_pack_gate_panels(const float* panels, Index block_stride, Index depth, Index blocks, int parts,
                            Bfloat16* right) {
  return pack_tiles<Factor::kRight, Depth::kAcrossLines>(GatePanelLines{panels, block_stride, depth},
                                                         blocks * kGateCount, depth, parts, right);
}

bool bf16x_pack(const float* matrix, Index stride, Index depth, Index columns, int parts, Bfloat16* right) {
  return pack_tiles<Factor::kRight, Depth::kAcrossLines>(MatrixLines{matrix, stride, depth, columns},
                                                         ceil_div(columns, kBf16xColumns), depth, parts, right);
}

bool bf16x_pack_transposed(const float* matrix, Index stride, Index columns, Index depth, int parts, Bfloat16* right) {
  return pack_tiles<Factor::kRight, Depth::kAlongLines>(MatrixLines{matrix, stride, columns, depth},
                                                        ceil_div(columns, kBf16xColumns), depth, parts, right);
}

// ---- multiplying

// The pairs of parts that are multiplied, left with right. Neighbours in the list share one of the two: 14 loads of
// tiles instead of 24 for six products of 2 x 2 tiles. With three parts the largest product comes last, so that the
// small ones are added to each other first. Omitted are the products below 2^-24 of the result: (1, 2), (2, 1), (2, 2)
// of three parts, (1, 1) of two.
struct PartPair {
  int left, right;
};
template <int kParts>
struct PartPairs;
template <>
struct PartPairs<1> {
  static constexpr PartPair kList[] = {{0, 0}};
};
template <>
struct PartPairs<2> {
  static constexpr PartPair kList[] = {{0, 1}, {0, 0}, {1, 0}};
};
template <>
struct PartPairs<3> {
  static constexpr PartPair kList[] = {{0, 2}, {0, 1}, {1, 1}, {1, 0}, {2, 0}, {0, 0}};
};

// Registers: accumulators 0..3, left 4 and 5, right 6 and 7. Loads of tiles from L2 bound this loop, and blocks of 2 x
// 2 tiles need fewest. A single row tile is multiplied by four column tiles, which take turns in two registers: an
// accumulator is ready for its next multiplication only after the time of three others.
constexpr int kLeftRegister = 4, kRightRegister = 6;
constexpr int accumulator(int row, int column) { return 2 * row + column; }

// The packed tiles of a block, at some depth; `left_by_pairs` as in Bf16xFactors. Passed by value: the compiler must assume that a tile load may access any
// memory, and would read members again after each.
struct BlockTiles {
  const Bfloat16 *left, *right;
  Index to_next;  // from one row tile, or column tile, to the next
  bool left_by_pairs;
};

template <int R, int C, typename Registers>
struct TileBlock {
  static_assert((R == 2 && C <= 2) || (R == 1 && C <= 4), "eight registers");
  Registers& registers;

  template <int kParts, int kStep = 0>
  LSTMFAST_INLINE void multiply_parts(BlockTiles tiles) const {
    constexpr int kSteps = sizeof(PartPairs<kParts>::kList) / sizeof(PartPair);
    if constexpr (kStep < kSteps) {
      constexpr PartPair kNow = PartPairs<kParts>::kList[kStep];
      constexpr PartPair kBefore = PartPairs<kParts>::kList[kStep > 0 ? kStep - 1 : 0];
      const Bfloat16* left = tiles.left + kNow.left * kBf16xTile;
      if constexpr (kStep == 0 || kNow.left != kBefore.left) {
        registers.template load<kLeftRegister>(left, 64);
        if constexpr (R == 2) registers.template load<kLeftRegister + 1>(left + tiles.to_next, 64);
      }
      multiply_columns<kStep == 0 || kNow.right != kBefore.right>(tiles.right + kNow.right * kBf16xTile, tiles.to_next);
      multiply_parts<kParts, kStep + 1>(tiles);
    }
  }

  template <bool kLoad, int kColumn = 0>
  LSTMFAST_INLINE void multiply_columns(const Bfloat16* right, Index to_next) const {
    if constexpr (kColumn < C) {
      constexpr int kRight = kRightRegister + kColumn % 2;
      if constexpr (kLoad || C > 2) registers.template load<kRight>(right, 64);
      registers.template multiply<accumulator(0, kColumn), kLeftRegister, kRight>();
      if constexpr (R == 2) registers.template multiply<accumulator(1, kColumn), kLeftRegister + 1, kRight>();
      multiply_columns<kLoad, kColumn + 1>(right + to_next, to_next);
    }
  }

  template <int kParts>
  LSTMFAST_NOINLINE void accumulate(BlockTiles tiles, Index depth_tiles) const {
    for (Index k = 0; k < depth_tiles; ++k) {
      multiply_parts<kParts>(tiles);
      tiles.left += kParts * kBf16xTile;
      tiles.right += kParts * kBf16xTile;
    }
  }

  LSTMFAST_INLINE void accumulate(int parts, BlockTiles tiles, Index depth_tiles) const {
    if constexpr (Registers::kMostParts == 1) {
      if (tiles.left_by_pairs)
        registers.template multiply_block<R, C, true>(tiles.left, tiles.right, tiles.to_next, depth_tiles);
      else
        registers.template multiply_block<R, C, false>(tiles.left, tiles.right, tiles.to_next, depth_tiles);
    } else {
      if (parts == 1) accumulate<1>(tiles, depth_tiles);
      if (parts == 2) accumulate<2>(tiles, depth_tiles);
      if (parts == 3) accumulate<3>(tiles, depth_tiles);
    }
  }
};

// The location and initial value of a result, for each form of output.
struct GateTarget {
  const Bf16xToGatesArgs& args;

  LSTMFAST_INLINE float* out(Index row, Index tile) const {
    return args.panels + tile / kGateCount * args.block_stride + (row * kGateCount + tile % kGateCount) * kBf16xColumns;
  }
  LSTMFAST_INLINE Index row_stride() const { return kGateCount * kBf16xColumns; }  // 0: rows are anywhere
  LSTMFAST_INLINE Index lanes(Index) const { return kBf16xColumns; }
  LSTMFAST_INLINE bool starts_from_out() const { return args.init == nullptr; }
  LSTMFAST_INLINE const float* start(Index row, Index tile) const {  // null: zeros
    return args.init[row] + tile / kGateCount * args.init_block_stride + tile % kGateCount * kBf16xColumns;
  }
};

struct RowTarget {
  const Bf16xToRowsArgs& args;

  LSTMFAST_INLINE Index column(Index tile) const {
    return args.gate_hidden_size > 0
               ? tile % kGateCount * args.gate_hidden_size + tile / kGateCount * kBf16xColumns
               : tile * kBf16xColumns;
  }
  LSTMFAST_INLINE float* out(Index row, Index tile) const {
    return (args.rows ? args.rows[row] : args.matrix.row(row)) + column(tile);
  }
  LSTMFAST_INLINE Index row_stride() const { return args.rows ? 0 : args.matrix.stride; }
  LSTMFAST_INLINE Index lanes(Index tile) const {
    const Index left = args.gate_hidden_size > 0 ? args.gate_hidden_size - tile / kGateCount * kBf16xColumns
                                                 : args.columns - tile * kBf16xColumns;
    return left < kBf16xColumns ? left : kBf16xColumns;
  }
  LSTMFAST_INLINE bool starts_from_out() const { return args.add; }
  LSTMFAST_INLINE const float* start(Index, Index tile) const { return args.bias ? args.bias + column(tile) : nullptr; }
};

// Accumulators of the tile at (row, column tile), from memory and back; through a copy if the tile is cut off by the
// end of the matrix, or its rows are not equally spaced.
template <typename Target>
struct Accumulator {
  const Target& target;
  Index row, count, tile, lanes;

  LSTMFAST_INLINE Accumulator(const Target& where, Index first_row, Index rows, Index column_tile)
      : target(where),
        row(first_row),
        count(rows - first_row < kBf16xRows ? rows - first_row : kBf16xRows),
        tile(column_tile),
        lanes(where.lanes(column_tile)) {}

  LSTMFAST_INLINE bool is_whole() const {
    return target.row_stride() > 0 && count == kBf16xRows && lanes == kBf16xColumns;
  }
  LSTMFAST_INLINE Index stride_bytes() const { return target.row_stride() * static_cast<Index>(sizeof(float)); }

  template <int kRegister>
  LSTMFAST_INLINE void begin(TileRegisters& registers, bool is_first) const {
    const bool from_out = !is_first || target.starts_from_out();
    if (from_out && is_whole())
      registers.open<kRegister>(target.out(row, tile), stride_bytes());
    else if (!from_out && target.start(row, tile) == nullptr)
      is_whole() ? registers.open_zero<kRegister>(target.out(row, tile), stride_bytes()) : registers.zero<kRegister>();
    else {
      alignas(64) float copy[kBf16xRows * kBf16xColumns];
      gather(copy, from_out);
      registers.load<kRegister>(copy, 64);
    }
  }

  template <int kRegister>
  LSTMFAST_INLINE void end(TileRegisters& registers) const {
    if (is_whole()) {
      registers.close<kRegister>(target.out(row, tile), stride_bytes());
    } else {
      alignas(64) float copy[kBf16xRows * kBf16xColumns];
      registers.store<kRegister>(copy, 64);
      scatter(copy);
    }
  }

  LSTMFAST_NOINLINE void gather(float* copy, bool from_out) const {
    for (Index r = 0; r < kBf16xRows; ++r, copy += kBf16xColumns)
      store(copy, r < count ? load_partial(from_out ? target.out(row + r, tile) : target.start(row + r, tile), lanes)
                            : Vec<float>{});
  }
  LSTMFAST_NOINLINE void scatter(const float* copy) const {
    for (Index r = 0; r < count; ++r, copy += kBf16xColumns)
      store_partial(target.out(row + r, tile), load(copy), lanes);
  }
};

// Of the right factor's pair of column tiles, this depth is 32 KB a part: with one part it stays in L1 while all rows
// pass over it, with three in L2.
constexpr Index kDepthTilesAtOnce = 16;

template <typename Target>
struct Bf16xProduct {
  const Bf16xFactors& factors;
  const Target& target;
  TileRegisters& registers;
  Index depth_begin, depth_end;  // tiles

  // Row tiles [row_tile, + R) times column tiles [column_tile, + C).
  template <int R, int C>
  LSTMFAST_NOINLINE void run(Index row_tile, Index column_tile) const {
    const Index depth_tiles = ceil_div(factors.depth, kBf16xDepth), depth_stride = factors.parts * kBf16xTile;
    const Index to_next = depth_tiles * depth_stride;
    const BlockTiles tiles{factors.left + row_tile * to_next + depth_begin * depth_stride,
                           factors.right + column_tile * to_next + depth_begin * depth_stride, to_next,
                           factors.left_by_pairs};
    begin<R, C>(row_tile, column_tile);
    TileBlock<R, C, TileRegisters>{registers}.accumulate(factors.parts, tiles, depth_end - depth_begin);
    end<R, C>(row_tile, column_tile);
  }

  template <int R, int C, int kNumber = 0>
  LSTMFAST_INLINE void begin(Index row_tile, Index column_tile) const {
    if constexpr (kNumber < R * C) {
      constexpr int kRow = kNumber / C, kColumn = kNumber % C;
      at(row_tile + kRow, column_tile + kColumn).template begin<accumulator(kRow, kColumn)>(registers, depth_begin == 0);
      begin<R, C, kNumber + 1>(row_tile, column_tile);
    }
  }

  template <int R, int C, int kNumber = 0>
  LSTMFAST_INLINE void end(Index row_tile, Index column_tile) const {
    if constexpr (kNumber < R * C) {
      constexpr int kRow = kNumber / C, kColumn = kNumber % C;
      at(row_tile + kRow, column_tile + kColumn).template end<accumulator(kRow, kColumn)>(registers);
      end<R, C, kNumber + 1>(row_tile, column_tile);
    }
  }

  LSTMFAST_INLINE Accumulator<Target> at(Index row_tile, Index column_tile) const {
    return Accumulator<Target>(target, row_tile * kBf16xRows, factors.rows, column_tile);
  }

  // All rows times up to four column tiles.
  LSTMFAST_INLINE void run_columns(Index column, Index column_end) const {
    const Index row_tiles = ceil_div(factors.rows, kBf16xRows);
    for (Index pair = column; pair < column_end; pair += 2)
      for (Index row = 0; row + 1 < row_tiles; row += 2) {
        if (pair + 1 < column_end) run<2, 2>(row, pair);
        if (pair + 1 == column_end) run<2, 1>(row, pair);
      }
    if (row_tiles % 2 == 0) return;
    if (column_end - column == 4) run<1, 4>(row_tiles - 1, column);
    if (column_end - column == 3) run<1, 3>(row_tiles - 1, column);
    if (column_end - column == 2) run<1, 2>(row_tiles - 1, column);
    if (column_end - column == 1) run<1, 1>(row_tiles - 1, column);
  }
};

template <typename Target>
LSTMFAST_INLINE void bf16x_multiply(const Bf16xFactors& factors, Range columns, const Target& target) {
  constexpr Index kColumnsAtOnce = 4;
  TileRegisters registers;
  registers.configure();
  const Index depth_tiles = ceil_div(factors.depth, kBf16xDepth);
  Index depth = 0;
  do {  // runs once even without depth: the result is then its initial value
    const Index depth_end = depth + kDepthTilesAtOnce < depth_tiles ? depth + kDepthTilesAtOnce : depth_tiles;
    const Bf16xProduct<Target> product{factors, target, registers, depth, depth_end};
    for (Index column = columns.begin; column < columns.end; column += kColumnsAtOnce)
      product.run_columns(column, column + kColumnsAtOnce < columns.end ? column + kColumnsAtOnce : columns.end);
    depth = depth_end;
  } while (depth < depth_tiles);
  registers.release();
}

void bf16x_to_gates(const Bf16xToGatesArgs& args) {
  bf16x_multiply(args.factors, {args.block_begin * kGateCount, args.block_end * kGateCount}, GateTarget{args});
}

void bf16x_to_rows(const Bf16xToRowsArgs& args) {
  bf16x_multiply(args.factors, {args.tile_begin, args.tile_end}, RowTarget{args});
}

constexpr Bf16xKernels kBf16xKernels{TileRegisters::kMostParts,
                                     TileRegisters::kLeftByPairs,
                                     bf16x_pack_rows,        bf16x_pack_rows_transposed, bf16x_pack_gates,
                                     bf16x_pack_gates_transposed, bf16x_pack_gate_panels, bf16x_pack,
                                     bf16x_pack_transposed,  bf16x_to_gates,             bf16x_to_rows};

}  // namespace
}  // namespace lstmfast

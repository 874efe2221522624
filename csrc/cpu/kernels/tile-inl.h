// The register tile: R rows times N vectors of a product, accumulated in registers over the depth. Every product of
// lstmfast is this loop with another beginning and another end.
// An element's sum runs over the depth in order, whatever R and N are: the same bits for every split of the work.
#pragma once

#include "core/gates.h"
#include "cpu/kernel_table.h"
#include "cpu/kernels/vec-inl.h"

namespace lstmfast {
namespace {

// Element (r, k) of a tile's left factor: rows at any addresses, or columns of a matrix with rows `stride` apart.
template <typename T, int R>
struct RowElements {
  const T* row[R];
  LSTMFAST_INLINE T operator()(int r, Index k) const { return row[r][k]; }
};
template <typename T>
struct ColumnElements {
  const T* column;
  Index stride;
  LSTMFAST_INLINE T operator()(int r, Index k) const { return column[k * stride + r]; }
};

// The memory read after a panel, prefetched into L2 while a tile passes over it: a line for every row of the panel,
// `step` bytes after the one before.
struct Upcoming {
  const char* line;
  Index step;
};

template <typename T, int R, int N>
struct Tile {
  Vec<T> at[R][N];

  LSTMFAST_INLINE void clear() {
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) at[r][n] = Vec<T>{};
  }

  LSTMFAST_INLINE void add(const Tile& other) {
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) at[r][n] += other.at[r][n];
  }

  // To memory [R][N vectors].
  LSTMFAST_INLINE void store_to(T* memory) const {
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) store(memory + (r * N + n) * kLanes<T>, at[r][n]);
  }

  // at += a[., k] outer panel[k, .] for all k below `depth`; the panel is [depth][N vectors].
  template <typename Elements>
  LSTMFAST_INLINE void accumulate(const Elements& a, Index depth, const T* panel, Upcoming upcoming) {
    for (Index k = 0; k < depth; ++k, panel += N * kLanes<T>, upcoming.line += upcoming.step) {
      if constexpr (R >= 4) __builtin_prefetch(upcoming.line, 0, 2);  // smaller tiles read too much for what they compute
      if constexpr (R <= N) {  // keep the smaller side of the outer product in registers
        Vec<T> a_k[R];
        for (int r = 0; r < R; ++r) a_k[r] = broadcast<T>(a(r, k));
        for (int n = 0; n < N; ++n) {
          const Vec<T> b = load(panel + n * kLanes<T>);
          for (int r = 0; r < R; ++r) at[r][n] = fused_multiply_add(a_k[r], b, at[r][n]);
        }
      } else {
        Vec<T> b[N];
        for (int n = 0; n < N; ++n) b[n] = load(panel + n * kLanes<T>);
        for (int r = 0; r < R; ++r) {
          const Vec<T> a_k = broadcast<T>(a(r, k));
          for (int n = 0; n < N; ++n) at[r][n] = fused_multiply_add(a_k, b[n], at[r][n]);
        }
      }
    }
  }
};

// The columns under a tile in a row of an ordinary matrix: N pieces of one vector each, `step` apart. Where the matrix
// ends inside the tile, piece n has only `lanes - n * lanes_step` elements.
struct TileColumns {
  Index step, lanes, lanes_step;
};

template <typename T, int N>
LSTMFAST_INLINE bool all_full(const TileColumns& columns) {
  return columns.lanes - (N - 1) * columns.lanes_step >= kLanes<T>;
}

// Between a row of a matrix and a row of packed pieces. Out of line, and reached through memory: a call with vectors
// alive would make the compiler keep the accumulators of the whole tile on the stack, in the inner loop too.
template <typename T>
LSTMFAST_NOINLINE void copy_pieces(const T* from, Index from_step, T* to, Index to_step, int pieces,
                                   const TileColumns& columns) {
  for (int n = 0; n < pieces; ++n, from += from_step, to += to_step) {
    const Index lanes = columns.lanes - n * columns.lanes_step;
    store_partial(to, load_partial(from, lanes), lanes);
  }
}

template <typename T, int N>
LSTMFAST_INLINE void load_row(Vec<T> (&row)[N], const T* matrix_row, const TileColumns& columns) {
  if (all_full<T, N>(columns)) {
    for (int n = 0; n < N; ++n) row[n] = load(matrix_row + n * columns.step);
  } else {
    T pieces[N * kLanes<T>] = {};
    copy_pieces(matrix_row, columns.step, pieces, kLanes<T>, N, columns);
    for (int n = 0; n < N; ++n) row[n] = load(pieces + n * kLanes<T>);
  }
}

template <typename T, int R, int N>
LSTMFAST_INLINE void store_rows(const Tile<T, R, N>& tile, T* const (&matrix_rows)[R], const TileColumns& columns) {
  if (all_full<T, N>(columns)) {
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) store(matrix_rows[r] + n * columns.step, tile.at[r][n]);
  } else {
    T pieces[R * N * kLanes<T>];
    tile.store_to(pieces);
    for (int r = 0; r < R; ++r)
      copy_pieces<T>(pieces + r * N * kLanes<T>, kLanes<T>, matrix_rows[r], columns.step, N, columns);
  }
}

// The largest tile below R rows that is built: 6, 4, 2, 1 or 3, 2, 1. Every size would double the build for at most one
// tile in a pass over the rows.
constexpr int smaller_tile(int R) { return R > 3 ? (R - 1) / 2 * 2 : R - 1; }

template <int R, typename Body>
LSTMFAST_INLINE void run_tiles(Index row, Index end, const Body& body) {
  if constexpr (R > 0) {
    // 8 rows are 4 + 4 and not 6 + 2: a tile of two rows waits for its own sums. 4 rows are still 3 + 1 with AVX2.
    constexpr int kTwoTiles = 2 * smaller_tile(R);
    for (; row + R <= end && !(kTwoTiles > R + 1 && end - row == kTwoTiles); row += R) body.template run<R>(row);
    run_tiles<smaller_tile(R)>(row, end, body);
  }
}

// Calls body.run<R>(row) over [begin, end) in tiles of kTileRows rows, and smaller ones for the rest.
template <typename Body>
LSTMFAST_INLINE void for_each_row_tile(Index begin, Index end, const Body& body) {
  run_tiles<kTileRows>(begin, end, body);
}

// ---- a product of rows with one panel, in pieces of its depth

// Part of an operand: a range of its blocks, and of the elements in each.
struct Piece {
  Index block_begin, block_end, offset_begin, offset_end;

  LSTMFAST_INLINE Index depth() const { return (block_end - block_begin) * (offset_end - offset_begin); }
};

// Rows that pass over a piece of a panel, tile by tile. Each tile prefetches its share of the next piece, spread over
// its depth: a core can wait for only 16 cache lines at a time, and a tile that requested more would delay its own
// loads. With 1,024 units and 128 rows, products run at 166 GFLOP/s of 176; at 155 if the first tiles fetch all.
template <typename T, int N>
struct Pass {
  Index first_row, share;  // of a panel's row, in bytes, that each row of a tile fetches

  LSTMFAST_INLINE Pass(Index first_row, Index end) : first_row(first_row), share(0) {
    if (end > first_row) share = ceil_div(N * kVectorBytes, end - first_row);
  }

  template <int R>
  LSTMFAST_INLINE Upcoming fetched_by_tile(Index row, const T* next, Index depth) const {
    return {reinterpret_cast<const char*>(next) + (row - first_row) * share * depth, R * share};
  }
};

// A factor of the product: rows of `blocks` pieces of `block_length` elements, `block_stride` apart, and the panel
// [blocks * block_length][N vectors] that they multiply. Tiles whose rows are all `nothing` are skipped: they are zero.
template <typename T>
struct Operand {
  const T* const* rows;
  Index blocks, block_length, block_stride;
  const T* panel;
  const T* next_panel;  // read after this one
  const T* nothing;     // or null

  LSTMFAST_INLINE Piece whole() const { return {0, blocks, 0, block_length}; }

  template <int R, int N>
  LSTMFAST_INLINE void accumulate(Tile<T, R, N>& tile, const Piece& piece, Index row, const Pass<T, N>& pass) const {
    RowElements<T, R> a;
    bool any = nothing == nullptr;
    for (int r = 0; r < R; ++r) {
      a.row[r] = rows[row + r];
      any |= a.row[r] != nothing;
      a.row[r] += piece.block_begin * block_stride + piece.offset_begin;
    }
    if (!any) return;
    const Index depth = piece.offset_end - piece.offset_begin, length = depth * N * kLanes<T>;
    const bool is_last = piece.block_end == blocks && piece.offset_end == block_length;
    const T* at = panel + (piece.block_begin * block_length + piece.offset_begin) * N * kLanes<T>;
    const T* next = is_last ? next_panel : at + piece.depth() * N * kLanes<T>;
    for (Index block = piece.block_begin; block < piece.block_end; ++block, at += length, next += length) {
      tile.accumulate(a, depth, at, pass.template fetched_by_tile<R>(row, next, depth));
      for (int r = 0; r < R; ++r) a.row[r] += block_stride;
    }
  }
};

// The same where rows are columns of a matrix, of which the first is `first_row`.
template <typename T>
struct ColumnsOperand {
  static constexpr Index blocks = 1;
  const T* columns;
  Index first_row, block_length, stride;
  const T *panel, *next_panel;

  LSTMFAST_INLINE Piece whole() const { return {0, 1, 0, block_length}; }

  template <int R, int N>
  LSTMFAST_INLINE void accumulate(Tile<T, R, N>& tile, const Piece& piece, Index row, const Pass<T, N>& pass) const {
    const Index begin = piece.offset_begin, depth = piece.depth();
    const T* next = piece.offset_end == block_length ? next_panel : panel + piece.offset_end * N * kLanes<T>;
    tile.accumulate(ColumnElements<T>{columns + begin * stride + row - first_row, stride}, depth,
                    panel + begin * N * kLanes<T>, pass.template fetched_by_tile<R>(row, next, depth));
  }
};

// The depth of an operand is summed in pieces: each has a sum of its own, which is added to what came before. A sum of 2,048
// terms then loses 3e-7 of its size instead of 8e-7. A panel's piece of this depth also stays in L1 (16 KB with AVX2) while all rows pass over it. At 256 units and 64 rows that
// is worth 15 % over streaming the whole panel from L2 for each tile.
constexpr Index kDepthAtOnce = 128;
// Rows whose accumulators are kept in memory between two pieces; 12 KB with AVX2.
constexpr Index kRowsAtOnce = 96;
static_assert(kRowsAtOnce % kTileRows == 0, "only the last group of rows may end in a smaller tile");

// Tiles computed in one piece. `body.start` sets a tile's first value and `body.finish` takes its last.
template <typename T, int N, typename Operand, int kOperands, typename Body>
struct WholeTiles {
  const Operand (&operands)[kOperands];
  const Body& body;
  Pass<T, N> pass;

  template <int R>
  LSTMFAST_INLINE void run(Index row) const {
    Tile<T, R, N> tile;
    body.start(tile, row);
    for (const Operand& operand : operands) operand.accumulate(tile, operand.whole(), row, pass);
    body.finish(tile, row);
  }
};

// One pass over the rows with one piece of one operand; between passes the accumulators are in memory.
template <typename T, int N, typename Operand, typename Body>
struct PieceTiles {
  const Operand& operand;
  const Body& body;
  Piece piece;
  bool is_first, is_last;
  bool continues;  // the operand's first piece goes on with the sum so far; others have sums of their own, added to it
  T* waiting;  // accumulators of the pass's rows
  Pass<T, N> pass;

  template <int R>
  LSTMFAST_INLINE void run(Index row) const {
    Tile<T, R, N> tile;
    T* mine = waiting + (row - pass.first_row) * N * kLanes<T>;
    if (is_first) {
      body.start(tile, row);
    } else if (continues) {
      for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) tile.at[r][n] = load<T>(mine + (r * N + n) * kLanes<T>);
    } else {
      tile.clear();
    }
    operand.accumulate(tile, piece, row, pass);
    if (!continues) {
      for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) tile.at[r][n] += load<T>(mine + (r * N + n) * kLanes<T>);
    }
    if (is_last) {
      body.finish(tile, row);
    } else {
      tile.store_to(mine);
    }
  }
};

template <typename T, int N, typename Operand, int kOperands, typename Body>
LSTMFAST_NOINLINE void multiply_in_pieces(Index row_begin, Index row_end, const Operand (&operands)[kOperands],
                                          Index depth, const Body& body) {
  alignas(64) T waiting[kRowsAtOnce * N * kLanes<T>];
  for (Index first = row_begin; first < row_end; first += kRowsAtOnce) {
    const Index last = first + kRowsAtOnce < row_end ? first + kRowsAtOnce : row_end;
    const Pass<T, N> pass{first, last};
    Index depth_left = depth;
    for (const Operand& operand : operands) {
      if (operand.block_length == 0) continue;
      const bool short_blocks = operand.block_length < kDepthAtOnce;
      const Index blocks = short_blocks ? kDepthAtOnce / operand.block_length : 1;
      const Index length = short_blocks ? operand.block_length : kDepthAtOnce;
      for (Index block = 0; block < operand.blocks; block += blocks)
        for (Index offset = 0; offset < operand.block_length; offset += length) {
          const Piece piece{block, block + blocks < operand.blocks ? block + blocks : operand.blocks, offset,
                            offset + length < operand.block_length ? offset + length : operand.block_length};
          const bool is_first = depth_left == depth;
          depth_left -= piece.depth();
          for_each_row_tile(first, last, PieceTiles<T, N, Operand, Body>{operand, body, piece, is_first,
                                                                         depth_left == 0, block + offset == 0, waiting,
                                                                         pass});
        }
    }
  }
}

template <typename T, int N, typename Operand, int kOperands, typename Body>
LSTMFAST_INLINE void multiply_rows(Index row_begin, Index row_end, const Operand (&operands)[kOperands],
                                   const Body& body) {
  Index depth = 0;
  bool in_one_piece = true;
  for (const Operand& operand : operands) {
    depth += operand.whole().depth();
    in_one_piece &= operand.whole().depth() <= kDepthAtOnce;
  }
  if (in_one_piece && depth <= kDepthAtOnce + kDepthAtOnce / 2)
    for_each_row_tile(row_begin, row_end,
                      WholeTiles<T, N, Operand, kOperands, Body>{operands, body, {row_begin, row_end}});
  else
    multiply_in_pieces<T, N>(row_begin, row_end, operands, depth, body);
}

// Calls body(begin, end) for groups of rows, 256 KB and at least 96, that stay in L2 while all panels pass over them.
template <typename T, typename Body>
LSTMFAST_INLINE void for_each_row_group(Index row_begin, Index row_end, Index depth, const Body& body) {
  const Index fitting = (Index{256} << 10) / ((depth + 1) * static_cast<Index>(sizeof(T)));
  const Index rows = fitting > kRowsAtOnce ? fitting / kRowsAtOnce * kRowsAtOnce : kRowsAtOnce;
  for (Index begin = row_begin; begin < row_end; begin += rows)
    body(begin, begin + rows < row_end ? begin + rows : row_end);
}

// Panels that a single row is multiplied with at once: 8 accumulators are what two units of 4 cycles can have in
// flight. Four panels are never faster, and 15 % slower for a stream of 64 units, half of whose weights stay in L1.
constexpr int kPanelsOfOneRow = 2;

// One row times kPanels panels at once, `panel_stride[o]` apart in operand o: one panel alone is N dependent chains of
// multiply-adds, and a CPU has twice as many in flight. The sums and their order are those of multiply_rows.
// `body(p)` is the body of panel p.
template <typename T, int N, int kPanels, int kOperands, typename Body>
LSTMFAST_INLINE void multiply_one_row(Index row, const Operand<T> (&operands)[kOperands],
                                      const Index (&panel_stride)[kOperands], const Body& body) {
  Tile<T, 1, N> tiles[kPanels];
  for (int p = 0; p < kPanels; ++p) body(p).start(tiles[p], row);
  for (int o = 0; o < kOperands; ++o) {
    const Operand<T>& operand = operands[o];
    const T* a = operand.rows[row];
    if (operand.nothing != nullptr && a == operand.nothing) continue;
    const T* panel = operand.panel;
    Tile<T, 1, N> before[kPanels];  // the sums of earlier pieces
    Index pieces = 0, left = kDepthAtOnce;
    for (Index block = 0; block < operand.blocks; ++block, a += operand.block_stride)
      for (Index k = 0; k < operand.block_length;) {
        if (left == 0) {
          for (int p = 0; p < kPanels; ++p) {
            if (pieces > 0) tiles[p].add(before[p]);
            before[p] = tiles[p];
            tiles[p].clear();
          }
          ++pieces;
          left = kDepthAtOnce;
        }
        const Index end = operand.block_length - k < left ? operand.block_length : k + left;
        left -= end - k;
        for (; k < end; ++k, panel += N * kLanes<T>) {
          const Vec<T> a_k = broadcast<T>(a[k]);
          for (int p = 0; p < kPanels; ++p)
            for (int n = 0; n < N; ++n)
              tiles[p].at[0][n] =
                  fused_multiply_add(a_k, load(panel + p * panel_stride[o] + n * kLanes<T>), tiles[p].at[0][n]);
        }
      }
    for (int p = 0; pieces > 0 && p < kPanels; ++p) tiles[p].add(before[p]);
  }
  for (int p = 0; p < kPanels; ++p) body(p).finish(tiles[p], row);
}

// Calls body.run<N> with the number of vectors in a panel.
template <int N, typename Body>
LSTMFAST_INLINE void with_panel_vectors(Index vectors, const Body& body) {
  if constexpr (N > 0) {
    if (vectors >= N)
      body.template run<N>();
    else
      with_panel_vectors<N - 1>(vectors, body);
  }
}

// How the columns of an ordinary matrix map to plain panels.
template <typename T>
struct PanelLayout {
  Index columns;

  LSTMFAST_INLINE Index vectors_in(Index panel) const {
    const Index left = ceil_div(columns, kLanes<T>) - panel * kPanelVectors;
    return left < kPanelVectors ? left : kPanelVectors;
  }
  LSTMFAST_INLINE static Index first_column(Index panel) { return panel * kPanelVectors * kLanes<T>; }
  // Where a panel begins in packed memory of `rows` rows: the panels before it are all full.
  LSTMFAST_INLINE static Index offset(Index panel, Index rows) { return first_column(panel) * rows; }
};

}  // namespace
}  // namespace lstmfast

// The register tile: R rows times N vectors of a product, accumulated in registers over the depth. Every product of
// lstmfast is this loop with another beginning and another end.
// An element's sum runs over the depth in order, whatever R and N are: the same bits for every split of the work.
#pragma once

#include "core/gates.h"
#include "cpu/kernel_table.h"
#include "cpu/kernels/vec-inl.h"

namespace lstmfast {
namespace {

template <typename T, int R, int N>
struct Tile {
  Vec<T> at[R][N];

  LSTMFAST_INLINE void clear() {
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) at[r][n] = Vec<T>{};
  }

  // at += a[k..] outer panel[k..] where element (r, k) of a is rows[r][k] and panel is [depth][N vectors].
  LSTMFAST_INLINE void accumulate(const T* const (&rows)[R], Index depth, const T* panel) {
    for (Index k = 0; k < depth; ++k, panel += N * kLanes<T>) {
      if constexpr (R <= N) {  // keep the smaller side of the outer product in registers
        Vec<T> a[R];
        for (int r = 0; r < R; ++r) a[r] = broadcast<T>(rows[r][k]);
        for (int n = 0; n < N; ++n) {
          const Vec<T> b = load(panel + n * kLanes<T>);
          for (int r = 0; r < R; ++r) at[r][n] = fused_multiply_add(a[r], b, at[r][n]);
        }
      } else {
        Vec<T> b[N];
        for (int n = 0; n < N; ++n) b[n] = load(panel + n * kLanes<T>);
        for (int r = 0; r < R; ++r) {
          const Vec<T> a = broadcast<T>(rows[r][k]);
          for (int n = 0; n < N; ++n) at[r][n] = fused_multiply_add(a, b[n], at[r][n]);
        }
      }
    }
  }

  // The same with a transposed: element (r, k) is columns[k][first + r].
  LSTMFAST_INLINE void accumulate_transposed(const T* const* columns, Index first, Index depth, const T* panel) {
    for (Index k = 0; k < depth; ++k, panel += N * kLanes<T>) {
      const T* column = columns[k] + first;
      Vec<T> a[R];
      for (int r = 0; r < R; ++r) a[r] = broadcast<T>(column[r]);
      for (int n = 0; n < N; ++n) {
        const Vec<T> b = load(panel + n * kLanes<T>);
        for (int r = 0; r < R; ++r) at[r][n] = fused_multiply_add(a[r], b, at[r][n]);
      }
    }
  }
};

// The columns under a tile in a row of an ordinary matrix: N pieces of one vector each, `step` apart. Where the matrix ends
// inside the tile, piece n has only `lanes - n * lanes_step` elements.
struct TileColumns {
  Index step, lanes, lanes_step;
};

template <typename T, int N>
LSTMFAST_INLINE bool all_full(const TileColumns& columns) {
  return columns.lanes - (N - 1) * columns.lanes_step >= kLanes<T>;
}

// Between a row of a matrix and a row of packed pieces. Out of line, and reached through memory: a call with vectors alive
// would make the compiler keep the accumulators of the whole tile on the stack, in the inner loop too.
template <typename T>
LSTMFAST_NOINLINE void copy_pieces(const T* from, Index from_step, T* to, Index to_step, int pieces,
                                   const TileColumns& columns) {
  for (int n = 0; n < pieces; ++n)
    for (Index i = 0; i < kLanes<T> && i < columns.lanes - n * columns.lanes_step; ++i)
      to[n * to_step + i] = from[n * from_step + i];
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
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) store<T>(pieces + (r * N + n) * kLanes<T>, tile.at[r][n]);
    for (int r = 0; r < R; ++r)
      copy_pieces<T>(pieces + r * N * kLanes<T>, kLanes<T>, matrix_rows[r], columns.step, N, columns);
  }
}

template <int R, typename Body>
LSTMFAST_INLINE void run_smaller_tile(Index rows, Index row, const Body& body) {
  if constexpr (R > 0) {
    if (rows == R)
      body.template run<R>(row);
    else
      run_smaller_tile<R - 1>(rows, row, body);
  }
}

// Calls body.run<R>(row) over [begin, end) in tiles of kTileRows rows, then one smaller tile.
template <typename Body>
LSTMFAST_INLINE void for_each_row_tile(Index begin, Index end, const Body& body) {
  Index row = begin;
  for (; row + kTileRows <= end; row += kTileRows) body.template run<kTileRows>(row);
  run_smaller_tile<kTileRows - 1>(end - row, row, body);
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

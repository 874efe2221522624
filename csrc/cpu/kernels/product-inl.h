// Plain products on the same register tile: rows times packed weights, and the transposed product of weight gradients.
#pragma once

#include "cpu/kernels/tile-inl.h"

namespace lstmfast {
namespace {

template <typename T, int N>
struct ProductTiles {
  const ProductArgs<T>& args;
  Index first;
  TileColumns columns;

  template <int R>
  LSTMFAST_INLINE void start(Tile<T, R, N>& tile, Index) const {
    tile.clear();
    if (args.bias) load_row(tile.at[0], args.bias + first, columns);
    for (int r = 1; r < R; ++r)
      for (int n = 0; n < N; ++n) tile.at[r][n] = tile.at[0][n];
  }

  template <int R>
  LSTMFAST_INLINE void finish(const Tile<T, R, N>& tile, Index row) const {
    T* out[R];
    for (int r = 0; r < R; ++r) out[r] = args.out[row + r] + first;
    store_rows(tile, out, columns);
  }
};

template <typename T>
struct ProductPanel {
  const ProductArgs<T>& args;
  Index panel;

  template <int N>
  LSTMFAST_INLINE void run() const {
    const Index first = PanelLayout<T>::first_column(panel);
    const Index depth = args.depth_blocks * args.block_length;
    const Operand<T> a[] = {{args.a, args.depth_blocks, args.block_length, args.block_stride,
                             args.panels + PanelLayout<T>::offset(panel, depth),
                             args.panels + PanelLayout<T>::offset(panel + 1, depth), nullptr}};
    const TileColumns columns{kLanes<T>, args.columns - first, kLanes<T>};
    multiply_rows<T, N>(args.row_begin, args.row_end, a, ProductTiles<T, N>{args, first, columns});
  }
};

template <typename T>
void product(const ProductArgs<T>& args) {
  const PanelLayout<T> layout{args.columns};
  const Index depth = args.depth_blocks * args.block_length;
  for_each_row_group<T>(args.row_begin, args.row_end, depth, [&](Index begin, Index end) {
    ProductArgs<T> group = args;
    group.row_begin = begin;
    group.row_end = end;
    for (Index panel = args.panel_begin; panel < args.panel_end; ++panel)
      with_panel_vectors<kPanelVectors>(layout.vectors_in(panel), ProductPanel<T>{group, panel});
  });
}

template <typename T, int N>
struct TransposedProductTiles {
  const TransposedProductArgs<T>& args;
  Index first;
  TileColumns columns;
  bool add;

  template <int R>
  LSTMFAST_INLINE void start(Tile<T, R, N>& tile, Index m) const {
    tile.clear();
    if (!add) return;
    LSTMFAST_UNROLL
    for (int r = 0; r < R; ++r) load_row(tile.at[r], static_cast<const T*>(args.out.row(m + r) + first), columns);
  }

  template <int R>
  LSTMFAST_INLINE void finish(const Tile<T, R, N>& tile, Index m) const {
    T* out[R];
    for (int r = 0; r < R; ++r) out[r] = args.out.row(m + r) + first;
    store_rows(tile, out, columns);
    // The next columns are adjacent, but in too many rows for the hardware prefetcher: worth 4 % with 1,024 units.
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < N; ++n) __builtin_prefetch(out[r] + n * columns.step + kLanes<T>, 1, 2);
  }
};

template <typename T>
struct TransposedProductPanel {
  const TransposedProductArgs<T>& args;
  Index panel, row_begin, row_end, m_begin, m_end;

  template <int N>
  LSTMFAST_INLINE void run() const {
    constexpr Index V = kLanes<T>;
    const bool gate_panels = args.gate_hidden_size > 0;
    const Index first = gate_panels ? panel * V : PanelLayout<T>::first_column(panel);
    const TileColumns columns = gate_panels ? TileColumns{args.gate_hidden_size, args.gate_hidden_size - first, 0}
                                            : TileColumns{V, args.columns - first, V};
    const T* b = args.b + panel * args.b_panel_stride + row_begin * N * V;
    const ColumnsOperand<T> a[] = {{args.workspace, m_begin, row_end - row_begin, kTransposedColumns, b,
                                    b + args.b_panel_stride}};
    multiply_rows<T, N>(m_begin, m_end, a,
                        TransposedProductTiles<T, N>{args, first, columns, args.add || row_begin > 0});
  }
};

template <typename T>
void transposed_product(const TransposedProductArgs<T>& args) {
  const PanelLayout<T> layout{args.columns};
  const Index passes = ceil_div(args.rows, kTransposedRows), rows_at_once = passes ? ceil_div(args.rows, passes) : 1;
  Index row = 0;
  do {  // runs once even without rows: the result is then zero
    const Index row_end = row + rows_at_once < args.rows ? row + rows_at_once : args.rows;
    for (Index m = args.m_begin; m < args.m_end; m += kTransposedColumns) {
      const Index m_end = m + kTransposedColumns < args.m_end ? m + kTransposedColumns : args.m_end;
      // Packed, because rows a power of two apart fall into the same few sets of every cache: 96 GFLOP/s instead of 149
      // with 1,024 units and 6,400 rows.
      for (Index k = row; k < row_end; ++k)
        __builtin_memcpy(args.workspace + (k - row) * kTransposedColumns, args.a[k] + m, (m_end - m) * sizeof(T));
      for (Index panel = args.panel_begin; panel < args.panel_end; ++panel)
        with_panel_vectors<kPanelVectors>(args.gate_hidden_size > 0 ? kGateCount : layout.vectors_in(panel),
                                          TransposedProductPanel<T>{args, panel, row, row_end, m, m_end});
    }
    row = row_end;
  } while (row < args.rows);
}

template <typename T>
void sum_gate_rows(const T* panels, Index block_stride, Index rows, Index hidden, Index begin, Index end, T* sums) {
  constexpr Index V = kLanes<T>;
  for (Index block = begin; block < end; ++block) {
    const Index unit = block * V, lanes = hidden - unit;
    Vec<T> sum[kGateCount];
    for (int gate = 0; gate < kGateCount; ++gate) sum[gate] = load_partial<T>(sums + gate * hidden + unit, lanes);
    const T* row = panels + block * block_stride;
    for (Index r = 0; r < rows; ++r)
      for (int gate = 0; gate < kGateCount; ++gate, row += V) sum[gate] += load(row);
    for (int gate = 0; gate < kGateCount; ++gate) store_partial(sums + gate * hidden + unit, sum[gate], lanes);
  }
}

template <typename T>
void sum_rows(const T* const* rows, Index count, Index begin, Index end, T* sums) {
  for (Index column = begin; column < end; column += kLanes<T>) {
    Vec<T> sum{};
    for (Index r = 0; r < count; ++r) sum += load_partial(rows[r] + column, end - column);
    store_partial(sums + column, sum, end - column);
  }
}

template <typename T>
void scatter_gate_rows(const T* panels, Index block_stride, const int* ids, Index rows, Index hidden, Index begin,
                       Index end, T* table, Index table_stride) {
  constexpr Index V = kLanes<T>;
  for (Index block = begin; block < end; ++block) {
    const Index unit = block * V, lanes = hidden - unit;
    const T* row = panels + block * block_stride;
    for (Index r = 0; r < rows; ++r)
      for (int gate = 0; gate < kGateCount; ++gate, row += V) {
        T* target = table + ids[r] * table_stride + gate * hidden + unit;
        store_partial(target, load_partial<T>(target, lanes) + load(row), lanes);
      }
  }
}

}  // namespace
}  // namespace lstmfast

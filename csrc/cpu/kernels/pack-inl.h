// Packing: copies of weights in the order in which the register tiles read them. The layouts are in kernel_table.h.
#pragma once

#include "cpu/kernels/tile-inl.h"

namespace lstmfast {
namespace {

// Rows that are read in parallel, each from beginning to end: as many as the hardware prefetcher tracks.
constexpr Index kRowsPackedAtOnce = 4;

template <typename T>
void pack_gate_rows(const T* kernel, Index kernel_stride, const int* ids, Index count, Index hidden, const T* bias,
                    T forget_bias, T* panels, Index block_stride) {
  constexpr Index V = kLanes<T>, W = kGateCount * V;
  for (Index first = 0; first < count; first += kRowsPackedAtOnce) {
    const Index end = first + kRowsPackedAtOnce < count ? first + kRowsPackedAtOnce : count;
    T* block = panels;
    for (Index unit = 0; unit < hidden; unit += V, block += block_stride) {
      const Index lanes = hidden - unit;
      for (int gate = 0; gate < kGateCount; ++gate) {
        const Index column = gate * hidden + unit;
        Vec<T> start = bias ? load_partial(bias + column, lanes) : Vec<T>{};
        if (gate == kForgetGate) start += forget_bias;
        for (Index i = first; i < end; ++i) {
          T* out = block + i * W + gate * V;
          const T* row = kernel ? kernel + (ids ? ids[i] : i) * kernel_stride + column : nullptr;
          store(out, row ? load_partial(row, lanes) + start : start);
          for (Index lane = lanes; lane < V; ++lane) out[lane] = T(0);
        }
      }
    }
  }
}

// Two vectors interleaved, a0 b0 a1 b1 ...: the first half (kFirst = 0) or the second (kFirst = kLanes / 2).
template <typename T, int kFirst, int... kLane>
LSTMFAST_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b) {
  if constexpr (sizeof...(kLane) < kLanes<T>) {
    constexpr int kNext = static_cast<int>(sizeof...(kLane)) / 2;
    return interleave<T, kFirst, kLane..., kFirst + kNext, kLanes<T> + kFirst + kNext>(a, b);
  } else {
#ifdef __clang__
    return __builtin_shufflevector(a, b, kLane...);
#else
    return __builtin_shuffle(a, b, VecBits<T>{kLane...});
#endif
  }
}

// A square of whole vectors, in registers: interleaving the rows of its halves rotates the bits of an element's
// position by one; after all rounds row and column are exchanged. 2.2 times as fast as element by element; the
// remaining time is cache misses, one line per row.
template <typename T>
LSTMFAST_INLINE void transpose_full_square(const T* matrix, Index stride, T* out, Index out_stride) {
  constexpr int V = kLanes<T>;
  Vec<T> rows[V], next[V];
  for (int i = 0; i < V; ++i) rows[i] = load(matrix + i * stride);
  for (int step = 1; step < V; step *= 2) {
    for (int i = 0; i < V / 2; ++i) {
      next[2 * i] = interleave<T, 0>(rows[i], rows[i + V / 2]);
      next[2 * i + 1] = interleave<T, V / 2>(rows[i], rows[i + V / 2]);
    }
    for (int i = 0; i < V; ++i) rows[i] = next[i];
  }
  for (int k = 0; k < V; ++k) store(out + k * out_stride, rows[k]);
}

// out[k][i] = matrix[i][k] for k < columns and i < kLanes, zero where i >= rows; rows of out are `out_stride` apart.
// Through a square in L1: the rows of a kernel are often a power of two apart, in the same few cache sets.
template <typename T>
LSTMFAST_NOINLINE void transpose_square(const T* matrix, Index stride, Index rows, Index columns, T* out,
                                        Index out_stride) {
  constexpr Index V = kLanes<T>;
  if (is_full<T>(rows) && columns == V) return transpose_full_square(matrix, stride, out, out_stride);
  alignas(64) T square[V * V];
  for (Index i = 0; i < V; ++i)
    store(square + i * V, i < rows ? load_partial(matrix + i * stride, columns) : Vec<T>{});
  for (Index k = 0; k < columns; ++k, out += out_stride)
    for (Index i = 0; i < V; ++i) out[i] = square[i * V + k];
}

template <typename T>
void pack_gates_transposed(const T* kernel, Index kernel_stride, Index rows, Index hidden, T* panels) {
  constexpr Index V = kLanes<T>;
  const PanelLayout<T> layout{rows};
  const Index blocks = ceil_div(hidden, V);
  for (Index panel = 0; panel < ceil_div(rows, kPanelVectors * V); ++panel) {
    const Index width = layout.vectors_in(panel) * V;
    T* out = panels + layout.offset(panel, blocks * kGateCount * V);
    for (Index block = 0; block < blocks; ++block)
      for (int gate = 0; gate < kGateCount; ++gate, out += V * width) {
        const Index unit = block * V, units = hidden - unit < V ? hidden - unit : V;
        for (Index i = 0; i < width; i += V) {
          const Index row = layout.first_column(panel) + i;
          transpose_square(kernel + row * kernel_stride + gate * hidden + unit, kernel_stride, rows - row, units,
                           out + i, width);
        }
        for (T* padding = out + units * width; padding < out + V * width; ++padding) *padding = T(0);
      }
  }
}

template <typename T>
void pack_gate_columns(const T* kernel, Index kernel_stride, Index rows, Index hidden, T* panels, Index block_stride) {
  constexpr Index V = kLanes<T>;
  for (Index unit = 0; unit < hidden; unit += V, panels += block_stride)
    for (int gate = 0; gate < kGateCount; ++gate) {
      const T* columns = kernel + (gate * hidden + unit) * kernel_stride;
      for (Index r = 0; r < rows; r += V)
        transpose_square(columns + r, kernel_stride, hidden - unit, rows - r < V ? rows - r : V,
                         panels + (r * kGateCount + gate) * V, kGateCount * V);
    }
}

template <typename T>
void pack_gate_columns_transposed(const T* kernel, Index kernel_stride, Index rows, Index hidden, T* panels) {
  constexpr Index V = kLanes<T>;
  const PanelLayout<T> layout{rows};
  const Index blocks = ceil_div(hidden, V);
  for (Index panel = 0; panel < ceil_div(rows, kPanelVectors * V); ++panel) {
    const Index width = layout.vectors_in(panel) * V, first = layout.first_column(panel);
    T* out = panels + layout.offset(panel, blocks * kGateCount * V);
    for (Index unit = 0; unit < blocks * V; unit += V)
      for (int gate = 0; gate < kGateCount; ++gate)
        for (Index u = unit; u < unit + V; ++u, out += width) {
          const T* row = u < hidden ? kernel + (gate * hidden + u) * kernel_stride + first : nullptr;
          for (Index i = 0; i < width; i += V)
            store(out + i, row ? load_partial(row + i, rows - first - i) : Vec<T>{});
        }
  }
}

template <typename T>
void transpose(const T* matrix, Index stride, Index rows, Index columns, T* out, Index out_stride) {
  constexpr Index V = kLanes<T>;
  for (Index c = 0; c < columns; c += V)
    for (Index r = 0; r < rows; r += V) {
      const T* from = matrix + r * stride + c;
      T* to = out + c * out_stride + r;
      const Index width = columns - c < V ? columns - c : V;
      if (is_full<T>(rows - r)) {
        transpose_square(from, stride, V, width, to, out_stride);
      } else {  // whole vectors would be written past the end of out
        for (Index i = 0; i < width; ++i)
          for (Index k = 0; k < rows - r; ++k) to[i * out_stride + k] = from[k * stride + i];
      }
    }
}

template <typename T>
void pack(const T* matrix, Index stride, Index rows, Index columns, T* panels) {
  constexpr Index V = kLanes<T>;
  const PanelLayout<T> layout{columns};
  for (Index panel = 0; panel < ceil_div(columns, kPanelVectors * V); ++panel) {
    const Index vectors = layout.vectors_in(panel);
    for (Index n = 0; n < vectors; ++n) {
      const Index column = layout.first_column(panel) + n * V;
      T* out = panels + layout.offset(panel, rows) + n * V;
      for (Index k = 0; k < rows; ++k, out += vectors * V)
        store(out, load_partial(matrix + k * stride + column, columns - column));
    }
  }
}

template <typename T>
void pack_transposed(const T* matrix, Index stride, Index rows, Index columns, T* panels) {
  constexpr Index V = kLanes<T>;
  const PanelLayout<T> layout{rows};
  for (Index panel = 0; panel < ceil_div(rows, kPanelVectors * V); ++panel) {
    const Index width = layout.vectors_in(panel) * V;
    T* out = panels + layout.offset(panel, columns);
    for (Index k = 0; k < columns; k += V, out += V * width)
      for (Index i = 0; i < width; i += V) {
        const Index row = layout.first_column(panel) + i;
        transpose_square(matrix + row * stride + k, stride, rows - row, columns - k < V ? columns - k : V, out + i,
                         width);
      }
  }
}

template <typename T>
void unpack_gates(const T* panels, Index block_stride, Index hidden, T* const* out, Index rows) {
  constexpr Index V = kLanes<T>;
  for (Index unit = 0; unit < hidden; unit += V, panels += block_stride)
    for (Index r = 0; r < rows; ++r)
      for (int gate = 0; gate < kGateCount; ++gate)
        store_partial(out[r] + gate * hidden + unit, load(panels + (r * kGateCount + gate) * V), hidden - unit);
}

}  // namespace
}  // namespace lstmfast

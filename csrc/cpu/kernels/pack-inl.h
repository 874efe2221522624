// Packing: copies of weights in the order in which the register tiles read them. The layouts are in kernel_table.h.
#pragma once

#include "cpu/kernels/tile-inl.h"

namespace lstmfast {
namespace {

template <typename T>
void pack_gate_rows(const T* kernel, Index kernel_stride, const int* ids, Index count, Index hidden, const T* bias,
                    T forget_bias, T* panels, Index block_stride) {
  constexpr Index V = kLanes<T>;
  for (Index unit = 0; unit < hidden; unit += V, panels += block_stride) {
    const Index lanes = hidden - unit;
    for (int gate = 0; gate < kGateCount; ++gate) {
      const Index column = gate * hidden + unit;
      Vec<T> start = bias ? load_partial(bias + column, lanes) : Vec<T>{};
      if (gate == kForgetGate) start += forget_bias;
      T* out = panels + gate * V;
      for (Index i = 0; i < count; ++i, out += kGateCount * V) {
        const T* row = kernel ? kernel + (ids ? ids[i] : i) * kernel_stride + column : nullptr;
        Vec<T> value = row ? load_partial(row, lanes) + start : start;
        store(out, value);
        for (Index lane = lanes; lane < V; ++lane) out[lane] = T(0);
      }
    }
  }
}

// out[k][i] = matrix[i][k] for k < columns and i < kLanes, zero where i >= rows; rows of out are `out_stride` apart.
// By way of a square in L1: the rows of a kernel often lie a power of two apart, in the same few sets of the cache.
template <typename T>
LSTMFAST_NOINLINE void transpose_square(const T* matrix, Index stride, Index rows, Index columns, T* out,
                                        Index out_stride) {
  constexpr Index V = kLanes<T>;
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

// Products of one row with an unpacked matrix: for so few rows, packing the weights would cost more than multiplying
// them. The first two are bound by reading the matrix once, one from first row to last and the other in reverse: a
// backward pass finds in cache the rows that the forward pass read last.
#pragma once

#include "cpu/kernels/training-inl.h"

namespace lstmfast {
namespace {

// Rows of the matrix that are read in parallel.
constexpr Index kRowsSideBySide = 4;

// out[j] += sum over k of x[k] * matrix[k][j]. The order of the sum is that of the tiles: k by k.
template <typename T, int R>
LSTMFAST_INLINE void add_rows(const T* x, const T* matrix, Index stride, Index columns, T* out) {
  Vec<T> x_k[R];
  for (int k = 0; k < R; ++k) x_k[k] = broadcast<T>(x[k]);
  for (Index j = 0; j < columns; j += kLanes<T>) {
    Vec<T> sum = load_partial<T>(out + j, columns - j);
    for (int k = 0; k < R; ++k)
      sum = fused_multiply_add(x_k[k], load_partial(matrix + k * stride + j, columns - j), sum);
    store_partial(out + j, sum, columns - j);
  }
}

template <typename T>
void add_row_product(const T* x, const T* matrix, Index stride, Index rows, Index columns, T* out) {
  Index k = 0;
  for (; k + kRowsSideBySide <= rows; k += kRowsSideBySide)
    add_rows<T, kRowsSideBySide>(x + k, matrix + k * stride, stride, columns, out);
  for (; k < rows; ++k) add_rows<T, 1>(x + k, matrix + k * stride, stride, columns, out);
}

// out[k] = sum over j of matrix[k][j] * x[j], in two sums per lane.
template <typename T, int R>
LSTMFAST_INLINE void dot_rows(const T* matrix, Index stride, Index columns, const T* x, T* out) {
  constexpr Index V = kLanes<T>;
  Vec<T> sums[R][2] = {};
  Index j = 0;
  for (; j + 2 * V <= columns; j += 2 * V)
    for (int half = 0; half < 2; ++half) {
      const Vec<T> x_j = load(x + j + half * V);
      for (int k = 0; k < R; ++k)
        sums[k][half] = fused_multiply_add(load(matrix + k * stride + j + half * V), x_j, sums[k][half]);
    }
  for (; j < columns; j += V) {
    const Vec<T> x_j = load_partial<T>(x + j, columns - j);
    for (int k = 0; k < R; ++k)
      sums[k][0] = fused_multiply_add(load_partial<T>(matrix + k * stride + j, columns - j), x_j, sums[k][0]);
  }
  for (int k = 0; k < R; ++k) out[k] = horizontal_sum<T>(sums[k][0] + sums[k][1]);
}

template <typename T>
void row_dot_products(const T* matrix, Index stride, Index rows, Index columns, const T* x, T* out) {
  Index k = rows;
  for (; k % kRowsSideBySide != 0; --k) dot_rows<T, 1>(matrix + (k - 1) * stride, stride, columns, x, out + k - 1);
  for (k -= kRowsSideBySide; k >= 0; k -= kRowsSideBySide)
    dot_rows<T, kRowsSideBySide>(matrix + k * stride, stride, columns, x, out + k);
}

// Row by row, in the memory order of `out`, which a core writes fastest.
template <typename T>
void outer_products(const OuterProductsArgs<T>& args) {
  for (Index m = args.m.begin; m < args.m.end; ++m) {
    T* out = args.out.row(m);
    for (Index r = 0; r < args.rows; ++r) {
      const Vec<T> a = broadcast<T>(args.a[r][m]);
      const bool add = args.add || r > 0;
      for (Index n = args.n.begin; n < args.n.end; n += kLanes<T>) {
        const Index lanes = args.n.end - n;
        const Vec<T> start = add ? load_partial<T>(out + n, lanes) : Vec<T>{};
        store_partial(out + n, fused_multiply_add(a, load_partial(args.b[r] + n, lanes), start), lanes);
      }
    }
  }
}

}  // namespace
}  // namespace lstmfast

// Large bf16x products in chunks: as much of the left factor as stays in L2 is packed at once.
// Every function returns false if a value may not take this path (bf16x_kernels.h): its output is then undefined, and
// the caller does the whole product with the kernels of KernelTable. One workspace per thread; it grows and is kept.
#pragma once

#include "core/aligned_buffer.h"
#include "cpu/bf16x_kernels.h"

namespace lstmfast {

struct Bf16xWorkspace {
  AlignedBuffer<Bfloat16> left, right;
};

// Rows of `a`, `product.factors.rows` of them, times product.factors.right. factors.left is not read.
bool bf16x_rows_to_gates(const Bf16xKernels&, const Bf16xRows& a, Bf16xToGatesArgs product, Bf16xWorkspace&);
bool bf16x_rows_to_rows(const Bf16xKernels&, const Bf16xRows& a, Bf16xToRowsArgs product, Bf16xWorkspace&);

// Weight gradients: out[m, :] = sum over r of a[r][m] * b[r, :] for m in [m_begin, m_end), added to `out` if `add`.
// `b` and `out` hold the columns that the caller wants: a range of gate blocks, or a plain matrix.
struct Bf16xTransposedArgs {
  int parts;
  Index m_begin, m_end;
  const float* const* a;  // [rows] -> at least m_end elements
  Index rows;
  const float* panels;      // gate panels of 16 lanes, from block_begin on; or, if null,
  MatrixView<const float> b;  // [rows, columns]
  Index block_begin, block_end;
  Index panel_block_stride;
  MatrixView<float> out;  // row m_begin of [., columns]
  Index columns;
  Index gate_hidden_size;  // > 0 with gate panels: columns is 4 * that
  bool add;
};
bool bf16x_transposed_to_rows(const Bf16xKernels&, const Bf16xTransposedArgs&, Bf16xWorkspace&);

}  // namespace lstmfast

// Large bf16x products in chunks: as much of the left factor as stays in L2 is packed at once.
// Every function returns false if a value may not take this path (bf16x_kernels.h): its output is then undefined, and
// the caller does the whole product with the kernels of KernelTable. One workspace per thread; it grows and is kept.
#pragma once

#include "core/aligned_buffer.h"
#include "cpu/bf16x_kernels.h"
#include "cpu/kernel_table.h"

namespace lstmfast {

struct Bf16xWorkspace {
  AlignedBuffer<Bfloat16> left, right;
};

// Rows of `a`, `product.factors.rows` of them, times product.factors.right. factors.left is not read.
bool bf16x_rows_to_gates(const Bf16xKernels&, const Bf16xRows& a, Bf16xToGatesArgs product, Bf16xWorkspace&);
bool bf16x_rows_to_rows(const Bf16xKernels&, const Bf16xRows& a, Bf16xToRowsArgs product, Bf16xWorkspace&);

// Weight gradients, as TransposedProductArgs describes them, of several left factors: each piece of `b` is packed once.
// `b` holds the columns that the caller wants: a range of gate blocks, or a plain matrix.
struct Bf16xTransposedArgs {
  int parts;
  Index rows;
  const float* panels;      // gate panels of 16 lanes, from block_begin on; or, if null,
  MatrixView<const float> b;  // [rows, columns]
  Index block_begin, block_end;
  Index panel_block_stride;
  Index columns;
  Index gate_hidden_size;  // > 0 with gate panels: columns is 4 * that
  bool add;
};
bool bf16x_transposed_to_rows(const Bf16xKernels&, const Bf16xTransposedArgs&, const TransposedLeft<float>* left,
                              int count, Bf16xWorkspace&);

}  // namespace lstmfast

// A matrix in the plain panels of kernel_table.h, and rows times it. Packed once, multiplied often; no threads.
#pragma once

#include "core/aligned_buffer.h"
#include "core/views.h"
#include "cpu/panel_sizes.h"

namespace lstmfast {

// The arguments of a product for only these rows, or these panels.
template <typename Args>
Args for_rows(Args args, Range rows) {
  args.row_begin = rows.begin;
  args.row_end = rows.end;
  return args;
}
template <typename Args>
Args for_panels(Args args, Range panels) {
  args.panel_begin = panels.begin;
  args.panel_end = panels.end;
  return args;
}

template <typename T>
class PackedMatrix {
 public:
  // matrix [rows, columns]
  void pack(const KernelTable<T>& k, MatrixView<const T> matrix, Index rows, Index columns) {
    k.pack(matrix.data, matrix.stride, rows, columns, resize(k, rows, columns));
  }
  // Its transpose: this is then a matrix of `columns` rows and `rows` columns.
  void pack_transposed(const KernelTable<T>& k, MatrixView<const T> matrix, Index rows, Index columns) {
    k.pack_transposed(matrix.data, matrix.stride, rows, columns, resize(k, columns, rows));
  }

  // out[r] = bias + a[r]·matrix for these rows; bias may be null.
  void multiply(Range rows, const T* const* a, const T* bias, T* const* out) const {
    multiply(rows, {0, panels()}, a, bias, out);
  }
  void multiply(Range rows, Range panels, const T* const* a, const T* bias, T* const* out) const {
    ProductArgs<T> product{};
    product.a = a;
    product.depth_blocks = 1;
    product.block_length = rows_;
    product.panels = data();
    product.bias = bias;
    product.out = out;
    product.columns = columns_;
    k_->product(for_panels(for_rows(product, rows), panels));
  }

  Index rows() const { return rows_; }
  Index columns() const { return columns_; }
  Index panels() const { return PanelSizes<T>(*k_).panels(columns_); }
  Index panel_stride() const { return rows_ * kPanelVectors * k_->vector_length; }  // from one full panel to the next
  const T* data() const { return panels_.data(); }
  void release() { panels_.release(); }
  std::size_t size_bytes() const { return panels_.size_bytes(); }

 private:
  T* resize(const KernelTable<T>& k, Index rows, Index columns) {
    k_ = &k;
    rows_ = rows;
    columns_ = columns;
    return panels_.resize(rows * PanelSizes<T>(k).padded(columns));
  }

  const KernelTable<T>* k_ = nullptr;  // the kernels that it is packed for
  Index rows_ = 0, columns_ = 0;
  AlignedBuffer<T> panels_;
};

}  // namespace lstmfast

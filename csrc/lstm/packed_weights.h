// Kernels of one LSTM direction in the order in which the register tiles read them. Packed whenever the weights
// have changed (fingerprint.h): a copy of 1/batch of the work of a step.
#pragma once

#include "core/aligned_buffer.h"
#include "core/gates.h"
#include "core/views.h"
#include "cpu/panel_sizes.h"

namespace lstmfast {

// The input's rows of a kernel, or the state's: [rows, 4*hidden], or transposed, [4*hidden, rows].
template <typename T>
struct KernelPart {
  MatrixView<const T> matrix;
  Index rows;
  bool is_transposed = false;
};

template <typename T>
class PackedGates {
 public:
  // As gate panels.
  void pack(const KernelTable<T>& k, const KernelPart<T>& kernel, Index hidden) {
    const PanelSizes<T> sizes(k);
    const auto& [matrix, rows, is_transposed] = kernel;
    const Index block_stride = rows * sizes.gate_width();
    T* panels = buffer_.resize(sizes.gate_blocks(hidden) * block_stride);
    if (is_transposed)
      k.pack_gate_columns(matrix.data, matrix.stride, rows, hidden, panels, block_stride);
    else
      k.pack_gate_rows(matrix.data, matrix.stride, nullptr, rows, hidden, nullptr, T(0), panels, block_stride);
  }

  // Transposed: plain panels with `rows` columns.
  void pack_transposed(const KernelTable<T>& k, const KernelPart<T>& kernel, Index hidden) {
    const PanelSizes<T> sizes(k);
    T* panels = buffer_.resize(sizes.gate_depth(hidden) * sizes.padded(kernel.rows));
    (kernel.is_transposed ? k.pack_gate_columns_transposed : k.pack_gates_transposed)(
        kernel.matrix.data, kernel.matrix.stride, kernel.rows, hidden, panels);
  }

  const T* data() const { return buffer_.data(); }
  void release() { buffer_.release(); }
  std::size_t size_bytes() const { return buffer_.size_bytes(); }

 private:
  AlignedBuffer<T> buffer_;
};

// Where a row's product starts: the bias, or for token ids the kernel's row plus the bias.
template <typename T>
class StartingValues {
 public:
  // One row for all: bias + forget_bias.
  void pack_bias(const KernelTable<T>& k, const T* bias, T forget_bias, Index hidden) {
    pack(k, {}, nullptr, 1, hidden, bias, forget_bias);
  }

  // Ids select rows of the input kernel [vocabulary, 4*hidden]. A small vocabulary is packed whole (a row serves many
  // ids); of a large one only the rows that `ids` names are packed, one per id.
  void pack_rows(const KernelTable<T>& k, MatrixView<const T> kernel, Index vocabulary, const int* ids, Index count,
                 Index hidden, const T* bias, T forget_bias) {
    by_id_ = vocabulary <= count;
    if (by_id_)
      pack(k, kernel, nullptr, vocabulary, hidden, bias, forget_bias);
    else
      pack(k, kernel, ids, count, hidden, bias, forget_bias);
  }

  const T* of_all() const { return buffer_.data(); }
  const T* of_id(Index position, int id) const { return buffer_.data() + (by_id_ ? id : position) * row_size_; }
  Index block_stride() const { return block_stride_; }
  void release() { buffer_.release(); }
  std::size_t size_bytes() const { return buffer_.size_bytes(); }

 private:
  void pack(const KernelTable<T>& k, MatrixView<const T> kernel, const int* ids, Index count, Index hidden,
            const T* bias, T forget_bias) {
    const PanelSizes<T> sizes(k);
    row_size_ = sizes.gate_width();
    block_stride_ = count * row_size_;
    T* panels = buffer_.resize(sizes.gate_blocks(hidden) * block_stride_);
    k.pack_gate_rows(kernel.data, kernel.stride, ids, count, hidden, bias, forget_bias, panels, block_stride_);
  }

  AlignedBuffer<T> buffer_;
  Index row_size_ = 0, block_stride_ = 0;
  bool by_id_ = false;
};

}  // namespace lstmfast

// The projection [hidden_size, size] of a layer whose h is smaller than its c: packed once, multiplied at every step.
// Knows products of some rows; knows no time and no threads.
#pragma once

#include "core/aligned_buffer.h"
#include "core/views.h"
#include "cpu/panel_sizes.h"

namespace lstmfast {

template <typename T>
class Projection {
 public:
  void pack(const KernelTable<T>& k, MatrixView<const T> weights, Index hidden, Index size) {
    k.pack(weights.data, weights.stride, hidden, size, panels_.resize(hidden * PanelSizes<T>(k).padded(size)));
  }
  void pack_transposed(const KernelTable<T>& k, MatrixView<const T> weights, Index hidden, Index size) {
    k.pack_transposed(weights.data, weights.stride, hidden, size,
                      transposed_.resize(size * PanelSizes<T>(k).padded(hidden)));
  }

  // All but what `pack` packed.
  void release_workspaces() { transposed_.release(); }
  std::size_t size_bytes() const { return panels_.size_bytes() + transposed_.size_bytes(); }

  // h[r] = m[r]·weights for these rows and plain panels of h.
  void project(const KernelTable<T>& k, Range rows, Range panels, const T* const* m, Index hidden, T* const* h,
               Index size) const {
    multiply(k, rows, panels, m, hidden, panels_.data(), h, size);
  }
  // d_m[r] = d_h[r]·weights transposed for these rows and plain panels of m.
  void project_back(const KernelTable<T>& k, Range rows, Range panels, const T* const* d_h, Index size, T* const* d_m,
                    Index hidden) const {
    multiply(k, rows, panels, d_h, size, transposed_.data(), d_m, hidden);
  }

 private:
  static void multiply(const KernelTable<T>& k, Range rows, Range panels, const T* const* a, Index depth,
                       const T* packed, T* const* out, Index columns) {
    ProductArgs<T> product{};
    product.row_begin = rows.begin;
    product.row_end = rows.end;
    product.panel_begin = panels.begin;
    product.panel_end = panels.end;
    product.a = a;
    product.depth_blocks = 1;
    product.block_length = depth;
    product.panels = packed;
    product.out = out;
    product.columns = columns;
    k.product(product);
  }

  AlignedBuffer<T> panels_, transposed_;
};

}  // namespace lstmfast

// The projection [hidden_size, size] of a layer whose h is smaller than its c: packed once, multiplied at every step.
// Knows products of some rows; knows no time and no threads.
#pragma once

#include "cpu/packed_matrix.h"

namespace lstmfast {

template <typename T>
class Projection {
 public:
  void pack(const KernelTable<T>& k, MatrixView<const T> weights, Index hidden, Index size) {
    weights_.pack(k, weights, hidden, size);
  }
  void pack_transposed(const KernelTable<T>& k, MatrixView<const T> weights, Index hidden, Index size) {
    transposed_.pack_transposed(k, weights, hidden, size);
  }

  // All but what `pack` packed.
  void release_workspaces() { transposed_.release(); }
  std::size_t size_bytes() const { return weights_.size_bytes() + transposed_.size_bytes(); }

  // h[r] = m[r]·weights for these rows and plain panels of h.
  void project(const KernelTable<T>&, Range rows, Range panels, const T* const* m, Index, T* const* h, Index) const {
    weights_.multiply(rows, panels, m, nullptr, h);
  }
  // d_m[r] = d_h[r]·weights transposed for these rows and plain panels of m.
  void project_back(const KernelTable<T>&, Range rows, Range panels, const T* const* d_h, Index, T* const* d_m,
                    Index) const {
    transposed_.multiply(rows, panels, d_h, nullptr, d_m);
  }

 private:
  PackedMatrix<T> weights_, transposed_;
};

}  // namespace lstmfast

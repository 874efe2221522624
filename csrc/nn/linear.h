// The dense layer after the LSTM: out = x·kernel + bias, and its gradients. Workspaces are kept per calling thread.
#pragma once

#include <vector>

#include "cpu/packed_matrix.h"

namespace lstmfast {

// x [rows, inputs], kernel [inputs, outputs], bias [outputs] or null, out [rows, outputs]
template <typename T>
void linear(MatrixView<const T> x, MatrixView<const T> kernel, const T* bias, MatrixView<T> out, Index rows,
            Index inputs, Index outputs);

// Absent gradients are not computed; present ones are overwritten.
template <typename T>
void linear_backward(MatrixView<const T> x, MatrixView<const T> kernel, MatrixView<const T> d_out, MatrixView<T> d_x,
                     MatrixView<T> d_kernel, T* d_bias, Index rows, Index inputs, Index outputs);

void release_linear_workspaces();  // of the calling thread

// The forward product with a copy of kernel and bias, packed once: for callers that step many times.
template <typename T>
class PackedLinear {
 public:
  PackedLinear(const KernelTable<T>& k, MatrixView<const T> kernel, const T* bias, Index inputs, Index outputs);
  void apply(MatrixView<const T> x, MatrixView<T> out, Index rows) const;  // x [rows, inputs], out [rows, outputs]
  Index inputs() const { return kernel_.rows(); }
  Index outputs() const { return kernel_.columns(); }

 private:
  PackedMatrix<T> kernel_;
  std::vector<T> bias_;
};

}  // namespace lstmfast

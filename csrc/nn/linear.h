// The dense layer after the LSTM: out = x·kernel + bias, and its gradients. Workspaces are kept per calling thread.
#pragma once

#include <vector>

#include "core/aligned_buffer.h"
#include "core/views.h"
#include "cpu/kernel_table.h"

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

// The forward product with the kernel packed once, for one caller that steps many times.
template <typename T>
class PackedLinear {
 public:
  PackedLinear(const KernelTable<T>& k, MatrixView<const T> kernel, const T* bias, Index inputs, Index outputs);
  void apply(const T* x, Index rows, T* out);  // x [rows, inputs], out [rows, outputs], both contiguous

 private:
  const KernelTable<T>& k_;
  Index inputs_, outputs_;
  const T* bias_;
  AlignedBuffer<T> panels_;
  std::vector<const T*> x_;
  std::vector<T*> out_;
};

}  // namespace lstmfast

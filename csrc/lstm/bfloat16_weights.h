// Kernels of one LSTM direction as bfloat16, for streams: a step of few rows waits for its weights. A bfloat16 is the upper
// half of the float32, rounded to the nearest, ties to even: relative error at most 2^-8.
#pragma once

#include "core/aligned_buffer.h"
#include "core/views.h"
#include "cpu/kernel_table.h"

namespace lstmfast {

class BFloat16Gates {
 public:
  // Rows [0, rows) of kernel [., 4*hidden].
  void pack(const KernelTable<float>& k, MatrixView<const float> kernel, Index rows, Index hidden);

  const int* panels() const { return words_.data(); }

 private:
  AlignedBuffer<int> words_;
};

}  // namespace lstmfast

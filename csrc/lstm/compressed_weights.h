// Kernels of one LSTM direction in 2 bytes or 1 per weight, for streams: what a step of few rows waits for is its weights.
//   bfloat16   the upper half of the float32, rounded to the nearest, ties to even: relative error at most 2^-8
//   int8       symmetric, w = scale * q with q in -127..127: one scale for each gate of each unit, max |w| / 127, for the
//              input's and for the recurrent weights apart. Those are the rows of PyTorch's weight_ih and weight_hh, and the
//              granularity that the field calls per channel. Error at most scale / 2
#pragma once

#include "core/aligned_buffer.h"
#include "core/views.h"
#include "cpu/kernel_table.h"

namespace lstmfast {

enum class WeightFormat { kFloat32, kBFloat16, kInt8 };

class CompressedGates {
 public:
  // Rows [0, rows) of kernel [., 4*hidden]. Throws std::invalid_argument for int8 where a weight is not finite.
  void pack(const KernelTable<float>& k, MatrixView<const float> kernel, Index rows, Index hidden, WeightFormat format);

  CompressedPanels panels() const { return {words_.data(), scales_.data()}; }

 private:
  AlignedBuffer<int> words_;
  AlignedBuffer<float> scales_;
};

}  // namespace lstmfast

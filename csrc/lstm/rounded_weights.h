// Kernels of one LSTM direction rounded to short integers, and steps whose products are those of cpu/dot_kernels.h.
// Serves whole sequences (dot_products.cc) and streams; knows no time.
#pragma once

#include <cstddef>

#include "core/aligned_buffer.h"
#include "cpu/dot_kernels.h"
#include "lstm/packed_weights.h"

namespace lstmfast {

class RoundedGates {
 public:
  // Returns false if a weight cannot be rounded: not finite, or above kDotLargest.
  bool pack(const KernelTable<float>& k, const DotKernels& dots, const KernelPart<float>& kernel, Index hidden);

  DotPanels panels() const { return {words_.data(), starts_.data(), scales_.data()}; }
  std::size_t size_bytes() const { return words_.size_bytes() + starts_.size_bytes() + scales_.size_bytes(); }

 private:
  AlignedBuffer<int> words_, starts_;
  AlignedBuffer<float> scales_;
};

// One thread's rows of x or h, rounded.
class RoundedRows {
 public:
  // Returns false if some row cannot be rounded; `is_rounded` tells which.
  bool pack(const DotKernels& dots, const float* const* rows, Index count, Index depth);
  bool is_rounded(Index row) const { return scales_.data()[row] == scales_.data()[row]; }
  // From row `first` on.
  DotRows rows(Index first) const { return {words_.data() + first * stride_, stride_, scales_.data() + first}; }

  void release();
  std::size_t size_bytes() const { return words_.size_bytes() + scales_.size_bytes(); }

 private:
  AlignedBuffer<int> words_;
  AlignedBuffer<float> scales_;
  Index stride_ = 0;
};

struct RoundedWorkspace {
  RoundedRows x, h_prev;
  AlignedBuffer<float> z;  // of a row that cannot be rounded
};

// `step` with products of rounded factors. Rows that cannot be rounded, because of infinity or NaN, are multiplied in
// float32 with the same weights.
void step_forward_rounded(const KernelTable<float>& k, const DotKernels& dots, const StepForwardArgs<float>& step,
                          const DotPanels& input, const DotPanels& recurrent, RoundedWorkspace& workspace);

}  // namespace lstmfast

// Parameter updates and the gradient's norm over one contiguous buffer, split over threads in fixed chunks: the same
// bits for any number of threads. The formulas are those of `reference.py`; kernels/training-inl.h implements them.
#pragma once

#include <string>

#include "cpu/kernel_table.h"

namespace lstmfast {

template <typename T>
double global_norm(const T* values, Index count);

// The update of that name, for the ISA in use. Throws std::invalid_argument listing the known names.
template <typename T>
const OptimizerKernel<T>& optimizer_named(const std::string& name);

// One step along scale * gradients: changes `parameters` and the slots. All buffers are `count` long.
template <typename T>
void optimizer_update(const OptimizerKernel<T>& optimizer, T* parameters, const T* gradients, T* const* slots,
                      Index count, const T* constants, T scale);

}  // namespace lstmfast

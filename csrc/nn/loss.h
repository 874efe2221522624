// Softmax cross entropy of many rows, with its gradient in the same pass.
#pragma once

#include "core/views.h"

namespace lstmfast {

// losses[r] = -log softmax(logits[r])[targets[r]] in nats; gradients (absent, or the logits themselves) become
// scale * (softmax - one_hot).
template <typename T>
void softmax_cross_entropy(MatrixView<const T> logits, const int* targets, Index rows, Index classes, T scale,
                           T* losses, MatrixView<T> gradients);

}  // namespace lstmfast

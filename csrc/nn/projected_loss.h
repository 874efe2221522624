// Softmax cross entropy of a dense layer's outputs, for many classes: the outputs of a few rows at a time are computed,
// become derivatives, and are used up, so that no array of all rows and classes exists.
#pragma once

#include "core/views.h"

namespace lstmfast {

// logits[r] = bias + x[r]·kernel; losses[r] = -log softmax(logits[r])[targets[r]] in nats. kernel [inputs, classes], or
// [classes, inputs] if `transposed`: the table of an embedding. d_x, d_kernel and d_bias become the derivatives of scale
// times the sum of the losses; all three or none are given.
template <typename T>
void projected_cross_entropy(MatrixView<const T> x, MatrixView<const T> kernel, bool transposed, const T* bias,
                             const int* targets, Index rows, Index inputs, Index classes, T scale, T* losses,
                             MatrixView<T> d_x, MatrixView<T> d_kernel, T* d_bias);

void release_projected_loss_workspaces();  // of the calling thread

}  // namespace lstmfast

// A language model that writes: a stream of LSTM layers, the dense layer behind it, and the choice of the next token.
#pragma once

#include "lstm/stream.h"
#include "nn/sampling.h"

namespace lstmfast {

// For n = 0 .. steps-1: each stream reads its token, and its next one is chosen with uniforms[n, b], written to out[n, b]
// and left in tokens[b].
template <typename T>
void generate(Stream<T>& stream, MatrixView<const T> projection_kernel, const T* projection_bias, Index vocabulary,
              const SamplingOptions& options, int* tokens, const double* uniforms, Index steps, int* out);

}  // namespace lstmfast

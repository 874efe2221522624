// Text generation: a stream of LSTM layers, the dense layer after it, and the choice of the next token.
#pragma once

#include "lstm/stream.h"
#include "nn/sampling.h"

namespace lstmfast {

// For n = 0 .. steps-1: each row b reads tokens[b]; its next token is chosen with uniforms[n, b] and written to out[n,
// b] and tokens[b].
template <typename T>
void generate(Stream<T>& stream, MatrixView<const T> projection_kernel, const T* projection_bias, Index vocabulary,
              const SamplingOptions& options, int* tokens, const double* uniforms, Index steps, int* out);

}  // namespace lstmfast

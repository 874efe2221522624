// The loop over tokens. The projection is packed once for all of them.
#include "models/generate.h"

#include <vector>

#include "cpu/dispatch.h"
#include "nn/linear.h"

namespace lstmfast {

template <typename T>
void generate(Stream<T>& stream, MatrixView<const T> projection_kernel, const T* projection_bias, Index vocabulary,
              const SamplingOptions& options, int* tokens, const double* uniforms, Index steps, int* out) {
  const Index batch = stream.batch();
  PackedLinear<T> projection(stream.kernel_table(), projection_kernel, projection_bias, stream.hidden_size(),
                             vocabulary);
  TokenChooser<T> chooser(kernels<double>(), options, vocabulary);
  std::vector<T> logits(static_cast<std::size_t>(batch * vocabulary));
  for (Index n = 0; n < steps; ++n) {
    projection.apply({stream.step_tokens(tokens), stream.hidden_size()}, {logits.data(), vocabulary}, batch);
    for (Index b = 0; b < batch; ++b) {
      tokens[b] = chooser.choose(logits.data() + b * vocabulary, uniforms[n * batch + b]);
      out[n * batch + b] = tokens[b];
    }
  }
}

#define LSTMFAST_INSTANTIATE(T)                                                                                   \
  template void generate(Stream<T>&, MatrixView<const T>, const T*, Index, const SamplingOptions&, int*,          \
                         const double*, Index, int*);
LSTMFAST_INSTANTIATE(float)
LSTMFAST_INSTANTIATE(double)
#undef LSTMFAST_INSTANTIATE

}  // namespace lstmfast

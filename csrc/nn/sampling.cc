// See sampling.h.
#include "nn/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "nn/linear.h"

namespace lstmfast {

template <typename T>
TokenChooser<T>::TokenChooser(const SamplingOptions& options, Index vocabulary)
    : options_(options), weights_(static_cast<std::size_t>(vocabulary)), ids_(static_cast<std::size_t>(vocabulary)) {}

template <typename T>
int TokenChooser<T>::choose(const T* logits, double uniform) {
  const auto vocabulary = static_cast<Index>(weights_.size());
  const T* best = std::max_element(logits, logits + vocabulary);
  if (options_.temperature == 0) return static_cast<int>(best - logits);
  double total = 0;
  for (Index id = 0; id < vocabulary; ++id) {
    // Subtract first: the largest exponent is 0 at any temperature, and nothing overflows.
    weights_[id] = std::exp((static_cast<double>(logits[id]) - static_cast<double>(*best)) / options_.temperature);
    total += weights_[id];
  }
  if (!std::isfinite(total)) throw std::domain_error("the model's logits are not finite: its weights have diverged");
  const bool limited_k = options_.top_k > 0 && options_.top_k < vocabulary;
  if (limited_k || options_.top_p < 1) {
    sort_ids();
    if (limited_k) keep_top_k(options_.top_k);
    if (options_.top_p < 1) keep_top_p(options_.top_p);
    total = std::accumulate(weights_.begin(), weights_.end(), 0.0);
  }
  const double threshold = uniform * total;
  double cumulative = 0;
  int last_possible = 0;
  for (Index id = 0; id < vocabulary; ++id) {
    cumulative += weights_[id];
    if (weights_[id] > 0) last_possible = static_cast<int>(id);
    if (cumulative > threshold) return static_cast<int>(id);
  }
  return last_possible;  // rounding left the threshold at the very end
}

template <typename T>
void TokenChooser<T>::sort_ids() {
  std::iota(ids_.begin(), ids_.end(), 0);
  const auto more_probable = [this](int a, int b) {
    return weights_[a] > weights_[b] || (weights_[a] == weights_[b] && a < b);
  };
  std::sort(ids_.begin(), ids_.end(), more_probable);
}

template <typename T>
void TokenChooser<T>::keep_top_k(Index count) {
  for (auto id = ids_.begin() + count; id != ids_.end(); ++id) weights_[*id] = 0;
}

template <typename T>
void TokenChooser<T>::keep_top_p(double probability) {
  const double total = std::accumulate(weights_.begin(), weights_.end(), 0.0);
  double kept = 0;
  for (const int id : ids_) {
    if (kept >= probability * total) {
      weights_[id] = 0;
    } else {
      kept += weights_[id];
    }
  }
}

template <typename T>
void generate(Stream<T>& stream, MatrixView<const T> projection_kernel, const T* projection_bias, Index vocabulary,
              const SamplingOptions& options, int* tokens, const double* uniforms, Index steps, int* out) {
  const Index batch = stream.batch();
  PackedLinear<T> projection(stream.kernel_table(), projection_kernel, projection_bias, stream.hidden_size(),
                             vocabulary);
  TokenChooser<T> chooser(options, vocabulary);
  std::vector<T> logits(static_cast<std::size_t>(batch * vocabulary));
  for (Index n = 0; n < steps; ++n) {
    projection.apply(stream.step_tokens(tokens), batch, logits.data());
    for (Index b = 0; b < batch; ++b) {
      tokens[b] = chooser.choose(logits.data() + b * vocabulary, uniforms[n * batch + b]);
      out[n * batch + b] = tokens[b];
    }
  }
}

#define LSTMFAST_INSTANTIATE(T)                                                                                   \
  template class TokenChooser<T>;                                                                                 \
  template void generate(Stream<T>&, MatrixView<const T>, const T*, Index, const SamplingOptions&, int*,          \
                         const double*, Index, int*);
LSTMFAST_INSTANTIATE(float)
LSTMFAST_INSTANTIATE(double)
#undef LSTMFAST_INSTANTIATE

}  // namespace lstmfast

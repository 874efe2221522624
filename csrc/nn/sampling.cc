// Weights of all ids in double, zero for ids not kept, then one pass over their running sum.
#include "nn/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "cpu/panel_sizes.h"

namespace lstmfast {
namespace {

// Differences of logits below this get no weight: e^-708 is 1e-308.
constexpr double kLowest = -708;

// The largest value, ignoring NaN. Eight candidates at a time: a single one would wait for each comparison.
template <typename T>
T largest(const T* values, Index count) {
  constexpr Index kLanes = 8;
  T best[kLanes];
  std::fill_n(best, kLanes, values[0]);
  Index i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (Index lane = 0; lane < kLanes; ++lane) best[lane] = best[lane] < values[i + lane] ? values[i + lane] : best[lane];
  for (; i < count; ++i) best[0] = best[0] < values[i] ? values[i] : best[0];
  return *std::max_element(best, best + kLanes);
}

}  // namespace

template <typename T>
TokenChooser<T>::TokenChooser(const KernelTable<double>& k, const SamplingOptions& options, Index vocabulary)
    : k_(k),
      options_(options),
      vocabulary_(vocabulary),
      weights_(static_cast<std::size_t>(PanelSizes<double>(k).padded(vocabulary))),
      cumulative_(weights_.size()),
      ids_(static_cast<std::size_t>(vocabulary)) {}

template <typename T>
int TokenChooser<T>::choose(const T* logits, double uniform) {
  if (options_.temperature == 0) return static_cast<int>(std::max_element(logits, logits + vocabulary_) - logits);
  weigh(logits);
  if (!std::isfinite(accumulate()))
    throw std::domain_error("the model's logits are not finite: its weights have diverged");
  const bool limited_k = options_.top_k > 0 && options_.top_k < vocabulary_;
  if (limited_k || options_.top_p < 1) {
    sort_ids();
    if (limited_k) keep_top_k(options_.top_k);
    if (options_.top_p < 1) keep_top_p(options_.top_p);
    accumulate();
  }
  const double threshold = uniform * cumulative_[vocabulary_ - 1];
  for (Index id = 0; id < vocabulary_; ++id)
    if (cumulative_[id] > threshold) return static_cast<int>(id);
  Index last = vocabulary_ - 1;  // reached only if rounding puts the threshold at the end
  while (last > 0 && !(weights_[last] > 0)) --last;
  return static_cast<int>(last);
}

// e^((logit - largest) / temperature). NaN if a logit is NaN or the largest is infinite.
template <typename T>
void TokenChooser<T>::weigh(const T* logits) {
  const double best = largest(logits, vocabulary_);
  double* exponents = cumulative_.data();
  // Subtract first: the largest exponent is 0 at any temperature, and nothing overflows.
  for (Index id = 0; id < vocabulary_; ++id)
    exponents[id] = (static_cast<double>(logits[id]) - best) / options_.temperature;
  k_.exp(exponents, weights_.data(), static_cast<Index>(weights_.size()));  // with padding: whole vectors are faster
  for (Index id = 0; id < vocabulary_; ++id) weights_[id] = exponents[id] < kLowest ? 0 : weights_[id];
}

// Fills cumulative_ in order; returns the sum of all weights.
template <typename T>
double TokenChooser<T>::accumulate() {
  std::partial_sum(weights_.begin(), weights_.begin() + vocabulary_, cumulative_.begin());
  return cumulative_[vocabulary_ - 1];
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
  const double total = accumulate();
  double kept = 0;
  for (const int id : ids_) {
    if (kept >= probability * total) {
      weights_[id] = 0;
    } else {
      kept += weights_[id];
    }
  }
}

template class TokenChooser<float>;
template class TokenChooser<double>;

}  // namespace lstmfast

// The hot loops of a training step besides the LSTM: softmax cross entropy, gradient norm, parameter updates.
#pragma once

#include "cpu/kernels/activations-inl.h"

namespace lstmfast {
namespace {

// Rows whose logarithms are taken together: a call between two rows would make each wait for the one before.
constexpr Index kLossesAtOnce = 64;

template <typename T>
void softmax_cross_entropy(const T* const* logits, const int* targets, Index begin, Index end, Index columns, T scale,
                           T* losses, T* const* gradients) {
  constexpr Index V = kLanes<T>;
  const T lowest = sizeof(T) == 4 ? T(-3.0e38f) : T(-1.7e308);
  // A row's last vector ends with the row, and overlaps the one before if the columns do not fill it: part of a just
  // stored vector cannot be loaded before the store completes, a whole one can.
  const Index before_last = (columns - 1) / V * V, last = columns < V ? 0 : columns - V;
  T once[V];  // 1 for the lanes of the last vector that are not in the one before
  for (Index lane = 0; lane < V; ++lane) once[lane] = last + lane < before_last ? T(0) : T(1);
  T sums[kLossesAtOnce];
  for (Index done = begin; done < end; done += kLossesAtOnce) {
    const Index rows = done + kLossesAtOnce < end ? kLossesAtOnce : end - done;
    for (Index i = 0; i < rows; ++i) {
      const Index r = done + i;
      const T* x = logits[r];
      const T target_logit = x[targets[r]];  // read before the gradient may overwrite it
      const Vec<T> last_x = load_partial(x + last, columns, lowest);
      Vec<T> largest = last_x;
      for (Index j = 0; j < before_last; j += V) {
        const Vec<T> v = load(x + j);
        largest = largest < v ? v : largest;
      }
      const T maximum = horizontal_max<T>(largest);
      T* gradient = gradients ? gradients[r] : nullptr;
      const Vec<T> last_e = vector_exp<T>(last_x - maximum);
      Vec<T> sum = last_e * load<T>(once);  // lanes past a short row add 1e-38 each, nothing beside the largest column's 1
      for (Index j = 0; j < before_last; j += V) {
        const Vec<T> e = vector_exp<T>(load(x + j) - maximum);
        if (gradient) store(gradient + j, e);
        sum += e;
      }
      sums[i] = horizontal_sum<T>(sum);
      losses[r] = maximum - target_logit;
      if (!gradient) continue;
      const T factor = scale / sums[i];
      for (Index j = 0; j < before_last; j += V) store<T>(gradient + j, load(gradient + j) * factor);
      store_partial(gradient + last, last_e * factor, columns);
      gradient[targets[r]] = vector_exp<T>(broadcast<T>(target_logit) - maximum)[0] * factor - scale;
    }
    for (Index i = 0; i < rows; ++i)
      losses[done + i] += static_cast<T>(__builtin_log(static_cast<double>(sums[i])));
  }
}

// In double: the squares of float gradients neither overflow nor lose the small ones.
template <typename T>
double sum_of_squares(const T* values, Index count) {
  constexpr int kSums = 16;
  double sums[kSums] = {};
  Index i = 0;
  for (; i + kSums <= count; i += kSums)
    for (int k = 0; k < kSums; ++k) sums[k] += static_cast<double>(values[i + k]) * static_cast<double>(values[i + k]);
  for (int k = 0; i + k < count; ++k) sums[k] += static_cast<double>(values[i + k]) * static_cast<double>(values[i + k]);
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

// --- optimizers: formulas for one element, those of `reference.py`, and the table of them ---
// A formula takes its constants, the scaled gradient, the parameter, and a value of each of its slots.

LSTMFAST_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
LSTMFAST_INLINE double square_root(double x) { return __builtin_sqrt(x); }

template <typename T>
LSTMFAST_INLINE void sgd(const T (&constants)[1], T g, T& p) {
  const auto& [learning_rate] = constants;
  p -= learning_rate * g;
}

template <typename T>
LSTMFAST_INLINE void momentum(const T (&constants)[2], T g, T& p, T& velocity) {
  const auto& [learning_rate, decay] = constants;
  velocity = decay * velocity + g;
  p -= learning_rate * velocity;
}

template <typename T>
LSTMFAST_INLINE void nesterov(const T (&constants)[2], T g, T& p, T& velocity) {
  const auto& [learning_rate, decay] = constants;
  velocity = decay * velocity + g;
  p -= learning_rate * (g + decay * velocity);
}

template <typename T>
LSTMFAST_INLINE void rmsprop(const T (&constants)[4], T g, T& p, T& mean_square) {
  const auto& [learning_rate, decay, gain, epsilon] = constants;
  mean_square = decay * mean_square + gain * g * g;
  p -= learning_rate * g / (square_root(mean_square) + epsilon);
}

// step_size = learning_rate / (1 - beta1^step), second_scale = 1 / (1 - beta2^step). A gain is 1 - beta,
// computed in double: 1 - 0.999f has a relative error of 1.7e-5.
template <typename T>
LSTMFAST_INLINE void adam(const T (&constants)[9], T g, T& p, T& first, T& second) {
  const auto& [learning_rate, step_size, second_scale, beta1, gain1, beta2, gain2, epsilon, weight_decay] = constants;
  first = beta1 * first + gain1 * g;
  second = beta2 * second + gain2 * g * g;
  p -= step_size * first / (square_root(second * second_scale) + epsilon) + learning_rate * weight_decay * p;
}

// The loop around a formula, whose type gives the number of constants and slots. Written plainly: the compiler
// vectorizes it, and without contraction every ISA gives the same bits.
template <auto formula>
struct Update;

template <typename T, int kConstants, typename... Slots, void (*formula)(const T (&)[kConstants], T, T&, Slots&...)>
struct Update<formula> {
  static constexpr int kSlots = sizeof...(Slots);
  static_assert(kConstants <= kMostConstants && kSlots <= kMostSlots, "as kernel_table.h says");

  static void run(T* __restrict p, const T* __restrict g, T* const* slots, Index count, const T* given, T scale) {
    T constants[kConstants];
    for (int k = 0; k < kConstants; ++k) constants[k] = given[k];
    T* __restrict const first = kSlots > 0 ? slots[0] : nullptr;
    T* __restrict const second = kSlots > 1 ? slots[1] : nullptr;
    for (Index i = 0; i < count; ++i) {
      if constexpr (kSlots == 0) formula(constants, scale * g[i], p[i]);
      if constexpr (kSlots == 1) formula(constants, scale * g[i], p[i], first[i]);
      if constexpr (kSlots == 2) formula(constants, scale * g[i], p[i], first[i], second[i]);
    }
  }

  static constexpr OptimizerKernel<T> named(const char* name) { return {name, kConstants, kSlots, run}; }
};

template <typename T>
constexpr OptimizerKernel<T> kOptimizers[] = {
    Update<sgd<T>>::named("sgd"),           Update<momentum<T>>::named("momentum"),
    Update<nesterov<T>>::named("nesterov"), Update<rmsprop<T>>::named("rmsprop"),
    Update<adam<T>>::named("adam"),
};

template <typename T, Vec<T> (*function)(Vec<T>)>
void map(const T* x, T* out, Index count) {
  for (Index i = 0; i < count; i += kLanes<T>)
    store_partial(out + i, function(load_partial(x + i, count - i)), count - i);
}

}  // namespace
}  // namespace lstmfast

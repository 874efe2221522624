// The hot loops of a training step besides the LSTM: softmax cross entropy, the norm of the gradient, parameter updates.
#pragma once

#include "cpu/kernels/activations-inl.h"

namespace lstmfast {
namespace {

// Across the lanes of a vector, halving it: a chain of three steps for eight lanes, not of seven.
template <typename T>
LSTMFAST_INLINE T horizontal_max(Vec<T> v) {
  T lanes[kLanes<T>];
  store<T>(lanes, v);
  for (Index half = kLanes<T> / 2; half > 0; half /= 2)
    for (Index i = 0; i < half; ++i) lanes[i] = lanes[i] < lanes[i + half] ? lanes[i + half] : lanes[i];
  return lanes[0];
}

template <typename T>
LSTMFAST_INLINE T horizontal_sum(Vec<T> v) {
  T lanes[kLanes<T>];
  store<T>(lanes, v);
  for (Index half = kLanes<T> / 2; half > 0; half /= 2)
    for (Index i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

template <typename T>
void softmax_cross_entropy(const T* const* logits, const int* targets, Index begin, Index end, Index columns, T scale,
                           T* losses, T* const* gradients) {
  constexpr Index V = kLanes<T>;
  const T lowest = sizeof(T) == 4 ? T(-3.0e38f) : T(-1.7e308);
  for (Index r = begin; r < end; ++r) {
    const T* x = logits[r];
    const T target_logit = x[targets[r]];  // read before the gradient may overwrite it
    Vec<T> largest = broadcast<T>(lowest);
    for (Index j = 0; j < columns; j += V) {
      const Vec<T> v = load_partial(x + j, columns - j, lowest);
      largest = largest < v ? v : largest;
    }
    const T maximum = horizontal_max<T>(largest);
    T* gradient = gradients ? gradients[r] : nullptr;
    Vec<T> sums{};
    for (Index j = 0; j < columns; j += V) {
      Vec<T> e = vector_exp<T>(load_partial(x + j, columns - j, lowest) - maximum);
      if (gradient) store_partial(gradient + j, e, columns - j);
      if (!is_full<T>(columns - j))
        for (Index lane = columns - j; lane < V; ++lane) e[lane] = T(0);
      sums += e;
    }
    const T sum = horizontal_sum<T>(sums);
    losses[r] = static_cast<T>(__builtin_log(static_cast<double>(sum))) + (maximum - target_logit);
    if (gradient) {
      const T factor = scale / sum;
      for (Index j = 0; j < columns; j += V)
        store_partial(gradient + j, load_partial<T>(gradient + j, columns - j) * factor, columns - j);
      gradient[targets[r]] -= scale;
    }
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

// Plain loops: the compiler turns them into vectors, and without contraction every ISA gives the same bits.
template <typename T>
void sgd(T* __restrict p, const T* __restrict g, Index count, T learning_rate, T scale) {
  for (Index i = 0; i < count; ++i) p[i] -= learning_rate * (scale * g[i]);
}

template <typename T>
void momentum(T* __restrict p, const T* __restrict g, T* __restrict velocity, Index count, T learning_rate, T momentum,
              bool nesterov, T scale) {
  if (nesterov) {
    for (Index i = 0; i < count; ++i) {
      const T gradient = scale * g[i];
      velocity[i] = momentum * velocity[i] + gradient;
      p[i] -= learning_rate * (gradient + momentum * velocity[i]);
    }
  } else {
    for (Index i = 0; i < count; ++i) {
      velocity[i] = momentum * velocity[i] + scale * g[i];
      p[i] -= learning_rate * velocity[i];
    }
  }
}

LSTMFAST_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
LSTMFAST_INLINE double square_root(double x) { return __builtin_sqrt(x); }

template <typename T>
void rmsprop(T* __restrict p, const T* __restrict g, T* __restrict mean_square, Index count, T learning_rate, T decay,
             T epsilon, T scale) {
  for (Index i = 0; i < count; ++i) {
    const T gradient = scale * g[i];
    mean_square[i] = decay * mean_square[i] + (T(1) - decay) * gradient * gradient;
    p[i] -= learning_rate * gradient / (square_root(mean_square[i]) + epsilon);
  }
}

template <typename T>
void adam(T* __restrict p, const T* __restrict g, T* __restrict first, T* __restrict second, Index count,
          const AdamConstants<T>& constants, T scale) {
  const AdamConstants<T> k = constants;
  for (Index i = 0; i < count; ++i) {
    const T gradient = scale * g[i];
    first[i] = k.beta1 * first[i] + (T(1) - k.beta1) * gradient;
    second[i] = k.beta2 * second[i] + (T(1) - k.beta2) * gradient * gradient;
    p[i] -= k.step_size * first[i] / (square_root(second[i] * k.second_scale) + k.epsilon) +
            k.learning_rate * k.weight_decay * p[i];
  }
}

template <typename T, Vec<T> (*function)(Vec<T>)>
void map(const T* x, T* out, Index count) {
  for (Index i = 0; i < count; i += kLanes<T>)
    store_partial(out + i, function(load_partial(x + i, count - i)), count - i);
}

}  // namespace
}  // namespace lstmfast

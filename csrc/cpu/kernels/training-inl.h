// The hot loops of a training step besides the LSTM: softmax cross entropy, the norm of the gradient, parameter updates.
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
  // A row's last vector ends with the row, and begins inside the one before where the columns do not fill it: a part of a
  // vector that has just been stored cannot be loaded again before the store is done, a whole one can.
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

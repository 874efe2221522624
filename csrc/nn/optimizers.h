// Parameter updates and the gradient's norm over one contiguous buffer, split over threads in fixed chunks: the same bits
// for any number of threads. The formulas are those of `reference.py`.
#pragma once

#include "core/inline.h"

namespace lstmfast {

template <typename T>
double global_norm(const T* values, Index count);

template <typename T>
void sgd_update(T* parameters, const T* gradients, Index count, double learning_rate, double gradient_scale);

template <typename T>
void momentum_update(T* parameters, const T* gradients, T* velocity, Index count, double learning_rate,
                     double momentum, bool nesterov, double gradient_scale);

template <typename T>
void rmsprop_update(T* parameters, const T* gradients, T* mean_square, Index count, double learning_rate, double decay,
                    double epsilon, double gradient_scale);

struct AdamSettings {
  double learning_rate, beta1, beta2, epsilon, weight_decay;
};
// `step` counts from 1.
template <typename T>
void adam_update(T* parameters, const T* gradients, T* first_moment, T* second_moment, Index count, Index step,
                 const AdamSettings& settings, double gradient_scale);

}  // namespace lstmfast

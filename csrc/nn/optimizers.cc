// See optimizers.h.
#include "nn/optimizers.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace lstmfast {
namespace {

constexpr Index kChunk = 8192;  // elements; small enough that every thread of a small model gets some

// body(begin, count, chunk) for every chunk of [0, count).
template <typename Body>
void for_each_chunk(Index count, const Body& body) {
  const Index chunks = ceil_div(count, kChunk);
  constexpr double kMultiplyAddsPerElement = 4;
  run_parallel(threads_for_work(static_cast<double>(count) * kMultiplyAddsPerElement), [&](int part, int parts) {
    const Range mine = split(chunks, part, parts);
    for (Index chunk = mine.begin; chunk < mine.end; ++chunk)
      body(chunk * kChunk, std::min(kChunk, count - chunk * kChunk), chunk);
  });
}

}  // namespace

template <typename T>
double global_norm(const T* values, Index count) {
  const KernelTable<T>& k = kernels<T>();
  std::vector<double> sums(static_cast<std::size_t>(ceil_div(count, kChunk)));
  for_each_chunk(count, [&](Index begin, Index n, Index chunk) { sums[chunk] = k.sum_of_squares(values + begin, n); });
  double total = 0;
  for (const double sum : sums) total += sum;
  return std::sqrt(total);
}

template <typename T>
void sgd_update(T* parameters, const T* gradients, Index count, double learning_rate, double gradient_scale) {
  const KernelTable<T>& k = kernels<T>();
  for_each_chunk(count, [&](Index i, Index n, Index) {
    k.sgd(parameters + i, gradients + i, n, static_cast<T>(learning_rate), static_cast<T>(gradient_scale));
  });
}

template <typename T>
void momentum_update(T* parameters, const T* gradients, T* velocity, Index count, double learning_rate,
                     double momentum, bool nesterov, double gradient_scale) {
  const KernelTable<T>& k = kernels<T>();
  for_each_chunk(count, [&](Index i, Index n, Index) {
    k.momentum(parameters + i, gradients + i, velocity + i, n, static_cast<T>(learning_rate),
               static_cast<T>(momentum), nesterov, static_cast<T>(gradient_scale));
  });
}

template <typename T>
void rmsprop_update(T* parameters, const T* gradients, T* mean_square, Index count, double learning_rate, double decay,
                    double epsilon, double gradient_scale) {
  const KernelTable<T>& k = kernels<T>();
  for_each_chunk(count, [&](Index i, Index n, Index) {
    k.rmsprop(parameters + i, gradients + i, mean_square + i, n, static_cast<T>(learning_rate), static_cast<T>(decay),
              static_cast<T>(epsilon), static_cast<T>(gradient_scale));
  });
}

template <typename T>
void adam_update(T* parameters, const T* gradients, T* first_moment, T* second_moment, Index count, Index step,
                 const AdamSettings& settings, double gradient_scale) {
  const KernelTable<T>& k = kernels<T>();
  const double steps = static_cast<double>(step);
  const AdamConstants<T> constants{static_cast<T>(settings.learning_rate),
                                   static_cast<T>(settings.learning_rate / (1 - std::pow(settings.beta1, steps))),
                                   static_cast<T>(1 / (1 - std::pow(settings.beta2, steps))),
                                   static_cast<T>(settings.beta1),
                                   static_cast<T>(settings.beta2),
                                   static_cast<T>(settings.epsilon),
                                   static_cast<T>(settings.weight_decay)};
  for_each_chunk(count, [&](Index i, Index n, Index) {
    k.adam(parameters + i, gradients + i, first_moment + i, second_moment + i, n, constants,
           static_cast<T>(gradient_scale));
  });
}

#define LSTMFAST_INSTANTIATE(T)                                                                         \
  template double global_norm(const T*, Index);                                                         \
  template void sgd_update(T*, const T*, Index, double, double);                                        \
  template void momentum_update(T*, const T*, T*, Index, double, double, bool, double);                 \
  template void rmsprop_update(T*, const T*, T*, Index, double, double, double, double);                \
  template void adam_update(T*, const T*, T*, T*, Index, Index, const AdamSettings&, double);
LSTMFAST_INSTANTIATE(float)
LSTMFAST_INSTANTIATE(double)
#undef LSTMFAST_INSTANTIATE

}  // namespace lstmfast

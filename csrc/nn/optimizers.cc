// Divides a buffer in chunks among threads; the kernels have the loops.
#include "nn/optimizers.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace lstmfast {
namespace {

constexpr Index kChunk = 8192;  // elements; small enough to give every thread of a small model some

// body(begin, count, chunk) for every chunk of [0, count).
template <typename Body>
void for_each_chunk(Index count, const Body& body) {
  const Index chunks = ceil_div(count, kChunk);
  constexpr double kMultiplyAddsPerElement = 4;
  run_parallel(threads_for_work(static_cast<double>(count) * kMultiplyAddsPerElement), [&](int part, int parts) {
    const Range mine = share(chunks, part, parts);
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
const OptimizerKernel<T>& optimizer_named(const std::string& name) {
  const KernelTable<T>& k = kernels<T>();
  std::string names;
  for (int i = 0; i < k.optimizer_count; ++i) {
    if (name == k.optimizers[i].name) return k.optimizers[i];
    names += (i > 0 ? ", " : "") + std::string(k.optimizers[i].name);
  }
  throw std::invalid_argument("optimizer must be one of " + names + ", got " + name);
}

template <typename T>
void optimizer_update(const OptimizerKernel<T>& optimizer, T* parameters, const T* gradients, T* const* slots,
                      Index count, const T* constants, T scale) {
  for_each_chunk(count, [&](Index i, Index n, Index) {
    T* mine[kMostSlots] = {};
    for (int slot = 0; slot < optimizer.slots; ++slot) mine[slot] = slots[slot] + i;
    optimizer.update(parameters + i, gradients + i, mine, n, constants, scale);
  });
}

#define LSTMFAST_INSTANTIATE(T)                                                                                \
  template double global_norm(const T*, Index);                                                                \
  template const OptimizerKernel<T>& optimizer_named<T>(const std::string&);                                   \
  template void optimizer_update(const OptimizerKernel<T>&, T*, const T*, T* const*, Index, const T*, T);
LSTMFAST_INSTANTIATE(float)
LSTMFAST_INSTANTIATE(double)
#undef LSTMFAST_INSTANTIATE

}  // namespace lstmfast

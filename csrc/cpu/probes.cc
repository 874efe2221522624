// The clock around the probe kernels. The best of many short runs counts: other load on the machine can only make one
// slower.
#include "cpu/probes.h"

#include <algorithm>
#include <chrono>

#include "core/aligned_buffer.h"
#include "cpu/dispatch.h"

namespace lstmfast {
namespace {

constexpr double kSeconds = 0.03;
constexpr int kMinRuns = 3;

// The most work per second over all calls of `run`, which returns the amount of work.
template <typename Run>
double best_rate(const Run& run) {
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point begin) {
    return std::chrono::duration<double>(Clock::now() - begin).count();
  };
  double best = 0;
  const auto first = Clock::now();
  for (int runs = 0; runs < kMinRuns || seconds_since(first) < kSeconds; ++runs) {
    const auto begin = Clock::now();
    const double work = run();
    best = std::max(best, work / std::max(seconds_since(begin), 1e-9));
  }
  return best;
}

}  // namespace

template <typename T>
double measured_flops() {
  T sum;
  return best_rate([&] { return static_cast<double>(kernels<T>().fma_probe(100000, &sum)); });
}

template double measured_flops<float>();
template double measured_flops<double>();

double measured_read_bandwidth(Index bytes) {
  constexpr Index kBytesPerRun = 1 << 20;  // enough to make the clock's cost negligible
  const Index count = bytes / static_cast<Index>(sizeof(float));
  AlignedBuffer<float> buffer;
  std::fill_n(buffer.resize(count), count, 1.0f);  // also makes the system provide the pages
  const Index passes = std::max<Index>(kBytesPerRun / bytes, 1);
  volatile float sum = 0;  // keeps the reads from being optimized away
  return best_rate([&] {
    for (Index pass = 0; pass < passes; ++pass) sum = kernels<float>().read_probe(buffer.data(), count);
    return static_cast<double>(passes * bytes);
  });
}

}  // namespace lstmfast

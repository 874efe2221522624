// Our own thread pool. Not OpenMP: it hangs after fork and fights the threads of NumPy's BLAS.
// Workers spin briefly for the next region, then sleep. A child process after fork starts with a fresh pool.
// Callers divide work into parts whose results do not depend on the number of parts.
#pragma once

#include <atomic>
#include <type_traits>

#include "core/inline.h"

namespace lstmfast {

int num_threads();          // LSTMFAST_NUM_THREADS, then OMP_NUM_THREADS, then the cores this process may use
void set_num_threads(int);  // at least 1; throws std::invalid_argument

// Where threads of one region wait for each other between time steps. Spins, and yields if cores are scarce.
class Barrier {
 public:
  void wait(int parties);

 private:
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> generation_{0};
};

// One piece of [0, count): the `part`-th of `parts`, as equal as possible.
inline Range share(Index count, int part, int parts) { return {count * part / parts, count * (part + 1) / parts}; }

namespace detail {
using PartFunction = void (*)(const void* context, int part, int parts);
void run_parts(int parts, PartFunction function, const void* context);
}  // namespace detail

// Calls body(part, parts) once for every part in [0, parts), all at the same time, so that parts may wait for each
// other at a Barrier. parts <= wanted: fewer if there are fewer threads, 1 if the pool is busy with another caller.
// Bodies must not throw. Every part uses the caller's rounding and denormal modes: threads do not change bits.
template <typename Body>
void run_parallel(int wanted, const Body& body) {
  detail::run_parts(
      wanted,
      [](const void* context, int part, int parts) { (*static_cast<const Body*>(context))(part, parts); },
      &body);
}

// How many threads are worth waking for that many multiply-adds: a region costs about 5 microseconds.
int threads_for_work(double multiply_adds);

}  // namespace lstmfast

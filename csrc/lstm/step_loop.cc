// The number of parts that steps are divided into, by rows or by units.
#include "lstm/step_loop.h"

#include <algorithm>

namespace lstmfast {

Division divide_steps(const SequencePlan& plan, double multiply_adds_per_step, Index tile_rows) {
  const int threads = threads_for_work(multiply_adds_per_step * static_cast<double>(plan.steps()));
  // Every thread should have a full register tile of rows.
  if (plan.batch >= threads * tile_rows) return {threads, false};
  // A barrier costs 1 to 2 microseconds a step: each thread must have several times that to do.
  constexpr double kWorkPerBarrier = 4.0e5;
  const double by_units = std::min<double>(threads, multiply_adds_per_step / kWorkPerBarrier);
  if (by_units >= 2) return {static_cast<int>(by_units), true};
  const Index tiles = ceil_div(std::max<Index>(plan.batch, 1), tile_rows);
  return {static_cast<int>(std::min<Index>(threads, tiles)), false};
}

}  // namespace lstmfast

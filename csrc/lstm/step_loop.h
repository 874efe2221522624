// The loop over the steps of a sequence, and how they are divided among threads.
// Knows the plan and the pool of threads; knows nothing of what a step computes.
#pragma once

#include "cpu/parallel.h"
#include "lstm/sequence_plan.h"

namespace lstmfast {

// Batch rows dealt to threads need no waiting; few rows of a large layer are divided by units, with a barrier per step.
struct Division {
  int threads;
  bool by_units;
};
Division divide_steps(const SequencePlan& plan, double multiply_adds_per_step, Index tile_rows);

// Phases of a step follow each other: body(step, updates, blocks, part) for the row updates and the blocks of units
// assigned to one thread. A phase may read what all threads wrote in the one before. One without blocks is skipped.
template <typename Body>
struct Phase {
  Index blocks;
  Body body;
};
template <typename Body>
Phase(Index, Body) -> Phase<Body>;

enum class Order { kForward, kBackward };

// All phases of all these steps in `order`.
template <typename... Phases>
void for_each_step(const SequencePlan& plan, Order order, Range steps, Division how, const Phases&... phases) {
  Barrier barrier;
  run_parallel(how.threads, [&](int part, int parts) {
    const Index batch_begin = how.by_units ? 0 : plan.batch_begin_of_part(part, parts);
    const Index batch_end = how.by_units ? plan.batch : plan.batch_begin_of_part(part + 1, parts);
    for (Index i = 0; i < steps.end - steps.begin; ++i) {
      const Index step = order == Order::kForward ? steps.begin + i : steps.end - 1 - i;
      const Range updates = plan.updates_of(step, batch_begin, batch_end);
      const auto run = [&](const auto& phase) {
        if (phase.blocks == 0) return;
        phase.body(step, updates, how.by_units ? share(phase.blocks, part, parts) : Range{0, phase.blocks}, part);
        if (how.by_units) barrier.wait(parts);
      };
      (run(phases), ...);
    }
  });
}

}  // namespace lstmfast

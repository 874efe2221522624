// Which row is updated at which step: lengths, resets and direction turned into one flat list of row updates, so that
// the kernels and the loops over time need to know none of the three.
// Updates are ordered by step, then by batch row; update r owns row r of every packed workspace. The order, and with it
// every sum over updates, depends only on the arguments.
#pragma once

#include <vector>

#include "core/inline.h"

namespace lstmfast {

struct RowUpdate {
  Index time, batch;  // which input row it reads and which output row it writes
  Index previous;     // the update of the same batch row one step earlier; -1 at its first
  Index next;         // one step later; -1 at its last
  bool reset;         // the state is zeroed before this update
};

struct SequencePlan {
  Index time_steps = 0, batch = 0;
  std::vector<RowUpdate> updates;
  std::vector<Index> step_begin;    // [steps + 1] into updates; steps <= time_steps
  std::vector<Index> last_of_row;   // [batch] the last update of each batch row; -1 if its length is 0
  std::vector<Index> first_of_row;  // [batch] the first one; -1 likewise

  Index steps() const { return static_cast<Index>(step_begin.size()) - 1; }
  Index count() const { return static_cast<Index>(updates.size()); }
  bool is_ragged() const { return count() != time_steps * batch; }

  // lengths [batch], each in [0, time_steps], or null if all are time_steps; resets [time_steps, batch] or null.
  // If `reverse`, each row runs from its own last step down to step 0. A plan without lengths and resets is kept for
  // the next call of the same size.
  void build(Index time_steps, Index batch, const Index* lengths, const bool* resets, bool reverse);

  // The updates of `step` that belong to batch rows [batch_begin, batch_end), as a range of updates.
  Range updates_of(Index step, Index batch_begin, Index batch_end) const;

  // The first batch row of `part` when whole rows are dealt to `parts` threads with about equal numbers of updates.
  Index batch_begin_of_part(int part, int parts) const;

 private:
  std::vector<Index> updates_before_row_;  // [batch + 1] number of updates of the batch rows before
  bool is_plain_ = false, reverse_ = false;
};

}  // namespace lstmfast

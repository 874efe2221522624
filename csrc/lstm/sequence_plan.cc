// One walk over all steps and rows, which links every update to the earlier and the next one of its row.
#include "lstm/sequence_plan.h"

#include <algorithm>

namespace lstmfast {

void SequencePlan::build(Index time_steps_wanted, Index batch_wanted, const Index* lengths, const bool* resets,
                         bool reverse) {
  const bool plain = lengths == nullptr && resets == nullptr;
  if (plain && is_plain_ && time_steps == time_steps_wanted && batch == batch_wanted && reverse_ == reverse) return;
  is_plain_ = false;  // until the plan is whole
  time_steps = time_steps_wanted;
  batch = batch_wanted;
  updates.clear();
  updates.reserve(static_cast<std::size_t>(time_steps * batch));
  step_begin.assign(1, 0);
  first_of_row.assign(static_cast<std::size_t>(batch), -1);
  last_of_row.assign(static_cast<std::size_t>(batch), -1);
  for (Index step = 0; step < time_steps; ++step) {
    for (Index b = 0; b < batch; ++b) {
      const Index length = lengths ? lengths[b] : time_steps;
      if (step >= length) continue;
      const Index time = reverse ? length - 1 - step : step;
      const Index update = count(), previous = last_of_row[b];
      updates.push_back({time, b, previous, -1, resets != nullptr && resets[time * batch + b]});
      if (previous >= 0)
        updates[previous].next = update;
      else
        first_of_row[b] = update;
      last_of_row[b] = update;
    }
    if (count() == step_begin.back()) break;  // every row has ended
    step_begin.push_back(count());
  }
  updates_before_row_.assign(static_cast<std::size_t>(batch) + 1, 0);
  for (Index b = 0; b < batch; ++b)
    updates_before_row_[b + 1] = updates_before_row_[b] + (lengths ? lengths[b] : time_steps);
  is_plain_ = plain;
  reverse_ = reverse;
}

Range SequencePlan::updates_of(Index step, Index batch_begin, Index batch_end) const {
  const Index begin = step_begin[step], end = step_begin[step + 1];
  if (end - begin == batch) return {begin + batch_begin, begin + batch_end};
  const auto before = [](const RowUpdate& update, Index b) { return update.batch < b; };
  const auto first = updates.begin() + begin, last = updates.begin() + end;
  return {std::lower_bound(first, last, batch_begin, before) - updates.begin(),
          std::lower_bound(first, last, batch_end, before) - updates.begin()};
}

Index SequencePlan::batch_begin_of_part(int part, int parts) const {
  if (!is_ragged()) return batch * part / parts;
  const Index updates_before = count() * part / parts;
  return std::lower_bound(updates_before_row_.begin(), updates_before_row_.end() - 1, updates_before) -
         updates_before_row_.begin();
}

}  // namespace lstmfast

// Which counters belong to which factor; `reference.py` has the same.
#include "lstm/masks.h"

#include <algorithm>

namespace lstmfast {

template <typename T>
MaskArgs<T> mask_of(const Noise& noise, MaskPurpose purpose, double rate) {
  constexpr unsigned kPurposes = 4;
  constexpr double kWords = 4294967296.0;  // 2^32
  const bool keeps_state = purpose == MaskPurpose::kZoneoutOfH || purpose == MaskPurpose::kZoneoutOfC;
  MaskArgs<T> args{};
  args.key[0] = static_cast<unsigned>(noise.seed);
  args.key[1] = static_cast<unsigned>(noise.seed >> 32);
  args.stream = kPurposes * noise.layer + static_cast<unsigned>(purpose);
  args.threshold = static_cast<unsigned>(rate * kWords);
  args.below = keeps_state ? T(1) : T(0);
  args.above = keeps_state ? T(0) : static_cast<T>(1 / (1 - rate));
  return args;
}

template <typename T>
void Mask<T>::begin(const KernelTable<T>& k, const Noise& noise, MaskPurpose purpose, double rate,
                    bool one_for_all_steps, Index batch, Index units) {
  const bool is_zoneout = purpose != MaskPurpose::kRecurrentDropout;
  is_on_ = rate > 0 && (noise.is_on || is_zoneout);
  differs_by_step_ = is_on_ && noise.is_on && !one_for_all_steps;
  if (!is_on_) return;
  k_ = &k;
  units_ = units;
  first_step_ = noise.first_step;
  T* factors = factors_.resize(batch * units);
  if (!noise.is_on) std::fill_n(factors, batch * units, static_cast<T>(rate));
  args_ = mask_of<T>(noise, purpose, rate);
  args_.factors = factors;
  args_.stride = units;
  if (noise.is_on && one_for_all_steps)
    fill({0, batch}, {0, units}, [](Index b) { return MaskRow{static_cast<unsigned>(b), 0}; });
}

template <typename T>
void Mask<T>::draw(const SequencePlan& plan, Range updates, Range units) {
  if (!differs_by_step_) return;
  fill(updates, units, [&](Index r) {
    const RowUpdate& update = plan.updates[r];
    return MaskRow{static_cast<unsigned>(update.batch), static_cast<unsigned>(first_step_ + update.time)};
  });
}

template <typename T>
template <typename NumberOf>
void Mask<T>::fill(Range rows, Range units, const NumberOf& number_of) {
  constexpr Index kAtOnce = 64;
  MaskRow numbers[kAtOnce];
  MaskArgs<T> args = args_;
  args.rows = numbers;
  args.unit_begin = units.begin;
  args.unit_end = units.end;
  for (Index begin = rows.begin; begin < rows.end; begin += kAtOnce) {
    args.row_count = std::min(kAtOnce, rows.end - begin);
    for (Index i = 0; i < args.row_count; ++i) numbers[i] = number_of(begin + i);
    k_->fill_mask(args);
  }
}

template <typename T>
void Masks<T>::begin(const KernelTable<T>& k, const Cell<T>& cell, const Noise& noise, Index batch, Index hidden,
                     Index output) {
  const double dropout = cell.recurrent_dropout;
  const bool of_sequence = !cell.drops_per_step;
  state.begin(k, noise, MaskPurpose::kRecurrentDropout, cell.drops_candidate ? 0 : dropout, of_sequence, batch, output);
  candidate.begin(k, noise, MaskPurpose::kRecurrentDropout, cell.drops_candidate ? dropout : 0, of_sequence, batch,
                  hidden);
  zoneout_of_h.begin(k, noise, MaskPurpose::kZoneoutOfH, cell.zoneout_of_h, false, batch, output);
  zoneout_of_c.begin(k, noise, MaskPurpose::kZoneoutOfC, cell.zoneout_of_c, false, batch, hidden);
}

template MaskArgs<float> mask_of(const Noise&, MaskPurpose, double);
template MaskArgs<double> mask_of(const Noise&, MaskPurpose, double);
template class Mask<float>;
template class Mask<double>;
template struct Masks<float>;
template struct Masks<double>;

}  // namespace lstmfast

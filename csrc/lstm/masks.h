// The random factors of a pass: dropout of h or g, and zoneout of h and c. Never stored: a row's factors are computed
// for one step, or once for a sequence, forward and backward from the same counters.
#pragma once

#include "core/aligned_buffer.h"
#include "lstm/sequence_args.h"
#include "lstm/sequence_plan.h"

namespace lstmfast {

enum class MaskPurpose : unsigned { kRecurrentDropout = 0, kZoneoutOfH = 1, kZoneoutOfC = 2, kWeightDropout = 3 };

// The factors of dropout, or of zoneout (1: the state is kept), except for its row, step, units and memory.
template <typename T>
MaskArgs<T> mask_of(const Noise& noise, MaskPurpose purpose, double rate);

// One factor for each unit of each batch row.
template <typename T>
class Mask {
 public:
  // In inference a zoneout's factors are its rate. `one_for_all_steps`: drawn here.
  void begin(const KernelTable<T>& k, const Noise& noise, MaskPurpose purpose, double rate, bool one_for_all_steps,
             Index batch, Index units);
  explicit operator bool() const { return is_on_; }
  // Draws those of these updates, if steps differ.
  void draw(const SequencePlan& plan, Range updates, Range units);
  const T* row(Index batch) const { return factors_.data() + batch * units_; }

  void release() { factors_.release(); }
  std::size_t size_bytes() const { return factors_.size_bytes(); }

 private:
  // For each of [begin, end): what number_of(i) says.
  template <typename NumberOf>
  void fill(Range rows, Range units, const NumberOf& number_of);

  const KernelTable<T>* k_ = nullptr;
  MaskArgs<T> args_{};
  Index units_ = 0, first_step_ = 0;
  bool is_on_ = false, differs_by_step_ = false;  // the second only with the first
  AlignedBuffer<T> factors_;  // [batch, units]
};

// All of a pass.
template <typename T>
struct Masks {
  Mask<T> state, candidate, zoneout_of_h, zoneout_of_c;  // the first two are of dropout

  void begin(const KernelTable<T>& k, const Cell<T>& cell, const Noise& noise, Index batch, Index hidden, Index output);
  bool any() const { return state || candidate || zoneout_of_h || zoneout_of_c; }
  bool any_in_cells() const { return candidate || zoneout_of_c; }
  void draw_for_cells(const SequencePlan& plan, Range updates, Range units) {
    candidate.draw(plan, updates, units);
    zoneout_of_c.draw(plan, updates, units);
  }

  template <typename Body>
  void for_each(const Body& body) {
    for (Mask<T>* mask : {&state, &candidate, &zoneout_of_h, &zoneout_of_c}) body(*mask);
  }
};

}  // namespace lstmfast

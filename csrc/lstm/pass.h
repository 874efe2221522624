// What a forward pass and its backward one share: arguments, the plan, products in use, and pointers to every row.
// Computes nothing; sequence.h says what the passes do.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "core/aligned_buffer.h"
#include "cpu/panel_sizes.h"
#include "lstm/loaded_weights.h"
#include "lstm/masks.h"
#include "lstm/paths.h"
#include "lstm/sequence_args.h"
#include "lstm/sequence_plan.h"
#include "lstm/step_loop.h"

namespace lstmfast {

// Where each update reads and writes: vectors of [updates].
template <typename T>
struct RowPointers {
  std::vector<int> ids;
  std::vector<const T*> init, x, h_prev, c_prev;
  std::vector<T*> h, c, m;  // m: h before its projection
  std::vector<const T*> candidate_masks, kept_cells;  // empty without such a mask
};

// Blocks of normalised products are one row further apart than they must be. A row is read from all of them, and at a
// multiple of 4 KB its parts would share one set of L1: 640 rows of 64 units took 1.25 times as long (AVX2).
inline Index rows_of_normals(Index updates) { return updates + 1; }

// Values that layer normalisation keeps: normalised products, a scale for each of their rows or each gate of one, and
// the mean and scale of each row of c.
template <typename T>
Index normals_size(const KernelTable<T>& k, Index updates, Index hidden, LayerNorm norm);

template <typename T>
struct Pass {
  explicit Pass(const Cell<T>& cell) : weights(cell) {}

  // Everything but reading the weights; `reverse` as in SequencePlan.
  void begin(const SequenceForwardArgs<T>& args, bool reverse);
  void use(const Choice& choice);  // of products
  CallShape shape() const;
  void read_ids();
  void point_rows();

  // Calls body for memory that a backward pass needs.
  template <typename Body>
  void for_each_kept(const Body& body) {
    body(saved);
    body(zeros);
    masks.for_each(body);
    weights.for_each_copy(body);
  }

  Index updates() const { return plan.count(); }
  Index gate_width() const { return kGateCount * k->vector_length; }
  // bfloat16 weights are the one part that "medium" multiplies.
  MatmulPrecision precision() const {
    return weights.given().format == WeightFormat::kBFloat16 ? MatmulPrecision::kMedium : args.precision;
  }
  // Whether no other call will use the weights that this one packs.
  bool serves_one_call() const {
    return args.keep_for_backward || weights.given().serve_one_call || weights.drops_weights();
  }
  bool has_input_product() const { return weights.input_rows() > 0; }
  double multiply_adds(Index rows, Index depth) const {
    return static_cast<double>(rows) * static_cast<double>(depth) *
           static_cast<double>(kGateCount * weights.given().hidden_size);
  }
  double projecting_adds(Index rows) const {
    const SequenceWeights<T>& w = weights.given();
    return w.has_projection() ? static_cast<double>(rows * w.hidden_size * w.output_size) : 0.0;
  }
  Division division(double multiply_adds_per_step) const {
    if (choice.path == Path::kUnpacked) return {1, false};
    const Division how = divide_steps(plan, multiply_adds_per_step, k->tile_rows);
    // A normalisation needs whole rows.
    if (weights.is_normalized()) return {static_cast<int>(std::min<Index>(how.threads, plan.batch)), false};
    return how;
  }
  const CellVariant<T>* variant() const {
    const bool has_hooks = weights.variant().has_hooks() || masks.any_in_cells() || weights.is_normalized();
    return has_hooks ? &weights.variant() : nullptr;
  }
  CellMasks<T> cell_masks() const {
    return {masks.candidate ? rows.candidate_masks.data() : nullptr,
            masks.zoneout_of_c ? rows.kept_cells.data() : nullptr};
  }
  // Whether backward is the plain cell's, in which the gradient of h goes from product to gates in registers.
  bool is_plain() const { return weights.is_plain() && !masks.any() && !(learns_initial_state() && args.resets); }
  bool learns_initial_state() const { return weights.given().initial_h != nullptr; }
  // What a row begins with that has no earlier step.
  const T* initial_h() const { return learns_initial_state() ? weights.given().initial_h : zeros.data(); }
  const T* initial_c() const { return learns_initial_state() ? weights.given().initial_c : zeros.data(); }

  SequenceForwardArgs<T> args{};
  const KernelTable<T>* k = nullptr;
  SequencePlan plan;
  LoadedWeights<T> weights;
  Masks<T> masks;
  ProductsByPath<T> paths;
  Choice choice{};
  Products<T>* products = nullptr;  // in use
  RowPointers<T> rows;
  AlignedBuffer<T> saved, zeros;
  T *gates = nullptr, *cells = nullptr, *m = nullptr;  // in args.saved or saved
  T* normals = nullptr;  // likewise, what layer normalisation keeps for backward: layer_norm.h
};

}  // namespace lstmfast

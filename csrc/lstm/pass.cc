// How a pass begins: memory for what is kept, and a pointer for every row.
#include "lstm/pass.h"

#include <algorithm>

#include "cpu/dispatch.h"

namespace lstmfast {

template <typename T>
Index normals_size(const KernelTable<T>& k, Index updates, Index hidden, LayerNorm norm) {
  if (norm == LayerNorm::kNone) return 0;
  const Index products = norm == LayerNorm::kProducts ? 2 : 1, scales = norm == LayerNorm::kProducts ? 2 : kGateCount;
  return rows_of_normals(updates) * products * PanelSizes<T>(k).gate_depth(hidden) + updates * (scales + 2);
}

template <typename T>
void Pass<T>::begin(const SequenceForwardArgs<T>& given, bool reverse) {
  args = given;
  k = &kernels<T>();
  weights.begin(*k, static_cast<bool>(args.ids), args.noise);
  masks.begin(*k, weights.cell(), args.noise, args.batch, weights.given().hidden_size, weights.given().output_size);
  plan.build(args.time_steps, args.batch, args.lengths, args.resets, reverse);
  use(choose_path(*k, shape()));
  const SequenceWeights<T>& w = weights.given();
  const Index gate_size = updates() * PanelSizes<T>(*k).gate_depth(w.hidden_size);
  T* kept = args.saved;
  if (!kept) {
    // Without a backward pass, only requested gates and the current m of every row need memory.
    const Index of_update = (w.has_projection() ? 2 : 1) * w.hidden_size;
    const Index of_normals = normals_size(*k, updates(), w.hidden_size, weights.cell().layer_norm);
    const Index size = args.keep_for_backward ? gate_size + updates() * of_update + of_normals
                       : args.gates           ? gate_size
                                              : 0;
    const Index current = args.keep_for_backward || !w.has_projection() ? 0 : plan.batch * w.hidden_size;
    kept = saved.resize(size + current);
    m = kept + size;
  }
  gates = kept;
  cells = kept + gate_size;
  if (args.keep_for_backward) {
    m = cells + updates() * w.hidden_size;
    normals = m + (w.has_projection() ? updates() * w.hidden_size : 0);
  }
  const Index longest = std::max(w.hidden_size, w.output_size);
  std::fill_n(zeros.resize(longest), longest, T(0));
}

template <typename T>
void Pass<T>::use(const Choice& wanted) {
  choice = wanted;
  products = &paths.prepare(choice.path, *k, precision());
}

template <typename T>
CallShape Pass<T>::shape() const {
  const SequenceWeights<T>& w = weights.given();
  const bool once = serves_one_call();
  const Index rows_unpacked = once ? kRowsUnpacked : w.are_frozen ? 0 : kRowsUnlooked;
  return {plan.steps(), plan.batch, updates(), weights.input_rows(), w.hidden_size, is_plain() && !weights.drops_weights(),
          w.has_projection(), rows_unpacked,
          precision(), w.format, once, args.keep_for_backward};
}

template <typename T>
void Pass<T>::read_ids() {
  rows.ids.resize(plan.updates.size());
  for (Index r = 0; r < updates(); ++r) rows.ids[r] = *args.ids.row(plan.updates[r].time, plan.updates[r].batch);
}

template <typename T>
void Pass<T>::point_rows() {
  const Index hidden = weights.given().hidden_size;
  const StartingValues<T>& starting_values = weights.starting_values();
  const auto count = static_cast<std::size_t>(updates());
  for (auto* pointers : {&rows.init, &rows.x, &rows.h_prev, &rows.c_prev}) pointers->resize(count);
  for (auto* pointers : {&rows.h, &rows.c}) pointers->resize(count);
  if (weights.projection()) {
    rows.m.resize(count);
    for (Index r = 0; r < updates(); ++r) rows.m[r] = m + (args.keep_for_backward ? r : plan.updates[r].batch) * hidden;
  }
  rows.candidate_masks.resize(masks.candidate ? count : 0);
  rows.kept_cells.resize(masks.zoneout_of_c ? count : 0);
  for (Index r = 0; r < updates(); ++r) {
    const RowUpdate& update = plan.updates[r];
    if (masks.candidate) rows.candidate_masks[r] = masks.candidate.row(update.batch);
    if (masks.zoneout_of_c) rows.kept_cells[r] = masks.zoneout_of_c.row(update.batch);
    rows.init[r] = args.ids ? starting_values.of_id(r, rows.ids[r]) : starting_values.of_all();
    rows.x[r] = args.ids ? nullptr : args.x.row(update.time, update.batch);
    rows.h[r] = args.h.row(update.time, update.batch);
    rows.c[r] = args.cells               ? args.cells.row(update.time, update.batch)
                : args.keep_for_backward ? cells + r * hidden
                                         : args.c_n.row(update.batch);
    if (update.reset) {
      rows.h_prev[r] = initial_h();
      rows.c_prev[r] = initial_c();
    } else if (update.previous >= 0) {
      rows.h_prev[r] = rows.h[update.previous];
      rows.c_prev[r] = rows.c[update.previous];
    } else {
      rows.h_prev[r] = args.h0 ? args.h0.row(update.batch) : initial_h();
      rows.c_prev[r] = args.c0 ? args.c0.row(update.batch) : initial_c();
    }
  }
}

template Index normals_size(const KernelTable<float>&, Index, Index, LayerNorm);
template Index normals_size(const KernelTable<double>&, Index, Index, LayerNorm);
template struct Pass<float>;
template struct Pass<double>;

}  // namespace lstmfast

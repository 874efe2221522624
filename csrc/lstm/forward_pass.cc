// Groups of steps whose pre-activations fit the cache, and the tiles of each step divided among threads.
#include "lstm/forward_pass.h"

#include <algorithm>
#include <atomic>

namespace lstmfast {

// Pre-activations are kept where the gates will be, or in a buffer for some steps: 512 KB, to leave most of L2 to the
// weights, but at least 128 rows, to read the input's weights seldom.
template <typename T>
Index ForwardPass<T>::steps_at_once(bool keeps_preactivations) const {
  const Index steps = pass_.plan.steps();
  if (!keeps_preactivations || keeps_gates()) return steps;
  const Index row_bytes = PanelSizes<T>(*pass_.k).gate_depth(pass_.weights.given().hidden_size) * Index{sizeof(T)};
  const Index rows = std::max<Index>(128, (Index{512} << 10) / row_bytes);
  return std::min(steps, ceil_div(rows, std::max<Index>(pass_.plan.batch, 1)));
}

template <typename T>
StepForwardArgs<T> ForwardPass<T>::step_args() {
  const SequenceWeights<T>& w = pass_.weights.given();
  const RowPointers<T>& rows = pass_.rows;
  const bool hoists = pass_.choice.hoists_input;
  StepForwardArgs<T> step{};
  step.hidden_size = w.hidden_size;
  step.init = hoists ? z_rows_.data() : rows.init.data();
  step.init_block_stride = pass_.args.ids ? pass_.weights.starting_values().block_stride() : pass_.gate_width();
  step.x = rows.x.data();
  step.input_size = hoists ? 0 : pass_.weights.input_rows();
  step.h_prev = rows.h_prev.data();
  if (pass_.masks.state) {
    T* dropped = dropped_.resize(pass_.plan.batch * w.output_size);
    dropped_rows_.resize(static_cast<std::size_t>(pass_.updates()));
    for (Index r = 0; r < pass_.updates(); ++r)
      dropped_rows_[r] = dropped + pass_.plan.updates[r].batch * w.output_size;
    step.h_prev = dropped_rows_.data();
  }
  step.recurrent_size = w.output_size;
  step.c_prev = rows.c_prev.data();
  step.h = w.has_projection() ? rows.m.data() : rows.h.data();
  step.c = rows.c.data();
  step.gates = keeps_gates() ? pass_.gates : nullptr;
  step.gate_block_stride = pass_.updates() * pass_.gate_width();
  step.variant = pass_.variant();
  step.masks = pass_.cell_masks();
  return step;
}

// Recurrent dropout of h, before the product.
template <typename T>
void ForwardPass<T>::drop_states(Range updates, Range units) {
  Mask<T>& mask = pass_.masks.state;
  mask.draw(pass_.plan, updates, units);
  for (Index r = updates.begin; r < updates.end; ++r) {
    const RowUpdate& update = pass_.plan.updates[r];
    T* dropped = dropped_.data() + update.batch * pass_.weights.given().output_size;
    pass_.k->multiply(pass_.rows.h_prev[r] + units.begin, mask.row(update.batch) + units.begin, units.end - units.begin,
                      dropped + units.begin);
  }
}

// Zoneout of h, after its projection.
template <typename T>
void ForwardPass<T>::keep_states(Range updates, Range units) {
  Mask<T>& mask = pass_.masks.zoneout_of_h;
  mask.draw(pass_.plan, updates, units);
  for (Index r = updates.begin; r < updates.end; ++r) {
    const RowUpdate& update = pass_.plan.updates[r];
    T* h = pass_.rows.h[r] + units.begin;
    pass_.k->mix(mask.row(update.batch) + units.begin, pass_.rows.h_prev[r] + units.begin, h, units.end - units.begin, h);
  }
}

template <typename T>
Preactivations<T> ForwardPass<T>::preactivations_of(Range updates) {
  const Index width = pass_.gate_width();
  Preactivations<T> z;
  z.rows = z_rows_.data();
  z.first_row = updates.begin;
  z.panels = keeps_gates() ? pass_.gates + updates.begin * width : z_.data();
  z.block_stride = (keeps_gates() ? pass_.updates() : updates.end - updates.begin) * width;
  for (Index r = updates.begin; r < updates.end; ++r) z_rows_[r] = z.panels + (r - updates.begin) * width;
  return z;
}

template <typename T>
bool ForwardPass<T>::multiply_inputs(Range updates, const Preactivations<T>& z) {
  const SequenceWeights<T>& w = pass_.weights.given();
  GateProductArgs<T> product{};
  product.block_end = PanelSizes<T>(*pass_.k).gate_blocks(w.hidden_size);
  product.init = pass_.weights.starting_values().of_all();
  product.x = pass_.rows.x.data();
  product.input_size = w.input_size;
  product.z = z.panels;
  product.z_block_stride = z.block_stride;
  product.z_first_row = z.first_row;
  const Index rows = updates.end - updates.begin;
  std::atomic<bool> safe{true};
  run_parallel(threads_for_work(pass_.multiply_adds(rows, w.input_size)), [&](int part, int parts) {
    const Range mine = share(rows, part, parts);
    const Range my_updates{updates.begin + mine.begin, updates.begin + mine.end};
    if (!pass_.products->multiply_to_gates(Products<T>::Kernel::kInput, for_rows(product, my_updates), part)) safe = false;
  });
  return safe;
}

template <typename T>
bool ForwardPass<T>::run() {
  const SequencePlan& plan = pass_.plan;
  const Index hidden = pass_.weights.given().hidden_size, output_size = pass_.weights.given().output_size;
  const PanelSizes<T> sizes(*pass_.k);
  pass_.point_rows();
  z_rows_.resize(plan.updates.size());
  const bool hoists = pass_.choice.hoists_input || norm_.is_on();
  const bool keeps_preactivations = hoists || pass_.products->keeps_preactivations();
  if (norm_.is_on()) norm_.begin();
  const Index at_once = steps_at_once(keeps_preactivations);
  if (keeps_preactivations && !keeps_gates()) z_.resize(at_once * plan.batch * sizes.gate_depth(hidden));
  StepForwardArgs<T> step = step_args();
  const Division how = pass_.division(pass_.multiply_adds(plan.batch, step.input_size + output_size) +
                                      pass_.projecting_adds(plan.batch));
  std::atomic<bool> safe{true};
  for (Index first = 0; first < plan.steps() && safe; first += at_once) {
    const Range steps{first, std::min(first + at_once, plan.steps())};
    const Range group{plan.step_begin[steps.begin], plan.step_begin[steps.end]};
    const Preactivations<T> z = keeps_preactivations ? preactivations_of(group) : Preactivations<T>{};
    if (hoists) {
      step.init_block_stride = z.block_stride;
      if (!(norm_.is_on() ? norm_.multiply_inputs(group, z) : multiply_inputs(group, z))) return false;
    }
    const Index panels = sizes.panels(output_size);
    const Phase dropping{pass_.masks.state ? panels : 0, [&](Index, Range updates, Range mine, int) {
      drop_states(updates, sizes.units_of_panels(mine, output_size));
    }};
    const Phase cells{sizes.gate_blocks(hidden), [&](Index t, Range updates, Range blocks, int part) {
      pass_.masks.draw_for_cells(plan, updates, sizes.units_of_blocks(blocks, hidden));
      StepForwardArgs<T> mine = for_rows(step, updates);
      mine.block_begin = blocks.begin;
      mine.block_end = blocks.end;
      mine.descending = (steps_before_ + t) % 2 == 1;  // the weights read last are still in cache
      if (!(norm_.is_on() ? norm_.step_forward(mine, z, part) : pass_.products->step_forward(mine, z, part)))
        safe = false;
    }};
    const Phase projecting{pass_.weights.projection() ? panels : 0, [&](Index, Range updates, Range mine, int) {
      pass_.weights.packed_projection().multiply(updates, mine, pass_.rows.m.data(), nullptr, pass_.rows.h.data());
    }};
    const Phase keeping{pass_.masks.zoneout_of_h ? panels : 0, [&](Index, Range updates, Range mine, int) {
      keep_states(updates, sizes.units_of_panels(mine, output_size));
    }};
    for_each_step(plan, Order::kForward, steps, how, dropping, cells, projecting, keeping);
  }
  return safe;
}

template <typename T>
void ForwardPass<T>::finish() {
  const SequenceForwardArgs<T>& args = pass_.args;
  const SequencePlan& plan = pass_.plan;
  const Index hidden = pass_.weights.given().hidden_size, output_size = pass_.weights.given().output_size;
  for (Index b = 0; b < args.batch; ++b) {
    const Index last = plan.last_of_row[b];
    const T* h = last >= 0 ? pass_.rows.h[last] : args.h0 ? args.h0.row(b) : pass_.initial_h();
    const T* c = last >= 0 ? pass_.rows.c[last] : args.c0 ? args.c0.row(b) : pass_.initial_c();
    std::copy_n(h, output_size, args.h_n.row(b));
    if (c != args.c_n.row(b)) std::copy_n(c, hidden, args.c_n.row(b));
  }
  for (Index b = 0; plan.is_ragged() && b < args.batch; ++b)
    for (Index t = args.lengths[b]; t < args.time_steps; ++t) {
      std::fill_n(args.h.row(t, b), output_size, T(0));
      if (args.cells) std::fill_n(args.cells.row(t, b), hidden, T(0));
      if (args.gates) std::fill_n(args.gates.row(t, b), kGateCount * hidden, T(0));
    }
  if (args.gates) {
    const Index updates = pass_.updates();
    gate_rows_.resize(plan.updates.size());
    for (Index r = 0; r < updates; ++r) gate_rows_[r] = args.gates.row(plan.updates[r].time, plan.updates[r].batch);
    pass_.k->unpack_gates(pass_.gates, updates * pass_.gate_width(), hidden, gate_rows_.data(), updates);
  }
  steps_before_ += plan.steps();
}

template class ForwardPass<float>;
template class ForwardPass<double>;

}  // namespace lstmfast

// The two passes in order, repeated with multiply-adds if bf16x products refuse a value; and the memory that is kept.
#include "lstm/sequence.h"

#include "core/float_mode.h"
#include "cpu/dispatch.h"

namespace lstmfast {

template <typename T>
Index Sequence<T>::saved_size(Index updates, Index hidden_size, bool has_projection, LayerNorm norm) {
  return updates * (PanelSizes<T>(kernels<T>()).gate_depth(hidden_size) + (has_projection ? 2 : 1) * hidden_size) +
         normals_size(kernels<T>(), updates, hidden_size, norm);
}

template <typename T>
void Sequence<T>::begin(const SequenceForwardArgs<T>& args) {
  pass_.begin(args, reverse_);
  constexpr std::size_t kBytesOfRow = sizeof(RowUpdate) + 20 * sizeof(T*);
  if (recent_rows_.is_outgrown_by(pass_.plan.updates.size(), pass_.rows.x.capacity(), kBytesOfRow)) release_rows();
  if (args.ids) pass_.read_ids();
}

template <typename T>
bool Sequence<T>::pack_weights() {
  return pass_.weights.pack(*pass_.products, pass_.choice.path, pass_.paths.generation(), pass_.serves_one_call());
}

template <typename T>
void Sequence<T>::use_multiply_adds() {
  pass_.use(choose_multiply_adds(*pass_.k, pass_.shape()));
}

template <typename T>
void Sequence<T>::forward(const SequenceForwardArgs<T>& args) {
  begin(args);
  pass_.weights.pack_starting_values(pass_.rows.ids);
  if (!pack_weights() || !forward_.run()) {
    use_multiply_adds();
    pack_weights();
    forward_.run();
  }
  forward_.finish();
}

template <typename T>
void Sequence<T>::restore(const SequenceForwardArgs<T>& args) {
  begin(args);
  pass_.weights.copy_for(*pass_.products);
  pass_.point_rows();
}

template <typename T>
void Sequence<T>::backward(const SequenceBackwardArgs<T>& args) {
  const FlushDenormals flush_denormals;
  pass_.use(pass_.choice);  // since forward, threads may have been added and memory released
  if (!backward_.run(args)) {
    use_multiply_adds();
    backward_.run(args);
  }
  backward_.finish();
}

template <typename T>
void Sequence<T>::release_memory(bool backward_may_come) {
  const auto release = [](auto& memory) { memory.release(); };
  for_each_workspace(release);
  pass_.paths.release_workspaces();
  if (backward_may_come) return;
  pass_.for_each_kept(release);
  release_rows();
  pass_.plan = {};
}

template <typename T>
void Sequence<T>::release_rows() {
  pass_.rows = {};
  pass_.plan.updates.shrink_to_fit();
  norm_.release_rows();
  forward_.release_rows();
  backward_.release_rows();
}

template <typename T>
std::size_t Sequence<T>::size_bytes() {
  std::size_t bytes = pass_.paths.size_bytes() + pass_.weights.packed_projection().size_bytes();
  const auto add = [&](const auto& memory) { bytes += memory.size_bytes(); };
  for_each_workspace(add);
  pass_.for_each_kept(add);
  return bytes;
}

template class Sequence<float>;
template class Sequence<double>;

}  // namespace lstmfast

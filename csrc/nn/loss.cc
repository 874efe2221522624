// Divides rows among threads; the kernels compute a row's loss and gradient.
#include "nn/loss.h"

#include <vector>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace lstmfast {

template <typename T>
void softmax_cross_entropy(MatrixView<const T> logits, const int* targets, Index rows, Index classes, T scale,
                           T* losses, MatrixView<T> gradients) {
  thread_local std::vector<const T*> logits_rows;
  thread_local std::vector<T*> gradient_rows;
  logits_rows.resize(static_cast<std::size_t>(rows));
  gradient_rows.resize(static_cast<std::size_t>(rows));
  for (Index r = 0; r < rows; ++r) {
    logits_rows[r] = logits.row(r);
    gradient_rows[r] = gradients ? gradients.row(r) : nullptr;
  }
  const KernelTable<T>& k = kernels<T>();
  const T* const* in = logits_rows.data();  // passed to the workers, whose thread-locals are other ones
  T* const* out = gradients ? gradient_rows.data() : nullptr;
  constexpr double kMultiplyAddsPerExp = 8;
  const double work = static_cast<double>(rows) * static_cast<double>(classes) * kMultiplyAddsPerExp;
  run_parallel(threads_for_work(work), [&](int part, int parts) {
    const Range range = share(rows, part, parts);
    k.softmax_cross_entropy(in, targets, range.begin, range.end, classes, scale, losses, out);
  });
}

template void softmax_cross_entropy(MatrixView<const float>, const int*, Index, Index, float, float*,
                                    MatrixView<float>);
template void softmax_cross_entropy(MatrixView<const double>, const int*, Index, Index, double, double*,
                                    MatrixView<double>);

}  // namespace lstmfast

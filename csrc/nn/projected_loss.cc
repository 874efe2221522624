// Chunks of rows in order, each divided among threads; sums do not depend on the number of threads.
#include "nn/projected_loss.h"

#include <algorithm>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/packed_matrix.h"
#include "cpu/parallel.h"
#include "nn/loss.h"

namespace lstmfast {
namespace {

constexpr Index kRows = 256;      // of a chunk: with 10,000 classes, 10 MB of logits
constexpr Index kClasses = 1024;  // of a block of the sum over classes: its panels fit in a second-level cache

template <typename T>
struct Workspace {
  PackedMatrix<T> kernel, x, d_logits;
  std::vector<PackedMatrix<T>> blocks;  // of the transposed kernel
  AlignedBuffer<T> logits, block_sums, bias_sums, transposed;
};

template <typename T>
Workspace<T>& workspace() {
  thread_local Workspace<T> mine;
  return mine;
}

template <typename T>
void release() {
  workspace<T>() = Workspace<T>();
}

template <typename Pointer, typename View>
std::vector<Pointer> pointers_to_rows(View view, Index first, Index rows) {
  std::vector<Pointer> pointers(static_cast<std::size_t>(rows));
  for (Index r = 0; r < rows; ++r) pointers[r] = view.row(first + r);
  return pointers;
}

// d_x[first + r] = d_logits[r]·kernelᵀ, as a sum over blocks of classes.
template <typename T>
void sum_over_classes(const std::vector<PackedMatrix<T>>& blocks, MatrixView<const T> d_logits, Index first, Index rows,
                      Index inputs, MatrixView<T> d_x, T* block_sums, int threads) {
  const std::vector<T*> to_sums = pointers_to_rows<T*>(MatrixView<T>{block_sums, inputs}, 0, rows);
  const std::vector<T*> to_d_x = pointers_to_rows<T*>(d_x, first, rows);
  std::vector<const T*> a(blocks.size() * static_cast<std::size_t>(rows));
  for (std::size_t i = 0; i < a.size(); ++i)
    a[i] = d_logits.row(static_cast<Index>(i) % rows) + static_cast<Index>(i) / rows * kClasses;
  run_parallel(threads, [&](int part, int parts) {
    const Range mine = share(rows, part, parts);
    blocks[0].multiply(mine, a.data(), nullptr, to_d_x.data());
    for (std::size_t block = 1; block < blocks.size(); ++block) {
      blocks[block].multiply(mine, a.data() + block * static_cast<std::size_t>(rows), nullptr, to_sums.data());
      for (Index r = mine.begin; r < mine.end; ++r)
        for (Index j = 0; j < inputs; ++j) to_d_x[r][j] += to_sums[r][j];
    }
  });
}

// d_kernel (+)= xᵀ·d_logits, or d_logitsᵀ·x if transposed.
template <typename T>
void sum_over_rows(const KernelTable<T>& k, const std::vector<const T*>& a, Index m, const PackedMatrix<T>& b, bool add,
                   MatrixView<T> d_kernel, AlignedBuffer<T>& workspaces, int threads) {
  TransposedProductArgs<T> product{};
  product.panel_end = b.panels();
  product.a = a.data();
  product.rows = b.rows();
  product.b = b.data();
  product.b_panel_stride = b.panel_stride();
  product.out = d_kernel;
  product.columns = b.columns();
  product.add = add;
  T* all = workspaces.resize(threads * kTransposedWorkspace);
  run_parallel(threads, [&](int part, int parts) {
    TransposedProductArgs<T> mine = product;
    mine.workspace = all + part * kTransposedWorkspace;
    const Range range = share(m, part, parts);
    mine.m_begin = range.begin;
    mine.m_end = range.end;
    k.transposed_product(mine);
  });
}

}  // namespace

void release_projected_loss_workspaces() {
  release<float>();
  release<double>();
}

template <typename T>
void projected_cross_entropy(MatrixView<const T> x, MatrixView<const T> kernel, bool transposed, const T* bias,
                             const int* targets, Index rows, Index inputs, Index classes, T scale, T* losses,
                             MatrixView<T> d_x, MatrixView<T> d_kernel, T* d_bias) {
  const KernelTable<T>& k = kernels<T>();
  Workspace<T>& w = workspace<T>();
  if (rows == 0 && d_x) {
    for (Index r = 0; r < (transposed ? classes : inputs); ++r)
      std::fill_n(d_kernel.row(r), transposed ? inputs : classes, T(0));
    std::fill_n(d_bias, classes, T(0));
  }
  if (rows == 0) return;
  if (transposed)
    w.kernel.pack_transposed(k, kernel, classes, inputs);
  else
    w.kernel.pack(k, kernel, inputs, classes);
  if (d_x) {
    w.blocks.resize(static_cast<std::size_t>(ceil_div(classes, kClasses)));
    for (std::size_t block = 0; block < w.blocks.size(); ++block) {
      const Index first = static_cast<Index>(block) * kClasses, count = std::min(kClasses, classes - first);
      if (transposed)
        w.blocks[block].pack(k, {kernel.row(first), kernel.stride}, count, inputs);
      else
        w.blocks[block].pack_transposed(k, {kernel.data + first, kernel.stride}, inputs, count);
    }
  }
  const MatrixView<T> logits{w.logits.resize(std::min(rows, kRows) * classes), classes};
  T* block_sums = w.block_sums.resize(kRows * inputs);
  T* bias_sums = w.bias_sums.resize(classes);
  for (Index first = 0; first < rows; first += kRows) {
    const Index count = std::min(kRows, rows - first);
    const int threads =
        threads_for_work(static_cast<double>(count) * static_cast<double>(inputs) * static_cast<double>(classes));
    const std::vector<const T*> x_rows = pointers_to_rows<const T*>(x, first, count);
    const std::vector<T*> logits_rows = pointers_to_rows<T*>(logits, 0, count);
    const PackedMatrix<T>& packed = w.kernel;
    run_parallel(threads, [&](int part, int parts) {
      packed.multiply(share(count, part, parts), x_rows.data(), bias, logits_rows.data());
    });
    const MatrixView<const T> d_logits{logits.data, logits.stride};
    softmax_cross_entropy(d_logits, targets + first, count, classes, scale, losses + first,
                          d_x ? logits : MatrixView<T>{});
    if (!d_x) continue;
    sum_over_classes(w.blocks, d_logits, first, count, inputs, d_x, block_sums, threads);
    const std::vector<const T*> d_logits_rows = pointers_to_rows<const T*>(d_logits, 0, count);
    if (transposed) {
      w.x.pack(k, {x.row(first), x.stride}, count, inputs);
      sum_over_rows(k, d_logits_rows, classes, w.x, first > 0, d_kernel, w.transposed, threads);
    } else {
      w.d_logits.pack(k, d_logits, count, classes);
      sum_over_rows(k, x_rows, inputs, w.d_logits, first > 0, d_kernel, w.transposed, threads);
    }
    T* sums = first > 0 ? bias_sums : d_bias;
    run_parallel(threads, [&](int part, int parts) {
      const Range mine = share(classes, part, parts);
      k.sum_rows(d_logits_rows.data(), count, mine.begin, mine.end, sums);
    });
    if (first > 0)
      for (Index j = 0; j < classes; ++j) d_bias[j] += sums[j];
  }
}

#define LSTMFAST_INSTANTIATE(T)                                                                                    \
  template void projected_cross_entropy(MatrixView<const T>, MatrixView<const T>, bool, const T*, const int*, Index, \
                                        Index, Index, T, T*, MatrixView<T>, MatrixView<T>, T*);
LSTMFAST_INSTANTIATE(float)
LSTMFAST_INSTANTIATE(double)
#undef LSTMFAST_INSTANTIATE

}  // namespace lstmfast

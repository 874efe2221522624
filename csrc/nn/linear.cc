// Divides the rows of the dense layer, and those of its kernel's gradient, among threads.
#include "nn/linear.h"

#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace lstmfast {
namespace {

template <typename T>
struct Workspace {
  PackedMatrix<T> packed;
  AlignedBuffer<T> transposed;
  std::vector<const T*> a;
  std::vector<T*> out;
};

template <typename T>
Workspace<T>& workspace() {
  thread_local Workspace<T> mine;
  return mine;
}

template <typename T>
void release_workspace() {
  workspace<T>().packed.release();
  workspace<T>().transposed.release();
}

template <typename Pointer, typename View>
Pointer* point_to_rows(std::vector<Pointer>& pointers, View view, Index rows) {
  pointers.resize(static_cast<std::size_t>(rows));
  for (Index r = 0; r < rows; ++r) pointers[r] = view.row(r);
  return pointers.data();
}

int threads_for_product(Index rows, Index depth, Index columns) {
  return threads_for_work(static_cast<double>(rows) * static_cast<double>(depth) * static_cast<double>(columns));
}

template <typename T>
void multiply_rows(MatrixView<const T> a, const PackedMatrix<T>& matrix, const T* bias, MatrixView<T> out, Index rows) {
  Workspace<T>& w = workspace<T>();
  const T* const* a_rows = point_to_rows(w.a, a, rows);  // passed to the workers, whose workspaces are other ones
  T* const* out_rows = point_to_rows(w.out, out, rows);
  run_parallel(threads_for_product(rows, matrix.rows(), matrix.columns()), [&](int part, int parts) {
    matrix.multiply(share(rows, part, parts), a_rows, bias, out_rows);
  });
}

}  // namespace

void release_linear_workspaces() {
  release_workspace<float>();
  release_workspace<double>();
}

template <typename T>
void linear(MatrixView<const T> x, MatrixView<const T> kernel, const T* bias, MatrixView<T> out, Index rows,
            Index inputs, Index outputs) {
  PackedMatrix<T>& packed = workspace<T>().packed;
  packed.pack(kernels<T>(), kernel, inputs, outputs);
  multiply_rows(x, packed, bias, out, rows);
}

template <typename T>
void linear_backward(MatrixView<const T> x, MatrixView<const T> kernel, MatrixView<const T> d_out, MatrixView<T> d_x,
                     MatrixView<T> d_kernel, T* d_bias, Index rows, Index inputs, Index outputs) {
  const KernelTable<T>& k = kernels<T>();
  Workspace<T>& w = workspace<T>();
  if (d_x) {
    w.packed.pack_transposed(k, kernel, inputs, outputs);
    multiply_rows(d_out, w.packed, static_cast<const T*>(nullptr), d_x, rows);
  }
  if (d_kernel) {
    w.packed.pack(k, d_out, rows, outputs);
    TransposedProductArgs<T> product{};
    product.panel_end = w.packed.panels();
    product.a = point_to_rows(w.a, x, rows);
    product.rows = rows;
    product.b = w.packed.data();
    product.b_panel_stride = w.packed.panel_stride();
    product.out = d_kernel;
    product.columns = outputs;
    const int threads = threads_for_product(rows, inputs, outputs);
    T* workspaces = w.transposed.resize(threads * kTransposedWorkspace);
    run_parallel(threads, [&](int part, int parts) {
      TransposedProductArgs<T> mine = product;
      mine.workspace = workspaces + part * kTransposedWorkspace;
      const Range columns_of_a = share(inputs, part, parts);
      mine.m_begin = columns_of_a.begin;
      mine.m_end = columns_of_a.end;
      k.transposed_product(mine);
    });
  }
  if (d_bias) k.sum_rows(point_to_rows(w.a, d_out, rows), rows, 0, outputs, d_bias);
}

template <typename T>
PackedLinear<T>::PackedLinear(const KernelTable<T>& k, MatrixView<const T> kernel, const T* bias, Index inputs,
                              Index outputs)
    : bias_(bias, bias + outputs) {
  kernel_.pack(k, kernel, inputs, outputs);
}

template <typename T>
void PackedLinear<T>::apply(MatrixView<const T> x, MatrixView<T> out, Index rows) const {
  multiply_rows(x, kernel_, bias_.data(), out, rows);
}

#define LSTMFAST_INSTANTIATE(T)                                                                                      \
  template void linear(MatrixView<const T>, MatrixView<const T>, const T*, MatrixView<T>, Index, Index, Index);      \
  template void linear_backward(MatrixView<const T>, MatrixView<const T>, MatrixView<const T>, MatrixView<T>,        \
                                MatrixView<T>, T*, Index, Index, Index);                                             \
  template class PackedLinear<T>;
LSTMFAST_INSTANTIATE(float)
LSTMFAST_INSTANTIATE(double)
#undef LSTMFAST_INSTANTIATE

}  // namespace lstmfast

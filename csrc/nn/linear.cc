// See linear.h.
#include "nn/linear.h"

#include "cpu/dispatch.h"
#include "cpu/panel_sizes.h"
#include "cpu/parallel.h"

namespace lstmfast {
namespace {

template <typename T>
struct Workspace {
  AlignedBuffer<T> panels, transposed;
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
  workspace<T>().panels.release();
  workspace<T>().transposed.release();
}

template <typename Pointer, typename View>
Pointer* point_to_rows(std::vector<Pointer>& pointers, View view, Index rows) {
  pointers.resize(static_cast<std::size_t>(rows));
  for (Index r = 0; r < rows; ++r) pointers[r] = view.row(r);
  return pointers.data();
}

template <typename T>
void multiply_rows(const KernelTable<T>& k, const ProductArgs<T>& product, Index rows, Index depth) {
  const double work = static_cast<double>(rows) * static_cast<double>(depth) * static_cast<double>(product.columns);
  run_parallel(threads_for_work(work), [&](int part, int parts) {
    ProductArgs<T> mine = product;
    const Range range = split(rows, part, parts);
    mine.row_begin = range.begin;
    mine.row_end = range.end;
    k.product(mine);
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
  const KernelTable<T>& k = kernels<T>();
  const PanelSizes<T> sizes(k);
  Workspace<T>& w = workspace<T>();
  T* panels = w.panels.resize(inputs * sizes.padded(outputs));
  k.pack(kernel.data, kernel.stride, inputs, outputs, panels);
  ProductArgs<T> product{};
  product.panel_end = sizes.panels(outputs);
  product.a = point_to_rows(w.a, x, rows);
  product.depth_blocks = 1;
  product.block_length = inputs;
  product.panels = panels;
  product.bias = bias;
  product.out = point_to_rows(w.out, out, rows);
  product.columns = outputs;
  multiply_rows(k, product, rows, inputs);
}

template <typename T>
void linear_backward(MatrixView<const T> x, MatrixView<const T> kernel, MatrixView<const T> d_out, MatrixView<T> d_x,
                     MatrixView<T> d_kernel, T* d_bias, Index rows, Index inputs, Index outputs) {
  const KernelTable<T>& k = kernels<T>();
  const PanelSizes<T> sizes(k);
  Workspace<T>& w = workspace<T>();
  const double work = static_cast<double>(rows) * static_cast<double>(inputs) * static_cast<double>(outputs);
  if (d_x) {
    T* panels = w.panels.resize(outputs * sizes.padded(inputs));
    k.pack_transposed(kernel.data, kernel.stride, inputs, outputs, panels);
    ProductArgs<T> product{};
    product.panel_end = sizes.panels(inputs);
    product.a = point_to_rows(w.a, d_out, rows);
    product.depth_blocks = 1;
    product.block_length = outputs;
    product.panels = panels;
    product.out = point_to_rows(w.out, d_x, rows);
    product.columns = inputs;
    multiply_rows(k, product, rows, outputs);
  }
  if (d_kernel) {
    T* panels = w.panels.resize(rows * sizes.padded(outputs));
    k.pack(d_out.data, d_out.stride, rows, outputs, panels);
    TransposedProductArgs<T> product{};
    product.panel_end = sizes.panels(outputs);
    product.a = point_to_rows(w.a, x, rows);
    product.rows = rows;
    product.b = panels;
    product.b_panel_stride = rows * kPanelVectors * sizes.vector_length;
    product.out = d_kernel;
    product.columns = outputs;
    const int threads = threads_for_work(work);
    T* workspaces = w.transposed.resize(threads * kTransposedWorkspace);
    run_parallel(threads, [&](int part, int parts) {
      TransposedProductArgs<T> mine = product;
      mine.workspace = workspaces + part * kTransposedWorkspace;
      const Range range = split(inputs, part, parts);
      mine.m_begin = range.begin;
      mine.m_end = range.end;
      k.transposed_product(mine);
    });
  }
  if (d_bias) k.sum_rows(point_to_rows(w.a, d_out, rows), rows, 0, outputs, d_bias);
}

template <typename T>
PackedLinear<T>::PackedLinear(const KernelTable<T>& k, MatrixView<const T> kernel, const T* bias, Index inputs,
                              Index outputs)
    : k_(k), inputs_(inputs), outputs_(outputs), bias_(bias) {
  k.pack(kernel.data, kernel.stride, inputs, outputs, panels_.resize(inputs * PanelSizes<T>(k).padded(outputs)));
}

template <typename T>
void PackedLinear<T>::apply(const T* x, Index rows, T* out) {
  ProductArgs<T> product{};
  product.row_end = rows;
  product.panel_end = PanelSizes<T>(k_).panels(outputs_);
  product.a = point_to_rows(x_, MatrixView<const T>{x, inputs_}, rows);
  product.depth_blocks = 1;
  product.block_length = inputs_;
  product.panels = panels_.data();
  product.bias = bias_;
  product.out = point_to_rows(out_, MatrixView<T>{out, outputs_}, rows);
  product.columns = outputs_;
  k_.product(product);
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

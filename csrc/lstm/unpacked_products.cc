// See products.h: the products of very few rows by multiply-adds with the weights as they lie.
#include <algorithm>
#include <vector>

#include "cpu/panel_sizes.h"
#include "lstm/products.h"

namespace lstmfast {
namespace {

template <typename T>
class UnpackedProducts final : public Products<T> {
 public:
  explicit UnpackedProducts(const KernelTable<T>& k) : k_(k) {}

  void prepare(int threads) override {
    workspaces_.resize(threads * kTransposedWorkspace);
    if (static_cast<int>(threads_.size()) < threads) threads_.resize(static_cast<std::size_t>(threads));
  }
  bool keeps_preactivations() const override { return false; }

  bool pack(MatrixView<const T> input_kernel, Index, MatrixView<const T> recurrent_kernel, Index,
            Index hidden) override {
    input_ = input_kernel;
    recurrent_ = recurrent_kernel;
    hidden_ = hidden;
    return true;
  }
  bool pack_transposed(MatrixView<const T> input_kernel, Index input_size, MatrixView<const T> recurrent_kernel,
                       Index recurrent_size, Index hidden) override {
    return pack(input_kernel, input_size, recurrent_kernel, recurrent_size, hidden);
  }

  bool multiply_inputs(GateProductArgs<T> args, int part) override {
    for (Index r = args.row_begin; r < args.row_end; ++r) {
      T* z = unpack(args.init, PanelSizes<T>(k_).gate_width(), part);
      k_.add_row_product(args.x[r], input_.data, input_.stride, args.input_size, columns(), z);
      pack_row(z, args.z + (r - args.z_first_row) * PanelSizes<T>(k_).gate_width(), args.z_block_stride);
    }
    return true;
  }

  bool step_forward(StepForwardArgs<T> args, const Preactivations<T>&, int part) override {
    const PanelSizes<T> sizes(k_);
    PerThread& mine = threads_[static_cast<std::size_t>(part)];
    T* panels = mine.panels.resize((args.row_end - args.row_begin) * sizes.gate_depth(hidden_));
    mine.init.resize(static_cast<std::size_t>(args.row_end));
    for (Index r = args.row_begin; r < args.row_end; ++r) {
      T* z = unpack(args.init[r], args.init_block_stride, part);
      if (args.input_size > 0) k_.add_row_product(args.x[r], input_.data, input_.stride, args.input_size, columns(), z);
      k_.add_row_product(args.h_prev[r], recurrent_.data, recurrent_.stride, args.recurrent_size, columns(), z);
      T* row = panels + (r - args.row_begin) * sizes.gate_depth(hidden_);
      pack_row(z, row, sizes.gate_width());
      mine.init[static_cast<std::size_t>(r)] = row;
    }
    args.init = mine.init.data();
    args.init_block_stride = sizes.gate_width();
    args.input_size = args.recurrent_size = 0;
    k_.step_forward(args);
    return true;
  }

  bool step_backward(StepBackwardArgs<T> args, int part) override {
    const Index rows = args.row_end - args.row_begin;
    T* d_h = threads_[static_cast<std::size_t>(part)].d_h.resize(rows * hidden_);
    for (Index r = 0; r < rows; ++r) {
      const T* d_gates = args.d_gates_next[args.row_begin + r];
      if (d_gates == args.no_next)
        std::fill_n(d_h + r * hidden_, hidden_, T(0));
      else
        k_.row_dot_products(recurrent_.data, recurrent_.stride, hidden_, columns(),
                            unpack(d_gates, args.d_gate_block_stride, part), d_h + r * hidden_);
    }
    args.d_h_next = d_h;
    k_.step_backward(args);
    return true;
  }

  bool multiply_transposed(typename Products<T>::Kernel kernel, ProductArgs<T> args, int part) override {
    const MatrixView<const T> weights = kernel == Products<T>::Kernel::kInput ? input_ : recurrent_;
    for (Index r = args.row_begin; r < args.row_end; ++r)
      k_.row_dot_products(weights.data, weights.stride, args.columns, columns(),
                          unpack(args.a[r], args.block_stride, part), args.out[r]);
    return true;
  }

  bool weight_gradient(TransposedProductArgs<T> args, int part) override {
    args.workspace = workspaces_.data() + part * kTransposedWorkspace;
    k_.transposed_product(args);
    return true;
  }

 private:
  struct PerThread {
    AlignedBuffer<T> row, panels, d_h;
    std::vector<const T*> init;
  };

  Index columns() const { return kGateCount * hidden_; }

  // A row of gate panels as a row of a gate matrix, in this thread's memory, and back.
  T* unpack(const T* panels, Index block_stride, int part) {
    T* row = threads_[static_cast<std::size_t>(part)].row.resize(columns());
    k_.unpack_gates(panels, block_stride, hidden_, &row, 1);
    return row;
  }
  void pack_row(const T* row, T* panels, Index block_stride) const {
    k_.pack_gate_rows(row, columns(), nullptr, 1, hidden_, nullptr, T(0), panels, block_stride);
  }

  const KernelTable<T>& k_;
  MatrixView<const T> input_, recurrent_;
  Index hidden_ = 0;
  AlignedBuffer<T> workspaces_;
  std::vector<PerThread> threads_;
};

}  // namespace

template <typename T>
std::unique_ptr<Products<T>> make_unpacked_products(const KernelTable<T>& k) {
  return std::make_unique<UnpackedProducts<T>>(k);
}

template std::unique_ptr<Products<float>> make_unpacked_products(const KernelTable<float>&);
template std::unique_ptr<Products<double>> make_unpacked_products(const KernelTable<double>&);

}  // namespace lstmfast

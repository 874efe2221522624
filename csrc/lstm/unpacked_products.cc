// Products of very few rows by multiply-adds that read the weights in place.
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
    if (static_cast<int>(threads_.size()) < threads) threads_.resize(static_cast<std::size_t>(threads));
  }
  void release_workspaces() override { threads_ = std::vector<PerThread>(); }
  std::size_t size_bytes() const override {
    std::size_t bytes = 0;
    for (const PerThread& each : threads_)
      for (const auto* buffer : {&each.row, &each.product, &each.panels, &each.d_h, &each.gates})
        bytes += buffer->size_bytes();
    return bytes;
  }
  bool keeps_preactivations() const override { return false; }

  bool takes_transposed() const override { return true; }
  bool pack(const KernelPart<T>& input, const KernelPart<T>& recurrent, Index hidden) override {
    input_ = input;
    recurrent_ = recurrent;
    hidden_ = hidden;
    return true;
  }
  bool pack_transposed(const KernelPart<T>& input, const KernelPart<T>& recurrent, Index hidden) override {
    return pack(input, recurrent, hidden);
  }

  bool multiply_to_gates(typename Products<T>::Kernel kernel, GateProductArgs<T> args, int part) override {
    for (Index r = args.row_begin; r < args.row_end; ++r) {
      T* z = unpack(args.init, PanelSizes<T>(k_).gate_width(), part);
      add_product(args.x[r], kernel == Products<T>::Kernel::kInput ? input_ : recurrent_, z, part);
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
      if (args.input_size > 0) add_product(args.x[r], input_, z, part);
      add_product(args.h_prev[r], recurrent_, z, part);
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
        multiply_back(unpack(d_gates, args.d_gate_block_stride, part), recurrent_, d_h + r * hidden_);
    }
    args.d_h_next = d_h;
    k_.step_backward(args);
    return true;
  }

  bool multiply_transposed(typename Products<T>::Kernel kernel, ProductArgs<T> args, int part) override {
    const KernelPart<T>& weights = kernel == Products<T>::Kernel::kInput ? input_ : recurrent_;
    for (Index r = args.row_begin; r < args.row_end; ++r)
      multiply_back(unpack(args.a[r], args.block_stride, part), weights, args.out[r]);
    return true;
  }

  bool weight_gradients(TransposedProductArgs<T> args, const TransposedLeft<T>* left, int count,
                        int part) override {
    const PanelSizes<T> sizes(k_);
    const Index first_unit = args.panel_begin * sizes.vector_length;
    const Index units = std::min(args.panel_end * sizes.vector_length, hidden_) - first_unit;
    const T* const* gates = unpack_rows(args, part);
    const auto multiply = [&](const TransposedLeft<T>& each, Range columns) {
      const Range values{each.m_begin, each.m_end};
      if (recurrent_.is_transposed)
        k_.outer_products({columns, values, gates, each.a, args.rows, each.out, args.add});
      else
        k_.outer_products({values, columns, each.a, gates, args.rows, each.out, args.add});
    };
    for (int i = 0; i < count; ++i) {
      if (units == hidden_) {
        multiply(left[i], {0, columns()});
      } else {
        for (int gate = 0; gate < kGateCount; ++gate) {
          const Index first = gate * hidden_ + first_unit;
          multiply(left[i], {first, first + units});
        }
      }
    }
    return true;
  }

 private:
  struct PerThread {
    AlignedBuffer<T> row, product, panels, d_h, gates;
    std::vector<const T*> init;
    std::vector<T*> gate_rows;
  };

  Index columns() const { return kGateCount * hidden_; }

  // z += x·kernel
  void add_product(const T* x, const KernelPart<T>& kernel, T* z, int part) {
    const auto& [matrix, rows, is_transposed] = kernel;
    if (!is_transposed) return k_.add_row_product(x, matrix.data, matrix.stride, rows, columns(), z);
    T* product = threads_[static_cast<std::size_t>(part)].product.resize(columns());
    k_.row_dot_products(matrix.data, matrix.stride, columns(), rows, x, product);
    for (Index j = 0; j < columns(); ++j) z[j] += product[j];
  }

  // out = the gradient of z times the kernel transposed
  void multiply_back(const T* d_z, const KernelPart<T>& kernel, T* out) const {
    const auto& [matrix, rows, is_transposed] = kernel;
    if (!is_transposed) return k_.row_dot_products(matrix.data, matrix.stride, rows, columns(), d_z, out);
    std::fill_n(out, rows, T(0));
    k_.add_row_product(d_z, matrix.data, matrix.stride, columns(), rows, out);
  }

  // The gate gradients of a weight gradient as rows of a gate matrix, in this thread's memory.
  const T* const* unpack_rows(const TransposedProductArgs<T>& args, int part) {
    PerThread& mine = threads_[static_cast<std::size_t>(part)];
    T* row = mine.gates.resize(args.rows * columns());
    mine.gate_rows.resize(static_cast<std::size_t>(args.rows));
    for (T*& gate_row : mine.gate_rows) {
      gate_row = row;
      row += columns();
    }
    k_.unpack_gates(args.b, args.b_panel_stride, hidden_, mine.gate_rows.data(), args.rows);
    return mine.gate_rows.data();
  }

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
  KernelPart<T> input_{}, recurrent_{};
  Index hidden_ = 0;
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

// Products by multiply-adds, on the register tiles of the ISA.
#include "cpu/panel_sizes.h"
#include "lstm/packed_weights.h"
#include "lstm/products.h"

namespace lstmfast {
namespace {

template <typename T>
class FmaProducts final : public Products<T> {
 public:
  explicit FmaProducts(const KernelTable<T>& k) : k_(k) {}

  void prepare(int threads) override { workspaces_.resize(threads * kTransposedWorkspace); }
  void release_workspaces() override {
    input_transposed_.release();
    recurrent_transposed_.release();
    workspaces_.release();
  }
  std::size_t size_bytes() const override {
    return input_.size_bytes() + recurrent_.size_bytes() + input_transposed_.size_bytes() +
           recurrent_transposed_.size_bytes() + workspaces_.size_bytes();
  }
  bool keeps_preactivations() const override { return false; }

  bool takes_transposed() const override { return true; }

  bool pack(const KernelPart<T>& input, const KernelPart<T>& recurrent, Index hidden) override {
    input_.pack(k_, input, hidden);
    recurrent_.pack(k_, recurrent, hidden);
    return true;
  }

  bool pack_transposed(const KernelPart<T>& input, const KernelPart<T>& recurrent, Index hidden) override {
    input_transposed_.pack_transposed(k_, input, hidden);
    recurrent_transposed_.pack_transposed(k_, recurrent, hidden);
    return true;
  }

  bool multiply_to_gates(typename Products<T>::Kernel kernel, GateProductArgs<T> args, int) override {
    args.input_panels = (kernel == Products<T>::Kernel::kInput ? input_ : recurrent_).data();
    k_.gate_product(args);
    return true;
  }

  bool step_forward(StepForwardArgs<T> args, const Preactivations<T>&, int) override {
    args.input_panels = input_.data();
    args.recurrent_panels = recurrent_.data();
    args.variant ? k_.variant_step_forward(args) : k_.step_forward(args);
    return true;
  }

  bool step_backward(StepBackwardArgs<T> args, int) override {
    args.recurrent_transposed = recurrent_transposed_.data();
    k_.step_backward(args);
    return true;
  }

  bool multiply_transposed(typename Products<T>::Kernel kernel, ProductArgs<T> args, int) override {
    args.panels = (kernel == Products<T>::Kernel::kInput ? input_transposed_ : recurrent_transposed_).data();
    k_.product(args);
    return true;
  }

  bool weight_gradients(TransposedProductArgs<T> args, const TransposedLeft<T>* left, int count,
                        int part) override {
    args.workspace = workspaces_.data() + part * kTransposedWorkspace;
    for (int i = 0; i < count; ++i) {
      static_cast<TransposedLeft<T>&>(args) = left[i];
      k_.transposed_product(args);
    }
    return true;
  }

 private:
  const KernelTable<T>& k_;
  PackedGates<T> input_, recurrent_, input_transposed_, recurrent_transposed_;
  AlignedBuffer<T> workspaces_;  // one for each thread
};

}  // namespace

template <typename T>
std::unique_ptr<Products<T>> make_fma_products(const KernelTable<T>& k) {
  return std::make_unique<FmaProducts<T>>(k);
}

template std::unique_ptr<Products<float>> make_fma_products(const KernelTable<float>&);
template std::unique_ptr<Products<double>> make_fma_products(const KernelTable<double>&);

}  // namespace lstmfast

// Forward, products of factors rounded to short integers; backward, those of somebody else: gradients of different rows
// differ too much in size for one scale to hold for a column of them.
#include <algorithm>
#include <utility>
#include <vector>

#include "lstm/products.h"
#include "lstm/rounded_weights.h"

namespace lstmfast {
namespace {

class DotProducts final : public Products<float> {
 public:
  DotProducts(const KernelTable<float>& k, const DotKernels& dots, std::unique_ptr<Products<float>> backward)
      : k_(k), dots_(dots), backward_(std::move(backward)) {}

  void prepare(int threads) override {
    backward_->prepare(threads);
    if (static_cast<int>(workspaces_.size()) < threads) workspaces_.resize(static_cast<std::size_t>(threads));
  }
  void release_workspaces() override {
    backward_->release_workspaces();
    for (RoundedWorkspace& each : workspaces_) {
      each.x.release();
      each.h_prev.release();
      each.z.release();
    }
  }
  std::size_t size_bytes() const override {
    std::size_t bytes = backward_->size_bytes() + input_.size_bytes() + recurrent_.size_bytes();
    for (const RoundedWorkspace& each : workspaces_)
      bytes += each.x.size_bytes() + each.h_prev.size_bytes() + each.z.size_bytes();
    return bytes;
  }
  bool keeps_preactivations() const override { return false; }

  bool takes_transposed() const override { return backward_->takes_transposed(); }

  bool pack(const KernelPart<float>& input, const KernelPart<float>& recurrent, Index hidden) override {
    return input_.pack(k_, dots_, input, hidden) && recurrent_.pack(k_, dots_, recurrent, hidden);
  }

  bool multiply_to_gates(Kernel kernel, GateProductArgs<float> args, int part) override {
    const DotPanels panels = (kernel == Kernel::kInput ? input_ : recurrent_).panels();
    RoundedRows& x = workspaces_[static_cast<std::size_t>(part)].x;
    const Index row_end = args.row_end, width = PanelSizes<float>(k_).gate_width();
    for (; args.row_begin < row_end; args.row_begin = args.row_end) {
      args.row_end = std::min(row_end, args.row_begin + rows_at_once(args.input_size));
      const bool all = x.pack(dots_, args.x + args.row_begin, args.row_end - args.row_begin, args.input_size);
      dots_.gate_product({args, x.rows(0), panels});
      for (Index row = args.row_begin; !all && row < args.row_end; ++row) {
        if (x.is_rounded(row - args.row_begin)) continue;
        float* z = args.z + (row - args.z_first_row) * width;
        for (Index block = args.block_begin; block < args.block_end; ++block)
          std::copy_n(args.init + block * width, width, z + block * args.z_block_stride);
        dots_.add_unrounded_row(args.x[row], args.input_size, panels, {args.block_begin, args.block_end}, z,
                                args.z_block_stride);
      }
    }
    return true;
  }

  bool step_forward(StepForwardArgs<float> args, const Preactivations<float>&, int part) override {
    step_forward_rounded(k_, dots_, args, input_.panels(), recurrent_.panels(),
                         workspaces_[static_cast<std::size_t>(part)]);
    return true;
  }

  bool pack_transposed(const KernelPart<float>& input, const KernelPart<float>& recurrent, Index hidden) override {
    return backward_->pack_transposed(input, recurrent, hidden);
  }
  bool step_backward(StepBackwardArgs<float> args, int part) override { return backward_->step_backward(args, part); }
  bool multiply_transposed(Kernel kernel, ProductArgs<float> args, int part) override {
    return backward_->multiply_transposed(kernel, args, part);
  }
  bool weight_gradients(TransposedProductArgs<float> args, const TransposedLeft<float>* left, int count,
                        int part) override {
    return backward_->weight_gradients(args, left, count, part);
  }

 private:
  // Of x, as many as stay in 256 KB of L2 while all weights pass over them.
  Index rows_at_once(Index depth) const {
    const Index row_bytes = (ceil_div(depth, dots_.elements_per_word) + 1) * Index{sizeof(int)};
    return std::max<Index>(96, (Index{256} << 10) / row_bytes / 96 * 96);
  }

  const KernelTable<float>& k_;
  const DotKernels& dots_;
  const std::unique_ptr<Products<float>> backward_;
  RoundedGates input_, recurrent_;
  std::vector<RoundedWorkspace> workspaces_;  // one for each thread
};

}  // namespace

std::unique_ptr<Products<float>> make_dot_products(const KernelTable<float>& k, const DotKernels& dots,
                                                   std::unique_ptr<Products<float>> backward) {
  return std::make_unique<DotProducts>(k, dots, std::move(backward));
}

}  // namespace lstmfast

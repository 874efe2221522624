// Products on a unit for bfloat16: float32 split in one, two or three parts.
#include <algorithm>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/panel_sizes.h"
#include "cpu/bf16x_gemm.h"
#include "cpu/bf16x_sizes.h"
#include "lstm/products.h"

namespace lstmfast {
namespace {

class Bf16xProducts final : public Products<float> {
 public:
  Bf16xProducts(const KernelTable<float>& k, const Bf16xKernels& bf16x, int parts)
      : k_(k), bf16x_(bf16x), sizes_{parts} {}

  void prepare(int threads) override {
    if (static_cast<int>(threads_.size()) < threads) threads_.resize(static_cast<std::size_t>(threads));
  }
  void release_workspaces() override {
    input_transposed_.release();
    recurrent_transposed_.release();
    for (PerThread& each : threads_) {
      each.workspace.left.release();
      each.workspace.right.release();
      each.d_h.release();
    }
  }
  std::size_t size_bytes() const override {
    std::size_t bytes = 0;
    for (const auto* buffer : {&input_, &recurrent_, &input_transposed_, &recurrent_transposed_})
      bytes += buffer->size_bytes();
    for (const PerThread& each : threads_)
      bytes += each.workspace.left.size_bytes() + each.workspace.right.size_bytes() + each.d_h.size_bytes();
    return bytes;
  }
  bool keeps_preactivations() const override { return true; }

  bool takes_transposed() const override { return false; }

  bool pack(const KernelPart<float>& input, const KernelPart<float>& recurrent, Index hidden) override {
    hidden_ = hidden;
    return pack_gates(input, input_) & pack_gates(recurrent, recurrent_);
  }

  bool pack_transposed(const KernelPart<float>& input, const KernelPart<float>& recurrent, Index hidden) override {
    hidden_ = hidden;
    return pack_gates_transposed(input, input_transposed_) & pack_gates_transposed(recurrent, recurrent_transposed_);
  }

  bool multiply_to_gates(Kernel kernel, GateProductArgs<float> args, int part) override {
    const Index rows = args.row_end - args.row_begin;
    const std::vector<const float*> init(static_cast<std::size_t>(rows), args.init);
    Bf16xToGatesArgs product{};
    product.factors = {sizes_.parts, rows, args.input_size, nullptr,
                       (kernel == Kernel::kInput ? input_ : recurrent_).data()};
    product.block_begin = args.block_begin;
    product.block_end = args.block_end;
    product.init = init.data();
    product.init_block_stride = kGateWidth;
    product.panels = args.z + (args.row_begin - args.z_first_row) * kGateWidth;
    product.block_stride = args.z_block_stride;
    return bf16x_rows_to_gates(bf16x_, {args.x + args.row_begin, 1, args.input_size, 0}, product, workspace(part));
  }

  bool step_forward(StepForwardArgs<float> args, const Preactivations<float>& z, int part) override {
    const bool added_to = args.init == z.rows;  // z holds the input's product already
    Bf16xToGatesArgs product{};
    product.block_begin = args.block_begin;
    product.block_end = args.block_end;
    product.init = added_to ? nullptr : args.init + args.row_begin;
    product.init_block_stride = args.init_block_stride;
    product.panels = z.panels + (args.row_begin - z.first_row) * kGateWidth;
    product.block_stride = z.block_stride;
    product.factors = {sizes_.parts, args.row_end - args.row_begin, args.recurrent_size, nullptr, recurrent_.data()};
    const Bf16xRows h_prev{args.h_prev + args.row_begin, 1, args.recurrent_size, 0};
    if (!bf16x_rows_to_gates(bf16x_, h_prev, product, workspace(part))) return false;
    args.init = z.rows;
    args.init_block_stride = z.block_stride;
    args.recurrent_size = 0;
    args.variant ? k_.variant_step_forward(args) : k_.step_forward(args);
    return true;
  }

  bool step_backward(StepBackwardArgs<float> args, int part) override {
    const Index rows = args.row_end - args.row_begin, hidden = args.hidden_size;
    float* d_h = threads_[static_cast<std::size_t>(part)].d_h.resize(rows * hidden);
    Bf16xToRowsArgs product{};
    product.tile_begin = args.panel_begin * kPanelVectors;
    product.tile_end = std::min(args.panel_end * kPanelVectors, ceil_div(hidden, kBf16xColumns));
    product.matrix = {d_h, hidden};
    product.columns = hidden;
    if (!multiply_gates(args.d_gates_next + args.row_begin, args.d_gate_block_stride, rows, recurrent_transposed_,
                        product, part))
      return false;
    args.d_h_next = d_h;
    k_.step_backward(args);
    return true;
  }

  bool multiply_transposed(Kernel kernel, ProductArgs<float> args, int part) override {
    Bf16xToRowsArgs product{};
    product.tile_begin = args.panel_begin * kPanelVectors;
    product.tile_end = std::min(args.panel_end * kPanelVectors, ceil_div(args.columns, kBf16xColumns));
    product.rows = args.out + args.row_begin;
    product.columns = args.columns;
    return multiply_gates(args.a + args.row_begin, args.block_stride, args.row_end - args.row_begin,
                          kernel == Kernel::kInput ? input_transposed_ : recurrent_transposed_, product, part);
  }

  bool weight_gradients(TransposedProductArgs<float> args, const TransposedLeft<float>* left, int count,
                        int part) override {
    Bf16xTransposedArgs product{};
    product.parts = sizes_.parts;
    product.rows = args.rows;
    product.panels = args.b + args.panel_begin * args.b_panel_stride;
    product.block_begin = args.panel_begin;
    product.block_end = args.panel_end;
    product.panel_block_stride = args.b_panel_stride;
    product.columns = args.columns;
    product.gate_hidden_size = args.gate_hidden_size;
    product.add = args.add;
    return bf16x_transposed_to_rows(bf16x_, product, left, count, workspace(part));
  }

 private:
  static constexpr Index kGateWidth = kGateCount * kBf16xColumns;

  struct PerThread {
    Bf16xWorkspace workspace;
    AlignedBuffer<float> d_h;
  };

  Bf16xWorkspace& workspace(int part) { return threads_[static_cast<std::size_t>(part)].workspace; }

  bool pack_gates(const KernelPart<float>& kernel, AlignedBuffer<Bfloat16>& packed) {
    Bfloat16* right = packed.resize(sizes_.packed_gates(hidden_, kernel.rows));
    return bf16x_.pack_gates(kernel.matrix.data, kernel.matrix.stride, kernel.rows, hidden_, sizes_.parts, right);
  }

  bool pack_gates_transposed(const KernelPart<float>& kernel, AlignedBuffer<Bfloat16>& packed) {
    const auto& [matrix, columns, is_transposed] = kernel;
    Bfloat16* right = packed.resize(sizes_.packed(columns, Bf16xSizes::gate_depth(hidden_)));
    return bf16x_.pack_gates_transposed(matrix.data, matrix.stride, columns, hidden_, sizes_.parts, right);
  }

  // Rows of gate panels times a transposed kernel.
  bool multiply_gates(const float* const* rows, Index block_stride, Index count, const AlignedBuffer<Bfloat16>& right,
                      Bf16xToRowsArgs product, int part) {
    const Index depth = Bf16xSizes::gate_depth(hidden_);
    product.factors = {sizes_.parts, count, depth, nullptr, right.data()};
    return bf16x_rows_to_rows(bf16x_, {rows, depth / kGateWidth, kGateWidth, block_stride}, product, workspace(part));
  }

  const KernelTable<float>& k_;
  const Bf16xKernels& bf16x_;
  Bf16xSizes sizes_;
  Index hidden_ = 0;
  AlignedBuffer<Bfloat16> input_, recurrent_, input_transposed_, recurrent_transposed_;
  std::vector<PerThread> threads_;
};

}  // namespace

int bf16x_parts(MatmulPrecision precision) {
  switch (precision) {
    case MatmulPrecision::kMedium: return 1;
    case MatmulPrecision::kHigh: return 2;
    case MatmulPrecision::kHighest: return 3;
  }
  return kBf16xMostParts;
}

std::unique_ptr<Products<float>> make_bf16x_products(const KernelTable<float>& k, const Bf16xKernels& bf16x,
                                                     MatmulPrecision precision) {
  return std::make_unique<Bf16xProducts>(k, bf16x, bf16x_parts(precision));
}

// Not timed on AMX: in a prototype, six products of parts took about half the time of a float32 one if tiles were full.
// Fewer parts pay sooner.
// Below a tile of rows the unit computes zeros.
bool bf16x_products_pay(MatmulPrecision precision, Index batch, Index hidden) {
  const Bf16xKernels* bf16x = current_kernels().bf16x;
  return bf16x != nullptr && bf16x_parts(precision) <= bf16x->most_parts && batch >= kBf16xRows &&
         hidden >= (precision == MatmulPrecision::kHighest ? 128 : 64);
}

}  // namespace lstmfast

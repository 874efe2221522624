// The matrix products of one sequence and the unit that computes them: multiply-adds of the ISA's kernels, or bf16x
// products on a unit for bfloat16. Sequence knows time, rows and threads; this knows weights in the unit's layout.
//
// Arguments are those of the kernels, without packed weights and workspaces, which are filled in here.
// Every function except `prepare` returns whether this unit accepts its values (bf16x_kernels.h). If one returns false,
// outputs are undefined and the whole pass must be repeated with FmaProducts, which accept everything.
// The functions for rows may run in several threads at once, each with its own `part`.
#pragma once

#include <cstddef>
#include <memory>

#include "core/aligned_buffer.h"
#include "core/precision.h"
#include "cpu/dot_kernels.h"
#include "cpu/kernel_table.h"
#include "lstm/packed_weights.h"

namespace lstmfast {

// Gate panels that hold the pre-activations of some rows until the gates replace them.
template <typename T>
struct Preactivations {
  const T* const* rows = nullptr;  // [all rows] -> the row's first gate block
  T* panels = nullptr;             // from row `first_row` on
  Index block_stride = 0, first_row = 0;
};

template <typename T>
class Products {
 public:
  virtual ~Products() = default;

  virtual void prepare(int threads) = 0;
  // Frees all memory except packed weights; call `prepare` before the next use.
  virtual void release_workspaces() = 0;
  virtual std::size_t size_bytes() const = 0;
  // Whether step_forward needs `z`.
  virtual bool keeps_preactivations() const = 0;

  // The kernel in its two parts, for the pass forward and for the one backward. The input's has no rows if there is no
  // product with it. Whether parts may be transposed:
  virtual bool takes_transposed() const = 0;
  virtual bool pack(const KernelPart<T>& input, const KernelPart<T>& recurrent, Index hidden) = 0;
  virtual bool pack_transposed(const KernelPart<T>& input, const KernelPart<T>& recurrent, Index hidden) = 0;

  enum class Kernel { kInput, kRecurrent };
  // x of `args` is the rows that this kernel multiplies.
  virtual bool multiply_to_gates(Kernel kernel, GateProductArgs<T> args, int part) = 0;
  virtual bool step_forward(StepForwardArgs<T> args, const Preactivations<T>& z, int part) = 0;
  virtual bool step_backward(StepBackwardArgs<T> args, int part) = 0;
  // Gradients of z times the input's or the state's kernel, transposed.
  virtual bool multiply_transposed(Kernel kernel, ProductArgs<T> args, int part) = 0;
  // One for each of `count` left factors, which replace that of `args`.
  virtual bool weight_gradients(TransposedProductArgs<T> args, const TransposedLeft<T>* left, int count, int part) = 0;
};

template <typename T>
std::unique_ptr<Products<T>> make_fma_products(const KernelTable<T>& k);
// Multiply-adds too, but with the weights read in place, for so few rows that packing would take longer. Plain cells
// only. Gradients are transposed if the weights are.
template <typename T>
std::unique_ptr<Products<T>> make_unpacked_products(const KernelTable<T>& k);
// Cells without a projection only.
std::unique_ptr<Products<float>> make_bf16x_products(const KernelTable<float>& k, const Bf16xKernels& bf16x,
                                                     MatmulPrecision precision);

// For the cells that `backward` is for: forward on factors rounded to short integers, backward by other products.
std::unique_ptr<Products<float>> make_dot_products(const KernelTable<float>& k, const DotKernels& dots,
                                                   std::unique_ptr<Products<float>> backward);

// bfloat16 parts of a float32 factor.
int bf16x_parts(MatmulPrecision precision);

// Whether the ISA in use has bf16x products, and a layer of this size is faster with them than with multiply-adds.
bool bf16x_products_pay(MatmulPrecision precision, Index batch, Index hidden);

}  // namespace lstmfast

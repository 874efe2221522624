// The choice of products, by rules with the measurements behind them, and products kept from pass to pass.
#include "lstm/paths.h"

#include <type_traits>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace lstmfast {
namespace {

// Made at once for many steps, the input's product reads its weights once and leaves the caches to the recurrent ones; made
// in the step it saves writing and reading the pre-activations. Batches below a register tile gain most, for they become
// whole tiles.
template <typename T>
bool hoisting_pays(const KernelTable<T>& k, const CallShape& call) {
  const Index kernel_bytes = (call.input_size + call.hidden_size) * kGateCount * call.hidden_size * Index{sizeof(T)};
  return call.steps > 1 && (kernel_bytes >= (Index{512} << 10) || call.batch < k.tile_rows);
}

template <typename T>
Bf16xRefusal bf16x_refusal(const CallShape& call) {
  if (!std::is_same_v<T, float>) return Bf16xRefusal::kDtype;
  if (!call.is_plain) return Bf16xRefusal::kCell;
  if (!current_kernels().bf16x) return Bf16xRefusal::kIsa;
  if (!bf16x_products_pay(call.precision, call.batch, call.hidden_size)) return Bf16xRefusal::kSize;
  return Bf16xRefusal::kNone;
}

}  // namespace

template <typename T>
Choice choose_path(const KernelTable<T>& k, const CallShape& call) {
  const Bf16xRefusal refusal = bf16x_refusal<T>(call);
  if (refusal != Bf16xRefusal::kNone) {
    Choice choice = choose_multiply_adds(k, call);
    choice.bf16x_refusal = refusal;
    return choice;
  }
  return {Path::kBf16x, refusal, call.input_size > 0};  // they keep pre-activations anyway
}

template <typename T>
Choice choose_multiply_adds(const KernelTable<T>& k, CallShape call) {
  const bool unpacked = call.is_plain && call.updates > 0 && call.updates <= call.rows_unpacked;
  return {unpacked ? Path::kUnpacked : Path::kPacked, Bf16xRefusal::kNone,
          call.input_size > 0 && hoisting_pays(k, call)};
}

template <typename T>
Products<T>& ProductsByPath<T>::prepare(Path path, const KernelTable<T>& k, MatmulPrecision precision) {
  if (made_for_ != &k) {
    made_for_ = &k;
    fma_ = make_fma_products<T>(k);
    unpacked_ = make_unpacked_products<T>(k);
    bf16x_.reset();
    ++generation_;
  }
  Products<T>* products = path == Path::kUnpacked ? unpacked_.get() : fma_.get();
  if constexpr (std::is_same_v<T, float>) {
    if (path == Path::kBf16x && (!bf16x_ || bf16x_precision_ != precision)) {
      bf16x_ = make_bf16x_products(k, *current_kernels().bf16x, precision);
      bf16x_precision_ = precision;
      ++generation_;
    }
    if (path == Path::kBf16x) products = bf16x_.get();
  }
  products->prepare(num_threads());
  return *products;
}

template <typename T>
void ProductsByPath<T>::release_workspaces() {
  for (Products<T>* products : {fma_.get(), unpacked_.get(), bf16x_.get()})
    if (products) products->release_workspaces();
}

template <typename T>
std::size_t ProductsByPath<T>::size_bytes() const {
  std::size_t bytes = 0;
  for (const Products<T>* products : {fma_.get(), unpacked_.get(), bf16x_.get()})
    if (products) bytes += products->size_bytes();
  return bytes;
}

template Choice choose_path(const KernelTable<float>&, const CallShape&);
template Choice choose_path(const KernelTable<double>&, const CallShape&);
template Choice choose_multiply_adds(const KernelTable<float>&, CallShape);
template Choice choose_multiply_adds(const KernelTable<double>&, CallShape);
template class ProductsByPath<float>;
template class ProductsByPath<double>;

}  // namespace lstmfast

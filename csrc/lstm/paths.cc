// The choice of products, by rules with the measurements behind them, and products kept from pass to pass.
#include "lstm/paths.h"

#include <type_traits>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace lstmfast {
namespace {

// Computed for many steps at once, the input's product reads its weights once and leaves the caches to the recurrent
// ones; within the step it saves writing and reading pre-activations. Small batches gain most: full tiles.
template <typename T>
bool hoisting_pays(const KernelTable<T>& k, const CallShape& call) {
  const Index kernel_bytes = (call.input_size + call.hidden_size) * kGateCount * call.hidden_size * Index{sizeof(T)};
  return call.steps > 1 && (kernel_bytes >= (Index{512} << 10) || call.batch < k.tile_rows);
}

bool reads_weights_unpacked(const CallShape& call) {
  return call.is_plain && call.updates > 0 && call.updates <= call.rows_unpacked;
}

template <typename T>
Refusal bf16x_refusal(const CallShape& call) {
  if (!std::is_same_v<T, float>) return Refusal::kDtype;
  if (call.is_projected) return Refusal::kCell;
  if (!current_kernels().bf16x) return Refusal::kIsa;
  if (!bf16x_products_pay(call.precision, call.batch, call.hidden_size)) return Refusal::kSize;
  return Refusal::kNone;
}

// Rounding weights takes as long as multiplying some 50 rows with them.
constexpr Index kRowsThatPayRounding = 64;

template <typename T>
Refusal int16_refusal(const CallShape& call) {
  if (!std::is_same_v<T, float>) return Refusal::kDtype;
  if (!current_kernels().dots->int16.faster_than_float32) return Refusal::kIsa;
  if (reads_weights_unpacked(call) || (call.serves_one_call && call.updates < kRowsThatPayRounding))
    return Refusal::kSize;
  return Refusal::kNone;
}

// Tiles of bfloat16 are several times as fast as dot products. Those of bfloat16 are as fast as those of int16 and ten times
// less exact, so that they serve the backward pass alone, where the size of numbers varies more than int16 can hold.
template <typename T>
Choice choose_medium(const CallShape& call, bool hoists) {
  const Refusal int16 = int16_refusal<T>(call), bf16x = bf16x_refusal<T>(call);
  const bool has_tiles = bf16x == Refusal::kNone && current_kernels().bf16x->most_parts > 1;
  if (int16 != Refusal::kNone || has_tiles) return {Path::kBf16x, bf16x, call.input_size > 0};
  return {call.is_training && bf16x == Refusal::kNone ? Path::kInt16Bf16x : Path::kInt16, Refusal::kNone, hoists};
}

}  // namespace

template <typename T>
Choice choose_path(const KernelTable<T>& k, const CallShape& call) {
  const bool hoists = call.input_size > 0 && hoisting_pays(k, call);
  if (call.weights == WeightFormat::kInt8) return {Path::kInt8, Refusal::kNone, hoists};
  Choice choice{Path::kBf16x, bf16x_refusal<T>(call), call.input_size > 0};  // they keep pre-activations anyway
  if (call.weights != WeightFormat::kBFloat16 && call.precision == MatmulPrecision::kMedium)
    choice = choose_medium<T>(call, hoists);
  if (choice.refusal == Refusal::kNone) return choice;
  const Refusal refusal = choice.refusal;
  choice = choose_multiply_adds(k, call);
  choice.refusal = refusal;
  return choice;
}

template <typename T>
Choice choose_multiply_adds(const KernelTable<T>& k, CallShape call) {
  return {reads_weights_unpacked(call) ? Path::kUnpacked : Path::kPacked, Refusal::kNone,
          call.input_size > 0 && hoisting_pays(k, call)};
}

template <typename T>
Products<T>& ProductsByPath<T>::prepare(Path path, const KernelTable<T>& k, MatmulPrecision precision) {
  if (made_for_ != &k) {
    made_for_ = &k;
    fma_ = make_fma_products<T>(k);
    unpacked_ = make_unpacked_products<T>(k);
    bf16x_.reset();
    int16_.reset();
    int16_bf16x_.reset();
    int8_.reset();
    ++generation_;
  }
  Products<T>* products = path == Path::kUnpacked ? unpacked_.get() : fma_.get();
  if constexpr (std::is_same_v<T, float>) {
    const Kernels& kernels = current_kernels();
    if (path == Path::kBf16x && (!bf16x_ || bf16x_precision_ != precision)) {
      bf16x_ = make_bf16x_products(k, *kernels.bf16x, precision);
      bf16x_precision_ = precision;
      ++generation_;
    }
    if (path == Path::kInt16 && !int16_)
      int16_ = make_dot_products(k, kernels.dots->int16, make_fma_products<float>(k));
    if (path == Path::kInt16Bf16x && !int16_bf16x_)
      int16_bf16x_ = make_dot_products(k, kernels.dots->int16, make_bf16x_products(k, *kernels.bf16x, precision));
    if (path == Path::kInt8 && !int8_) int8_ = make_dot_products(k, kernels.dots->int8, make_fma_products<float>(k));
    if (path == Path::kBf16x) products = bf16x_.get();
    if (path == Path::kInt16) products = int16_.get();
    if (path == Path::kInt16Bf16x) products = int16_bf16x_.get();
    if (path == Path::kInt8) products = int8_.get();
  }
  products->prepare(num_threads());
  return *products;
}

template <typename T>
void ProductsByPath<T>::release_workspaces() {
  for_each([](Products<T>& products) { products.release_workspaces(); });
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

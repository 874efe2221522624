// Checks whether weights changed, copies them if products need another form, and packs them.
#include "lstm/loaded_weights.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "lstm/masks.h"

namespace lstmfast {

template <typename T>
void LoadedWeights<T>::load(const SequenceWeights<T>& weights) {
  given_ = weights;
  cell_.variant.peepholes = weights.peepholes;
  has_looked_ = false;
}

template <typename T>
void LoadedWeights<T>::begin(const KernelTable<T>& k, bool takes_ids, const Noise& noise) {
  k_ = &k;
  noise_ = noise;
  takes_ids_ = takes_ids;
  input_rows_ = takes_ids ? 0 : given_.input_size;
  kernel_view_ = given_.kernel;
  projection_view_ = given_.projection;
  if (!given_.transposed) return;
  const Index columns = kGateCount * given_.hidden_size;
  kernel_view_ = {kernel_.resize((given_.input_size + given_.output_size) * columns), columns};
  if (given_.has_projection())
    projection_view_ = {projection_.resize(given_.hidden_size * given_.output_size), given_.output_size};
}

template <typename T>
KernelPart<T> LoadedWeights<T>::input_kernel(const Products<T>& products, Index rows) const {
  if (reads_transposed(products)) return {given_.transposed.input, rows, true};
  if (!changes_kernel() || input_rows_ == 0) return {kernel_view_, rows};
  return {{changed_.data(), kGateCount * given_.hidden_size}, rows};
}

template <typename T>
KernelPart<T> LoadedWeights<T>::recurrent_kernel(const Products<T>& products) const {
  const Index columns = kGateCount * given_.hidden_size;
  if (reads_transposed(products)) return {given_.transposed.recurrent, given_.output_size, true};
  if (!changes_kernel()) return {{kernel_view_.row(given_.input_size), kernel_view_.stride}, given_.output_size};
  return {{changed_.data() + input_rows_ * columns, columns}, given_.output_size};
}

template <typename T>
void LoadedWeights<T>::pack_starting_values(const std::vector<int>& ids) {
  if (!takes_ids_) return pack_bias(starting_values_);
  const T* bias = is_normalized() ? nullptr : sum_of_biases();
  starting_values_.pack_rows(*k_, kernel_view_, given_.input_size, ids.data(), static_cast<Index>(ids.size()),
                             given_.hidden_size, bias, is_normalized() ? T(0) : cell_.forget_bias);
}

template <typename T>
bool LoadedWeights<T>::pack(Products<T>& products, Path path, int generation, bool serves_one_call) {
  const Index hidden = given_.hidden_size, output = given_.output_size;
  // These read every call's weights in place, and leave weights that others packed alone.
  if (path == Path::kUnpacked)
    return products.pack(input_kernel(products, input_rows_), recurrent_kernel(products), hidden);
  Packed wanted{&products, generation, input_rows_, hidden, output, static_cast<bool>(given_.transposed),
                given_.has_projection(), {}};
  if (are_packed(wanted, serves_one_call)) return true;
  packed_ = {};
  copy_for(products);
  if (projection_view_) packed_projection_.pack(*k_, projection_view_, hidden, output);
  if (!products.pack(input_kernel(products, input_rows_), recurrent_kernel(products), hidden)) return false;
  if (!drops_weights()) packed_ = wanted;  // dropped weights serve one call, also where they are promised not to change
  return true;
}

// Calls whose packed weights serve no other skip the comparison: packing alone costs less.
template <typename T>
bool LoadedWeights<T>::are_packed(Packed& wanted, bool serves_one_call) {
  if (serves_one_call) return false;
  const bool fits = packed_.is_of(wanted);
  if (fits && given_.are_frozen && has_looked_) return true;
  wanted.fingerprint = fingerprint();
  has_looked_ = true;
  return fits && packed_.fingerprint == wanted.fingerprint;
}

// Of everything that packing reads except biases.
template <typename T>
Fingerprint LoadedWeights<T>::fingerprint() const {
  const Index columns = kGateCount * given_.hidden_size, rows = input_rows_, output = given_.output_size;
  if (given_.transposed) {
    const auto& [input, recurrent, projection] = given_.transposed;
    return fingerprint_of<T>(
        *k_, {{input, columns, rows}, {recurrent, columns, output}, {projection, output, given_.hidden_size}});
  }
  const MatrixView<const T> kernel{given_.kernel.row(given_.input_size - rows), given_.kernel.stride};
  return fingerprint_of<T>(*k_, {{kernel, rows + output, columns}, {given_.projection, given_.hidden_size, output}});
}

template <typename T>
void LoadedWeights<T>::copy_for(const Products<T>& products) {
  if (given_.transposed) transpose(!reads_transposed(products));
  if (changes_kernel()) change_kernel();
}

template <typename T>
void LoadedWeights<T>::transpose(bool with_kernel) {
  const Index columns = kGateCount * given_.hidden_size, input_size = given_.input_size, output = given_.output_size;
  const auto& [input, recurrent, projection] = given_.transposed;
  if (with_kernel) {
    T* kernel = kernel_.data();
    k_->transpose(input.data, input.stride, columns, input_size, kernel, columns);
    k_->transpose(recurrent.data, recurrent.stride, columns, output, kernel + input_size * columns, columns);
  }
  if (projection)
    k_->transpose(projection.data, projection.stride, output, given_.hidden_size, projection_.data(), output);
}

// Unused weights may hold anything: zeros replace them, so that a NaN there reaches neither h nor gradients.
template <typename T>
void LoadedWeights<T>::change_kernel() {
  const Index hidden = given_.hidden_size, columns = kGateCount * hidden, rows = input_rows_ + given_.output_size;
  T* copy = changed_.resize(rows * columns);
  for (Index r = 0; r < rows; ++r, copy += columns) {
    std::copy_n(kernel_view_.row(given_.input_size - input_rows_ + r), columns, copy);
    if (variant().coupled_gates) std::fill_n(copy + kForgetGate * hidden, hidden, T(0));
  }
  if (drops_weights()) drop({changed_.data() + input_rows_ * columns, columns});
}

template <typename T>
void LoadedWeights<T>::drop(MatrixView<T> recurrent_kernel) const {
  const Index columns = kGateCount * given_.hidden_size, rows = given_.output_size;
  // 10 multiply-adds for each weight is an estimate, not measured; it only decides how many threads to wake.
  run_parallel(threads_for_work(10.0 * static_cast<double>(rows * columns)), [&](int part, int parts) {
    std::vector<T> factors(static_cast<std::size_t>(columns));
    MaskArgs<T> mask = mask_of<T>(noise_, MaskPurpose::kWeightDropout, cell_.weight_dropout);
    MaskRow row{};
    mask.rows = &row;
    mask.row_count = 1;
    mask.unit_end = columns;
    mask.factors = factors.data();  // of every row
    const Range mine = share(rows, part, parts);
    for (Index r = mine.begin; r < mine.end; ++r) {
      row.row = static_cast<unsigned>(r);
      k_->fill_mask(mask);
      k_->multiply(recurrent_kernel.row(r), factors.data(), columns, recurrent_kernel.row(r));
    }
  });
}

template <typename T>
const T* LoadedWeights<T>::sum_of_biases() {
  if (!given_.second_bias) return given_.bias;
  const Index columns = kGateCount * given_.hidden_size;
  T* sum = bias_.resize(columns);
  for (Index i = 0; i < columns; ++i) sum[i] = given_.bias[i] + given_.second_bias[i];
  return sum;
}

template class LoadedWeights<float>;
template class LoadedWeights<double>;

}  // namespace lstmfast

// The weights of a Sequence: as given, the copies that products need, and whether packed ones are still current.
// Knows one layer's kernel, bias and projection; knows no steps and no states.
#pragma once

#include <optional>
#include <vector>

#include "core/aligned_buffer.h"
#include "cpu/packed_matrix.h"
#include "lstm/fingerprint.h"
#include "lstm/packed_weights.h"
#include "lstm/paths.h"
#include "lstm/sequence_args.h"

namespace lstmfast {

template <typename T>
class LoadedWeights {
 public:
  explicit LoadedWeights(const Cell<T>& cell) : cell_(cell) {}

  void load(const SequenceWeights<T>& weights);
  const SequenceWeights<T>& given() const { return given_; }
  const Cell<T>& cell() const { return cell_; }
  const CellVariant<T>& variant() const { return cell_.variant; }
  // Whether a cell's step backward goes from the product to the gates in registers, as far as weights decide it.
  bool is_plain() const { return !variant().has_hooks() && !given_.has_projection() && !is_normalized(); }
  bool is_normalized() const { return cell_.layer_norm != LayerNorm::kNone; }

  // Everything below is for one pass, which begins here.
  void begin(const KernelTable<T>& k, bool takes_ids, const Noise& noise);
  Index input_rows() const { return input_rows_; }  // multiplied by x
  bool drops_weights() const { return noise_.is_on && cell_.weight_dropout > 0; }
  // Multiplies the recurrent kernel, or its gradient, [P, 4H], by the mask of weight dropout.
  void drop(MatrixView<T> recurrent_kernel) const;
  MatrixView<const T> projection() const { return projection_view_; }
  // The kernel as these products see it. `rows` of the input's part: 0 if there is no product with it.
  KernelPart<T> input_kernel(const Products<T>& products, Index rows) const;
  KernelPart<T> recurrent_kernel(const Products<T>& products) const;

  // Biases, or the rows that ids select with them, as they are now.
  void pack_starting_values(const std::vector<int>& ids);
  // The bias alone; with a layer normalisation, the rows above are without it.
  void pack_bias(StartingValues<T>& row) { row.pack_bias(*k_, sum_of_biases(), cell_.forget_bias, given_.hidden_size); }
  // Packs all other weights in `products` unless they are current, which is checked if they can serve another call.
  // Returns whether these products accept the values.
  bool pack(Products<T>& products, Path path, int generation, bool serves_one_call);
  // Copies weights that products cannot use as given: transposed ones, those of a coupled forget gate, dropped ones.
  void copy_for(const Products<T>& products);

  const StartingValues<T>& starting_values() const { return starting_values_; }
  const PackedMatrix<T>& packed_projection() const { return packed_projection_; }

  // Call body for memory that is free between passes, and for what a backward pass needs of its forward.
  template <typename Body>
  void for_each_workspace(const Body& body) {
    body(starting_values_);
    body(bias_);
  }
  template <typename Body>
  void for_each_copy(const Body& body) {
    for (auto* buffer : {&kernel_, &projection_, &changed_}) body(*buffer);
  }

 private:
  // The weights packed in the products `by`.
  struct Packed {
    const Products<T>* by = nullptr;  // null: nothing
    int generation = 0;
    Index input_rows = 0, hidden = 0, output = 0;
    bool transposed = false, projected = false;
    std::optional<Fingerprint> fingerprint;  // unknown if that call did not compare

    bool is_of(const Packed& other) const {
      return by == other.by && generation == other.generation && input_rows == other.input_rows &&
             hidden == other.hidden && output == other.output && transposed == other.transposed &&
             projected == other.projected;
    }
  };

  bool are_packed(Packed& wanted, bool serves_one_call);
  Fingerprint fingerprint() const;
  void transpose(bool with_kernel);
  bool changes_kernel() const { return variant().coupled_gates || drops_weights(); }
  void change_kernel();
  const T* sum_of_biases();
  bool reads_transposed(const Products<T>& products) const {
    return given_.transposed && products.takes_transposed() && !changes_kernel();
  }

  Cell<T> cell_;
  SequenceWeights<T> given_{};
  const KernelTable<T>* k_ = nullptr;
  bool takes_ids_ = false;
  Noise noise_{};
  Index input_rows_ = 0;
  MatrixView<const T> kernel_view_, projection_view_;  // as given, or the copies
  AlignedBuffer<T> kernel_, projection_;               // of transposed weights
  AlignedBuffer<T> changed_;  // the kernel with zeros in columns that coupled gates do not read, and weights dropped
  AlignedBuffer<T> bias_;                 // the sum of two
  StartingValues<T> starting_values_;
  PackedMatrix<T> packed_projection_;
  Packed packed_;
  bool has_looked_ = false;  // since `load`; packed_ holds these weights
};

}  // namespace lstmfast

// The weights of a Sequence: what it was given, the copies that products need of it, and whether those that hold packed
// weights hold these. Knows one layer's kernel, bias and projection; knows no steps and no states.
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
  const CellVariant<T>& variant() const { return cell_.variant; }
  bool is_plain() const { return !variant().has_hooks() && !given_.has_projection(); }

  // All that follows is for one pass, which begins here.
  void begin(const KernelTable<T>& k, bool takes_ids);
  Index input_rows() const { return input_rows_; }  // that are multiplied by x
  MatrixView<const T> projection() const { return projection_view_; }
  // The kernel as these products see it. `rows` of the input's part: 0 where there is no product with it.
  KernelPart<T> input_kernel(const Products<T>& products, Index rows) const;
  KernelPart<T> recurrent_kernel(const Products<T>& products) const;

  // Biases, or the rows that ids select with them, as they are now.
  void pack_starting_values(const std::vector<int>& ids);
  // Leaves all other weights packed in `products` if they are not; a look spares packing where it can serve another call.
  // Returns whether these products take the values.
  bool pack(Products<T>& products, Path path, int generation, bool serves_one_call);
  // What products do not take as it was given: transposed weights, and the forget gate's where it is coupled.
  void copy_for(const Products<T>& products);

  const StartingValues<T>& starting_values() const { return starting_values_; }
  const PackedMatrix<T>& packed_projection() const { return packed_projection_; }

  // Body for memory that is free between any two passes; and for what a backward needs of its forward.
  template <typename Body>
  void for_each_workspace(const Body& body) {
    body(starting_values_);
    body(bias_);
  }
  template <typename Body>
  void for_each_copy(const Body& body) {
    for (auto* buffer : {&kernel_, &projection_, &without_forget_gate_}) body(*buffer);
  }

 private:
  // What the products `by` hold.
  struct Packed {
    const Products<T>* by = nullptr;  // null: nothing
    int generation = 0;
    Index input_rows = 0, hidden = 0, output = 0;
    bool transposed = false, projected = false;
    std::optional<Fingerprint> fingerprint;  // unknown where that call did not look

    bool is_of(const Packed& other) const {
      return by == other.by && generation == other.generation && input_rows == other.input_rows &&
             hidden == other.hidden && output == other.output && transposed == other.transposed &&
             projected == other.projected;
    }
  };

  bool are_packed(Packed& wanted, bool serves_one_call);
  Fingerprint fingerprint() const;
  void transpose(bool with_kernel);
  void leave_out_forget_gate();
  const T* sum_of_biases();
  bool reads_transposed(const Products<T>& products) const {
    return given_.transposed && products.takes_transposed() && !variant().coupled_gates;
  }

  Cell<T> cell_;
  SequenceWeights<T> given_{};
  const KernelTable<T>* k_ = nullptr;
  bool takes_ids_ = false;
  Index input_rows_ = 0;
  MatrixView<const T> kernel_view_, projection_view_;  // as given, or the copies
  AlignedBuffer<T> kernel_, projection_;               // of transposed weights
  AlignedBuffer<T> without_forget_gate_;  // the kernel with zeros in the columns that coupled gates do not read
  AlignedBuffer<T> bias_;                 // the sum of two
  StartingValues<T> starting_values_;
  PackedMatrix<T> packed_projection_;
  Packed packed_;
  bool has_looked_ = false;  // since `load`, and packed_ is of these weights
};

}  // namespace lstmfast

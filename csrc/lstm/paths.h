// Chooses the products of a pass by its sizes, its weights and the CPU, and owns them. The only place that decides:
// Sequence runs the choice, and `explain` reports it.
#pragma once

#include <cstddef>
#include <memory>

#include "core/precision.h"
#include "cpu/kernel_table.h"
#include "lstm/products.h"

namespace lstmfast {

enum class Path { kPacked, kUnpacked, kBf16x, kInt16, kInt16Bf16x, kInt8 };  // see products.h

struct CallShape {
  Index steps, batch;
  Index updates;     // rows of all steps
  Index input_size;  // 0 with ids, which need no product
  Index hidden_size;
  bool is_plain;      // nothing is between the products and the gates: weights may be read in place
  bool is_projected;  // h is
  Index rows_unpacked;  // up to this many updates, weights are read in place: one of the two below, or 0
  MatmulPrecision precision;
  WeightFormat weights;
  bool serves_one_call;  // packed weights do
  bool is_training;      // a backward follows
};

// Up to this many rows in total, weights that serve one call are read in place. A training step of one row and 256
// units takes 195 us instead of 560, of four rows 505 instead of 760; six rows are even.
constexpr Index kRowsUnpacked = 4;
// And up to this many, weights that may change between calls: comparing all of them costs as much as multiplying two
// rows. One row of 256 units takes 23 us, and 48 with the comparison and packed weights; four rows 91 and 59.
constexpr Index kRowsUnlooked = 2;

// Why products are no less exact than float32: a word of `explain`.
enum class Refusal { kNone, kDtype, kCell, kIsa, kSize };

struct Choice {
  Path path;
  Refusal refusal;
  bool hoists_input;  // the input's product is computed for many steps at once, not within every step
};

template <typename T>
Choice choose_path(const KernelTable<T>& k, const CallShape& call);
// The same in float32, for values that other products refuse.
template <typename T>
Choice choose_multiply_adds(const KernelTable<T>& k, CallShape call);

template <typename T>
class ProductsByPath {
 public:
  // The products of this path, ready for all threads.
  Products<T>& prepare(Path path, const KernelTable<T>& k, MatmulPrecision precision);
  // Incremented when products are made again, which loses packed weights.
  int generation() const { return generation_; }
  void release_workspaces();
  std::size_t size_bytes() const;

 private:
  template <typename Body>
  void for_each(const Body& body) const {
    for (Products<T>* products :
         {fma_.get(), unpacked_.get(), bf16x_.get(), int16_.get(), int16_bf16x_.get(), int8_.get()})
      if (products) body(*products);
  }

  const KernelTable<T>* made_for_ = nullptr;
  MatmulPrecision bf16x_precision_ = MatmulPrecision::kHighest;
  std::unique_ptr<Products<T>> fma_, unpacked_, bf16x_, int16_, int16_bf16x_, int8_;
  int generation_ = 0;
};

}  // namespace lstmfast

// Which products serve a pass, as its sizes, its weights and the CPU say; and who owns them. The one place that decides:
// Sequence runs what is chosen here, and `explain` tells it.
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
  Index input_size;  // 0 where nothing is multiplied by the input: with ids
  Index hidden_size;
  bool is_plain;
  Index rows_unpacked;  // up to this many updates, weights are read where they lie: one of the two below, or 0
  MatmulPrecision precision;
  WeightFormat weights;
  bool serves_one_call;  // packed weights do
  bool is_training;      // a backward follows
};

// Up to this many rows in all, weights that serve one call are read where they lie. A training step of one row and 256 units
// takes 195 us instead of 560, of four rows 505 instead of 760; six rows are even.
constexpr Index kRowsUnpacked = 4;
// And up to this many, weights that others may write between two calls: looking at all of them costs as much as multiplying
// two rows with them. One row of 256 units takes 23 us, and 48 with a look and packed weights; four rows 91 and 59.
constexpr Index kRowsUnlooked = 2;

// Why products are no less exact than float32: a word of `explain`.
enum class Refusal { kNone, kDtype, kCell, kIsa, kSize };

struct Choice {
  Path path;
  Refusal refusal;
  bool hoists_input;  // whether the input's product is made for many steps at once, and not with the state's in every step
};

template <typename T>
Choice choose_path(const KernelTable<T>& k, const CallShape& call);
// The same in float32, for values that other products do not take.
template <typename T>
Choice choose_multiply_adds(const KernelTable<T>& k, CallShape call);

template <typename T>
class ProductsByPath {
 public:
  // Those of this path, ready for all threads.
  Products<T>& prepare(Path path, const KernelTable<T>& k, MatmulPrecision precision);
  // Counts how often some were made again: what others packed before is lost.
  int generation() const { return generation_; }
  void release_workspaces();
  std::size_t size_bytes() const;

 private:
  template <typename Body>
  void for_each(const Body& body) const {
    for (Products<T>* products : {fma_.get(), unpacked_.get(), bf16x_.get(), int16_.get(), int16_bf16x_.get(),
                                  int8_.get()})
      if (products) body(*products);
  }

  const KernelTable<T>* made_for_ = nullptr;
  MatmulPrecision bf16x_precision_ = MatmulPrecision::kHighest;
  std::unique_ptr<Products<T>> fma_, unpacked_, bf16x_, int16_, int16_bf16x_, int8_;
  int generation_ = 0;
};

}  // namespace lstmfast

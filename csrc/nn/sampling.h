// Chooses the next token from logits. The caller provides the random numbers.
#pragma once

#include <vector>

#include "cpu/kernel_table.h"

namespace lstmfast {

struct SamplingOptions {
  double temperature;  // 0: greedy, the first maximum
  Index top_k;         // 0: off
  double top_p;        // 1: off
};

// Temperature, then top-k, softmax, top-p, then the first id whose cumulative probability exceeds `uniform`.
// In double throughout; `reference.next_token_distribution` is the same in NumPy.
template <typename T>
class TokenChooser {
 public:
  TokenChooser(const KernelTable<double>& k, const SamplingOptions& options, Index vocabulary);
  int choose(const T* logits, double uniform);  // throws std::domain_error if a logit is not finite

 private:
  void weigh(const T* logits);
  double accumulate();
  void keep_top_k(Index count);
  void keep_top_p(double probability);
  void sort_ids();

  const KernelTable<double>& k_;
  SamplingOptions options_;
  Index vocabulary_;
  std::vector<double> weights_;     // of each id, scaled to a maximum of 1
  std::vector<double> cumulative_;  // running sums of weights_
  std::vector<int> ids_;
};

}  // namespace lstmfast

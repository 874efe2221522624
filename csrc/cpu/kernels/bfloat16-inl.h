// The step of a stream whose weights are bfloat16: a step of few rows waits for its weights, and these are half of the
// bytes. They become float32 in registers; sums, gates and state are float32.
// Forward only, and no blocking of the depth: rows are few.
#pragma once

#include "cpu/kernels/step-inl.h"

namespace lstmfast {
namespace {

// z += a·weights for R rows and the P gate blocks from `block` on.
template <int R, int P>
LSTMFAST_INLINE void add_bfloat16_product(Tile<float, R, kGateCount> (&z)[P], const float* const* rows, Index depth,
                                          const int* panels, Index block) {
  constexpr Index V = kLanes<float>, kRowWords = kGateCount / 2 * V;
  if (depth == 0) return;
  const float* a[R];
  for (int r = 0; r < R; ++r) a[r] = rows[r];
  Tile<float, R, kGateCount> sums[P];
  for (int p = 0; p < P; ++p) sums[p].clear();
  const int* row = panels + block * depth * kRowWords;
  for (Index k = 0; k < depth; ++k, row += kRowWords)
    for (int p = 0; p < P; ++p) {
      // A shift for one gate of a pair and a mask for the other: half the instructions of widening loads.
      Vec<float> factors[kGateCount];
      for (int n = 0; n < kGateCount / 2; ++n) {
        const auto words = (VecBits<float>)load(reinterpret_cast<const float*>(row + p * depth * kRowWords + n * V));
        factors[2 * n] = (Vec<float>)(words << 16);
        factors[2 * n + 1] = (Vec<float>)(words & ~0xffff);
      }
      for (int r = 0; r < R; ++r) {
        const Vec<float> a_k = broadcast<float>(a[r][k]);
        for (int gate = 0; gate < kGateCount; ++gate)
          sums[p].at[r][gate] = fused_multiply_add(a_k, factors[gate], sums[p].at[r][gate]);
      }
    }
  for (int p = 0; p < P; ++p)
    for (int r = 0; r < R; ++r)
      for (int gate = 0; gate < kGateCount; ++gate) z[p].at[r][gate] += sums[p].at[r][gate];
}

template <int P>
struct BFloat16Tiles {
  const BFloat16StepArgs& args;
  Index block;

  template <int R>
  LSTMFAST_INLINE void run(Index row) const {
    const StepForwardArgs<float>& step = args.step;
    Tile<float, R, kGateCount> z[P];
    for (int p = 0; p < P; ++p) ForwardTiles<float>{step, block + p}.start(z[p], row);
    add_bfloat16_product(z, step.x + row, step.input_size, args.input, block);
    add_bfloat16_product(z, step.h_prev + row, step.recurrent_size, args.recurrent, block);
    for (int p = 0; p < P; ++p) ForwardTiles<float>{step, block + p}.finish(z[p], row);
  }
};

void step_bfloat16(const BFloat16StepArgs& args) {
  const StepForwardArgs<float>& step = args.step;
  const auto several = [&](Index block) {
    BFloat16Tiles<kPanelsOfOneRow>{args, block}.template run<1>(step.row_begin);
  };
  const auto one = [&](Index block) { for_each_row_tile(step.row_begin, step.row_end, BFloat16Tiles<1>{args, block}); };
  for_each_block(step, several, one);
}

}  // namespace
}  // namespace lstmfast

// The step of a stream whose weights are bfloat16 or int8: a step of few rows waits for its weights, and these are a half
// or a quarter of the bytes. They become float32 in registers; sums, gates and state are float32.
// Forward only, and no blocking of the depth: rows are few.
#pragma once

#include "cpu/kernels/step-inl.h"

namespace lstmfast {
namespace {

// How a row of a gate block is stored, how it becomes four vectors to multiply by, and how their sums become the gates'.
struct BFloat16Rows {
  static constexpr int kWords = 2;  // vectors of words in a row

  // A shift for one gate of a pair and a mask for the other: half the instructions of widening loads.
  LSTMFAST_INLINE static void expand(const VecBits<float> (&words)[kWords], Vec<float> (&factors)[kGateCount]) {
    for (int n = 0; n < kWords; ++n) {
      factors[2 * n] = (Vec<float>)(words[n] << 16);
      factors[2 * n + 1] = (Vec<float>)(words[n] & ~0xffff);
    }
  }
  LSTMFAST_INLINE static void add(const Vec<float> (&sums)[kGateCount], const float*, Vec<float> (&z)[kGateCount]) {
    for (int gate = 0; gate < kGateCount; ++gate) z[gate] += sums[gate];
  }
};

struct Int8Rows {
  static constexpr int kWords = 1;

  // The gates are digits of one number, so a factor is a gate and, 2^-8 and less of it, the gates below: converted at once,
  // 11 instructions for four gates where sign-extending each would take 15. `add` subtracts the sum of those below. Only
  // the last conversion rounds, to the 24 bits of any float32.
  LSTMFAST_INLINE static void expand(const VecBits<float> (&words)[kWords], Vec<float> (&factors)[kGateCount]) {
    for (int gate = 0; gate < kGateCount; ++gate)
      factors[gate] = __builtin_convertvector(words[0] << (8 * (kGateCount - 1 - gate)), Vec<float>);
  }
  LSTMFAST_INLINE static void add(const Vec<float> (&sums)[kGateCount], const float* scales,
                                  Vec<float> (&z)[kGateCount]) {
    for (int gate = 0; gate < kGateCount; ++gate) {
      const Vec<float> sum =
          gate == 0 ? sums[0] : fused_multiply_add(sums[gate - 1], broadcast<float>(-1.0f / 256), sums[gate]);
      z[gate] = fused_multiply_add(sum, load(scales + gate * kLanes<float>), z[gate]);
    }
  }
};

LSTMFAST_INLINE VecBits<float> load_words(const int* p) {
  typedef int Unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(int)), may_alias));
  return *reinterpret_cast<const Unaligned*>(p);
}

// z += a·weights for R rows and the P gate blocks from `block` on.
template <typename Format, int R, int P>
LSTMFAST_INLINE void add_product(Tile<float, R, kGateCount> (&z)[P], const float* const* rows, Index depth,
                                 const CompressedPanels& weights, Index block) {
  constexpr Index V = kLanes<float>, kRowWords = Format::kWords * V;
  if (depth == 0) return;
  const float* a[R];
  for (int r = 0; r < R; ++r) a[r] = rows[r];
  Tile<float, R, kGateCount> sums[P];
  for (int p = 0; p < P; ++p) sums[p].clear();
  const int* row = weights.panels + block * depth * kRowWords;
  for (Index k = 0; k < depth; ++k, row += kRowWords)
    for (int p = 0; p < P; ++p) {
      VecBits<float> words[Format::kWords];
      for (int n = 0; n < Format::kWords; ++n) words[n] = load_words(row + p * depth * kRowWords + n * V);
      Vec<float> factors[kGateCount];
      Format::expand(words, factors);
      for (int r = 0; r < R; ++r) {
        const Vec<float> a_k = broadcast<float>(a[r][k]);
        for (int gate = 0; gate < kGateCount; ++gate)
          sums[p].at[r][gate] = fused_multiply_add(a_k, factors[gate], sums[p].at[r][gate]);
      }
    }
  for (int p = 0; p < P; ++p)
    for (int r = 0; r < R; ++r)
      Format::add(sums[p].at[r], weights.scales + (block + p) * kGateCount * V, z[p].at[r]);
}

template <typename Format, int P>
struct CompressedTiles {
  const CompressedStepArgs& args;
  Index block;

  template <int R>
  LSTMFAST_INLINE void run(Index row) const {
    const StepForwardArgs<float>& step = args.step;
    Tile<float, R, kGateCount> z[P];
    for (int p = 0; p < P; ++p) ForwardTiles<float>{step, block + p}.start(z[p], row);
    add_product<Format>(z, step.x + row, step.input_size, args.input, block);
    add_product<Format>(z, step.h_prev + row, step.recurrent_size, args.recurrent, block);
    for (int p = 0; p < P; ++p) ForwardTiles<float>{step, block + p}.finish(z[p], row);
  }
};

template <typename Format>
void step_compressed(const CompressedStepArgs& args) {
  const StepForwardArgs<float>& step = args.step;
  const auto several = [&](Index block) {
    CompressedTiles<Format, kPanelsOfOneRow>{args, block}.template run<1>(step.row_begin);
  };
  const auto one = [&](Index block) {
    for_each_row_tile(step.row_begin, step.row_end, CompressedTiles<Format, 1>{args, block});
  };
  for_each_block(step, several, one);
}

}  // namespace
}  // namespace lstmfast

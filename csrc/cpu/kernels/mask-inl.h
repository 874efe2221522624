// Random factors of units, and the element by element work of cells that use them.
// The generator is Philox4x32-10: Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
// A word depends on its key and counter alone, so every thread and every ISA finds the same ones, in any order.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/kernels/words-inl.h"

namespace lstmfast {
namespace {

// The units of 8 counters in a row: a vector of AVX-512 holds one word of each. Their words 0 and 1 are 16 adjacent
// units, their words 2 and 3 the next 16, so that vectors of any length hold adjacent units.
constexpr Index kCountersOfGroup = 8, kUnitsOfGroup = 4 * kCountersOfGroup;

LSTMFAST_INLINE void store_words(unsigned* words, Pairs low, Pairs high) {
  *reinterpret_cast<UnalignedWords*>(words) = (Words)((low & 0xffffffffu) | (high << 32));
}

// The words of a vector of counters {first + lane, row, step, stream}. A word is the low half of its lane; the high half
// holds anything, because products ignore it.
template <typename T>
LSTMFAST_INLINE void philox(const MaskArgs<T>& args, MaskRow row, Pairs first, unsigned* words) {
  unsigned key0 = args.key[0], key1 = args.key[1];
  const Pairs multiplier0 = Pairs{} + 0xD2511F53u, multiplier1 = Pairs{} + 0xCD9E8D57u;
  Pairs c0 = first, c1 = Pairs{} + row.row, c2 = Pairs{} + row.step, c3 = Pairs{} + args.stream;
  for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
    const Pairs product0 = multiply_low_halves(c0, multiplier0), product1 = multiply_low_halves(c2, multiplier1);
    c0 = (product1 >> 32) ^ c1 ^ (Pairs{} + key0);
    c1 = product1;
    c2 = (product0 >> 32) ^ c3 ^ (Pairs{} + key1);
    c3 = product0;
  }
  store_words(words, c0, c1);
  store_words(words + kUnitsOfGroup / 2, c2, c3);
}

template <typename T>
void fill_mask(const MaskArgs<T>& args) {
  constexpr Index kLanesOfPairs = kVectorBytes / 8;
  Pairs lanes;
  for (Index lane = 0; lane < kLanesOfPairs; ++lane) lanes[lane] = static_cast<unsigned long long>(lane);
  const unsigned threshold = args.threshold;
  const T below = args.below, above = args.above;
  for (Index r = 0; r < args.row_count; ++r) {
    const MaskRow row = args.rows[r];
    for (Index group = args.unit_begin / kUnitsOfGroup; group * kUnitsOfGroup < args.unit_end; ++group) {
      alignas(64) unsigned words[kUnitsOfGroup];
      for (Index counter = 0; counter < kCountersOfGroup; counter += kLanesOfPairs)
        philox(args, row, lanes + static_cast<unsigned long long>(group * kCountersOfGroup + counter),
               words + 2 * counter);
      const Index first = group * kUnitsOfGroup;
      T* factors = args.factors + row.row * args.stride + first;
      if (first >= args.unit_begin && first + kUnitsOfGroup <= args.unit_end) {
        for (Index i = 0; i < kUnitsOfGroup; ++i) factors[i] = words[i] < threshold ? below : above;
      } else {
        const Index begin = args.unit_begin > first ? args.unit_begin - first : 0;
        for (Index i = begin; i < kUnitsOfGroup && first + i < args.unit_end; ++i)
          factors[i] = words[i] < threshold ? below : above;
      }
    }
  }
}

template <typename T>
void complete_state_gradient(const StateGradientArgs<T>& args) {
  for (Index unit = args.unit_begin; unit < args.unit_end; unit += kLanes<T>) {
    const Index lanes = args.unit_end - unit;
    Vec<T> from_next = load_partial(args.d_h + unit, lanes);
    if (args.next_mask) from_next *= load_partial(args.next_mask + unit, lanes);
    if (args.kept) from_next += load_partial(args.kept + unit, lanes);
    if (args.d_initial) {
      store_partial(args.d_initial + unit, from_next, lanes);
      from_next = Vec<T>{};
    }
    Vec<T> d_h = from_next + (load_partial(args.d_h_out + unit, lanes) + load_partial(args.d_h_extra + unit, lanes));
    if (args.kept) {
      const Vec<T> share = load_partial(args.share + unit, lanes);
      store_partial(args.kept + unit, share * d_h, lanes);
      d_h *= T(1) - share;
    }
    store_partial(args.d_h + unit, d_h, lanes);
  }
}

template <typename T>
void multiply(const T* a, const T* b, Index count, T* out) {
  for (Index i = 0; i < count; i += kLanes<T>)
    store_partial(out + i, load_partial(a + i, count - i) * load_partial(b + i, count - i), count - i);
}

template <typename T>
LSTMFAST_INLINE Vec<T> mixed(Vec<T> share, Vec<T> a, Vec<T> b) {
  return fused_multiply_add(share, a, (T(1) - share) * b);
}

template <typename T>
void mix(const T* share, const T* a, const T* b, Index count, T* out) {
  for (Index i = 0; i < count; i += kLanes<T>) {
    const Index lanes = count - i;
    store_partial(out + i,
                  mixed<T>(load_partial(share + i, lanes), load_partial(a + i, lanes), load_partial(b + i, lanes)), lanes);
  }
}

}  // namespace
}  // namespace lstmfast

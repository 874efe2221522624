// Integer products of gates, see cpu/dot_kernels.h: the tile whose depth is a word of 2 or 4 elements, its packing, and
// the forward step on it. Sums are integers; after each piece of the depth they are scaled and added to float32
// pre-activations, which wait in memory and go through the same `finish_rows` as those of float32 products.
//
// The including .cc may define LSTMFAST_ISA_HAS_DOT_PRODUCTS and, for VecBits<float> of words,
//   add_products_of_pairs(a, b, sum)   sum + a0*b0 + a1*b1 of int16
//   add_products_of_fours(a, b, sum)   sum + a0*b0 + ... + a3*b3, a of unsigned and b of signed bytes
// or LSTMFAST_ISA_HAS_PAIR_PRODUCTS and multiply_pairs(a, b), which is the first without the sum. A format whose rows are
// multiplied in something else than vectors has a `Unit` of its own, as in int8_tiles-inl.h.
#pragma once

#include "cpu/dot_kernels.h"
#include "cpu/kernels/step-inl.h"

namespace lstmfast {
namespace {

using DotWords = VecBits<float>;

#ifndef LSTMFAST_ISA_HAS_DOT_PRODUCTS
constexpr bool kHasDotProducts = false;
using Shorts = short __attribute__((vector_size(kVectorBytes)));

#ifndef LSTMFAST_ISA_HAS_PAIR_PRODUCTS
LSTMFAST_INLINE DotWords multiply_pairs(DotWords a, DotWords b) {
  return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
}
#endif

LSTMFAST_INLINE DotWords add_products_of_pairs(DotWords a, DotWords b, DotWords sum) {
  return sum + multiply_pairs(a, b);
}

// Even and odd bytes as pairs of int16.
LSTMFAST_INLINE DotWords add_products_of_fours(DotWords a, DotWords b, DotWords sum) {
  const DotWords even = multiply_pairs(a & 0x00ff00ff, (DotWords)((Shorts)b << 8 >> 8));
  const DotWords odd = multiply_pairs((a >> 8) & 0x00ff00ff, (DotWords)((Shorts)b >> 8));
  return sum + even + odd;
}
#else
constexpr bool kHasDotProducts = true;
#endif

template <typename Format>
struct DotTiles;

// What rows are multiplied in: ready from the beginning to the end of a call, which has so many rows.
struct VectorUnit {
  static constexpr bool kIsFast = kHasDotProducts;
  static constexpr Index kRowsReadAtOnce = 1;
  LSTMFAST_INLINE explicit VectorUnit(Index) {}
  template <typename Format>
  LSTMFAST_INLINE void multiply(const DotTiles<Format>& piece, Index count) const {
    for_each_row_tile(0, count, piece);
  }
};

// Sums of 256 products of the largest factors, 2047 * 4095, stay below 2^31.
struct Int16Pairs {
  using Unit = VectorUnit;
  static constexpr int kElements = 2, kBits = 16;
  static constexpr int kLargestLeft = 2047, kLargestRight = 4095;
  static constexpr int kZero = 0;  // of a left factor
  LSTMFAST_INLINE static DotWords multiply_add(DotWords a, DotWords b, DotWords sum) {
    return add_products_of_pairs(a, b, sum);
  }
};
// Left factors are stored plus 128; sums start at minus 128 times the sum of the weights.
struct Int8Fours {
  using Unit = VectorUnit;
  static constexpr int kElements = 4, kBits = 8;
  static constexpr int kLargestLeft = 127, kLargestRight = 127;
  static constexpr int kZero = 128;
  LSTMFAST_INLINE static DotWords multiply_add(DotWords a, DotWords b, DotWords sum) {
    return add_products_of_fours(a, b, sum);
  }
};

LSTMFAST_INLINE DotWords load_words(const int* p) { return (DotWords)load(reinterpret_cast<const float*>(p)); }
LSTMFAST_INLINE void store_words(int* p, DotWords words) {
  store<float>(reinterpret_cast<float*>(p), (Vec<float>)words);
}
LSTMFAST_INLINE DotWords broadcast_word(int word) { return word - DotWords{}; }
LSTMFAST_INLINE DotWords magnitude(Vec<float> x) { return (DotWords)x & 0x7fffffff; }

// The nearest integers, ties to even, of numbers below 2^22.
LSTMFAST_INLINE DotWords nearest_whole(Vec<float> x) {
  constexpr float kRound = 0x1.8p23f;
  return (DotWords)(x + kRound) - (DotWords)broadcast(kRound);
}

// Of a group of words: how many, and the element of its first word.
template <typename Format>
struct WordGroup {
  Index words, first;
  LSTMFAST_INLINE WordGroup(Index word, Index depth)
      : words(ceil_div(depth, Format::kElements) - word), first(word * Format::kElements) {
    if (words > kLanes<float>) words = kLanes<float>;
  }
  LSTMFAST_INLINE Index element(Index word, int part) const { return first + part * words + word; }
};

template <typename Format>
LSTMFAST_INLINE DotWords word_of(DotWords number, int part) {
  constexpr int kMask = static_cast<int>((1u << Format::kBits) - 1);
  return (number & kMask) << (part * Format::kBits);
}

template <typename Format>
bool pack_dot_row(const float* x, Index depth, int* words, float* scale) {
  constexpr Index V = kLanes<float>;
  DotWords sizes{};
  for (Index i = 0; i < depth; i += V) {
    const DotWords size = magnitude(load_partial(x + i, depth - i));
    sizes = size > sizes ? size : sizes;
  }
  // Bits of magnitudes are in the order of the numbers, with infinity and NaN above all.
  int largest_bits = 0;
  for (Index lane = 0; lane < V; ++lane) largest_bits = sizes[lane] > largest_bits ? sizes[lane] : largest_bits;
  float largest;
  __builtin_memcpy(&largest, &largest_bits, sizeof largest);
  if (!(largest <= kDotLargest)) {
    *scale = __builtin_nanf("");
    return false;
  }
  const bool is_zero = largest < kDotSmallest;
  *scale = is_zero ? 0.0f : largest / Format::kLargestLeft;
  const Vec<float> inverse = broadcast(is_zero ? 0.0f : Format::kLargestLeft / largest);
  for (Index word = 0; word * Format::kElements < depth; word += V) {
    const WordGroup<Format> group(word, depth);
    DotWords packed{};
    for (int part = 0; part < Format::kElements; ++part) {
      const Index element = group.element(0, part), left = depth - element;
      const Vec<float> numbers = load_partial(x + element, left < group.words ? left : group.words);
      packed |= word_of<Format>(nearest_whole(numbers * inverse) + Format::kZero, part);
    }
    store_partial(reinterpret_cast<float*>(words + word), (Vec<float>)packed, group.words);
  }
  return true;
}

template <typename Format>
bool pack_dot_rows(const float* const* rows, Index count, Index depth, int* words, Index stride, float* scales) {
  bool all = true;
  for (Index r = 0; r < count; ++r) all &= pack_dot_row<Format>(rows[r], depth, words + r * stride, scales + r);
  return all;
}

// Columns [0, V) of a gate block: words `W` apart.
template <typename Format>
bool pack_dot_columns(const float* columns, Index depth, int* words, int* starts, float* scales) {
  constexpr Index W = kGateCount * kLanes<float>;
  DotWords sizes{};
  for (Index k = 0; k < depth; ++k) {
    const DotWords size = magnitude(load(columns + k * W));
    sizes = size > sizes ? size : sizes;
  }
  const Vec<float> largest = (Vec<float>)sizes;
  const DotWords too_large = ~(largest <= kDotLargest), is_zero = largest < kDotSmallest;
  for (Index lane = 0; lane < kLanes<float>; ++lane)
    if (too_large[lane]) return false;
  const Vec<float> divisor = is_zero ? broadcast(1.0f) : largest;
  store(scales, is_zero ? Vec<float>{} : divisor / static_cast<float>(Format::kLargestRight));
  const Vec<float> inverse = is_zero ? Vec<float>{} : static_cast<float>(Format::kLargestRight) / divisor;
  const Index count = ceil_div(depth, Format::kElements);
  DotWords sum{};
  for (Index word = 0; word < count; ++word) {
    const Index group_begin = word / kLanes<float> * kLanes<float>;
    const WordGroup<Format> group(group_begin, depth);
    DotWords packed{};
    for (int part = 0; part < Format::kElements; ++part) {
      const Index k = group.element(word - group_begin, part);
      if (k >= depth) continue;
      const DotWords number = nearest_whole(load(columns + k * W) * inverse);
      packed |= word_of<Format>(number, part);
      sum += number;
    }
    store_words(words + word * W, packed);
    if (Format::kZero != 0 && ((word + 1) % kDotPiece == 0 || word + 1 == count)) {
      store_words(starts + word / kDotPiece * W, sum * -Format::kZero);
      sum = DotWords{};
    }
  }
  return true;
}

template <typename Format>
bool pack_dot_gates(const float* panels, Index depth, Index blocks, const DotPanelsOut& out) {
  constexpr Index V = kLanes<float>, W = kGateCount * V;
  const Index words = ceil_div(depth, Format::kElements), pieces = ceil_div(words, kDotPiece);
  bool all = true;
  for (Index block = 0; block < blocks; ++block)
    for (Index column = 0; column < W; column += V)
      all &= pack_dot_columns<Format>(
          panels + block * depth * W + column, depth, out.words + block * words * W + column,
          Format::kZero ? out.starts + block * pieces * W + column : nullptr, out.scales + block * W + column);
  return all;
}

// A piece of one panel, and the rows that pass over it: z += scales of rows * scales of columns * (rows·piece).
template <typename Format>
struct DotTiles {
  const int* words;  // of row 0, at the piece
  Index stride;
  const float* row_scales;
  const int* piece;
  Index depth;  // of the piece, in words
  const int* starts;
  const float* column_scales;
  float* z;                  // of row 0
  const float* const* init;  // what z begins with, [rows] -> from init_offset on; null: what it holds
  Index init_offset;

  // Few rows are few sums in flight: words in turn have sums of their own. Integers give the same in any order.
  template <int R>
  static constexpr int kChains = 2 * kTileRows / (3 * R) > 1 ? 2 * kTileRows / (3 * R) : 1;

  template <int R>
  LSTMFAST_INLINE void run(Index row) const {
    constexpr Index V = kLanes<float>, W = kGateCount * V;
    constexpr int C = kChains<R>;
    DotWords sums[C][R][kGateCount];
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < kGateCount; ++n) sums[0][r][n] = starts ? load_words(starts + n * V) : DotWords{};
    for (int c = 1; c < C; ++c)
      for (int r = 0; r < R; ++r)
        for (int n = 0; n < kGateCount; ++n) sums[c][r][n] = DotWords{};
    const int* left[R];
    for (int r = 0; r < R; ++r) left[r] = words + (row + r) * stride;
    const int* right = piece;
    Index k = 0;
    for (; k + C <= depth; k += C)
      for (int c = 0; c < C; ++c, right += W) multiply_add(sums[c], left, k + c, right);
    for (; k < depth; ++k, right += W) multiply_add(sums[0], left, k, right);
    for (int c = 1; c < C; ++c)
      for (int r = 0; r < R; ++r)
        for (int n = 0; n < kGateCount; ++n) sums[0][r][n] += sums[c][r][n];
    LSTMFAST_UNROLL
    for (int r = 0; r < R; ++r) add(row + r, sums[0][r]);
  }

  // z of a row += its sums, scaled. Not fused, because not every ISA could: all give the same bits.
  LSTMFAST_INLINE void add(Index row, const DotWords (&sums)[kGateCount]) const {
    constexpr Index V = kLanes<float>, W = kGateCount * V;
    const Vec<float> scale = broadcast(row_scales[row]);
    float* out = z + row * W;
    const float* start = init ? init[row] + init_offset : out;
    for (int n = 0; n < kGateCount; ++n)
      store(out + n * V, load(start + n * V) + __builtin_convertvector(sums[n], Vec<float>) * scale *
                                                   load(column_scales + n * V));
  }

  template <int R>
  LSTMFAST_INLINE static void multiply_add(DotWords (&sums)[R][kGateCount], const int* const (&left)[R], Index k,
                                           const int* right) {
    if constexpr (R <= kGateCount) {  // as in Tile
      DotWords a[R];
      for (int r = 0; r < R; ++r) a[r] = broadcast_word(left[r][k]);
      for (int n = 0; n < kGateCount; ++n) {
        const DotWords b = load_words(right + n * kLanes<float>);
        for (int r = 0; r < R; ++r) sums[r][n] = Format::multiply_add(a[r], b, sums[r][n]);
      }
    } else {
      DotWords b[kGateCount];
      for (int n = 0; n < kGateCount; ++n) b[n] = load_words(right + n * kLanes<float>);
      LSTMFAST_UNROLL
      for (int r = 0; r < R; ++r) {
        const DotWords a = broadcast_word(left[r][k]);
        for (int n = 0; n < kGateCount; ++n) sums[r][n] = Format::multiply_add(a, b[n], sums[r][n]);
      }
    }
  }
};

// z [rows][W] += rows [first, first + count) of the left factor times gate block `block`.
template <typename Format>
LSTMFAST_NOINLINE void add_dot_products(typename Format::Unit& unit, const DotRows& rows, Index depth,
                                        const DotPanels& panels, Index block, Index first, Index count, float* z,
                                        const float* const* init = nullptr, Index init_offset = 0) {
  constexpr Index W = kGateCount * kLanes<float>;
  const Index words = ceil_div(depth, Format::kElements), pieces = ceil_div(words, kDotPiece);
  for (Index piece = 0; piece < pieces; ++piece) {
    const Index begin = piece * kDotPiece, end = begin + kDotPiece < words ? begin + kDotPiece : words;
    const DotTiles<Format> tiles{rows.words + first * rows.stride + begin,
                                 rows.stride,
                                 rows.scales + first,
                                 panels.words + (block * words + begin) * W,
                                 end - begin,
                                 Format::kZero ? panels.starts + (block * pieces + piece) * W : nullptr,
                                 panels.scales + block * W,
                                 z,
                                 piece == 0 ? init : nullptr,
                                 init_offset};
    unit.multiply(tiles, count);
  }
}

template <typename Format, typename Cell>
void dot_step_forward(const DotStepArgs& args) {
  constexpr Index W = kGateCount * kLanes<float>;
  const StepForwardArgs<float>& step = args.step;
  alignas(64) float z[kRowsAtOnce * W];
  typename Format::Unit unit(step.row_end - step.row_begin);
  const Index blocks = step.block_end - step.block_begin;
  for (Index n = 0; n < blocks; ++n) {
    const Index block = step.descending ? step.block_end - 1 - n : step.block_begin + n;
    for (Index first = step.row_begin; first < step.row_end; first += kRowsAtOnce) {
      const Index end = first + kRowsAtOnce < step.row_end ? first + kRowsAtOnce : step.row_end, count = end - first;
      const Index offset = first - step.row_begin, init_offset = block * step.init_block_stride;
      const float* const* init = step.init + first;
      if (step.input_size > 0) {
        add_dot_products<Format>(unit, args.x, step.input_size, args.input, block, offset, count, z, init, init_offset);
        init = nullptr;
      }
      add_dot_products<Format>(unit, args.h_prev, step.recurrent_size, args.recurrent, block, offset, count, z, init,
                               init_offset);
      finish_rows<float, Cell>(step, block, first, end, z);
    }
  }
}

template <typename Format>
void dot_gate_product(const DotGateProductArgs& args) {
  constexpr Index W = kGateCount * kLanes<float>;
  const GateProductArgs<float>& product = args.product;
  typename Format::Unit unit(product.row_end - product.row_begin);
  for (Index block = product.block_begin; block < product.block_end; ++block)
    for (Index first = product.row_begin; first < product.row_end; first += kRowsAtOnce) {
      const Index end = first + kRowsAtOnce < product.row_end ? first + kRowsAtOnce : product.row_end;
      float* z = product.z + block * product.z_block_stride + (first - product.z_first_row) * W;
      for (Index r = 0; r < end - first; ++r) __builtin_memcpy(z + r * W, product.init + block * W, sizeof(float) * W);
      add_dot_products<Format>(unit, args.x, product.input_size, args.input, block, first - product.row_begin,
                               end - first, z);
    }
}

template <typename Format>
void add_unrounded_dot_row(const float* x, Index depth, const DotPanels& weights, Range blocks, float* z,
                           Index z_block_stride) {
  constexpr Index V = kLanes<float>, W = kGateCount * V;
  const Index count = ceil_div(depth, Format::kElements);
  for (Index block = blocks.begin; block < blocks.end; ++block)
    for (Index column = 0; column < W; column += V) {
      const int* words = weights.words + block * count * W + column;
      const Vec<float> scale = load(weights.scales + block * W + column);
      float* out = z + block * z_block_stride + column;
      Vec<float> sum = load(out);
      for (Index word = 0; word < count; ++word, words += W) {
        const Index group_begin = word / V * V;
        const WordGroup<Format> group(group_begin, depth);
        for (int part = 0; part < Format::kElements; ++part) {
          const Index k = group.element(word - group_begin, part);
          if (k >= depth) continue;
          const DotWords number = load_words(words) << (32 - Format::kBits * (part + 1)) >> (32 - Format::kBits);
          sum = fused_multiply_add(broadcast(x[k]), __builtin_convertvector(number, Vec<float>) * scale, sum);
        }
      }
      store(out, sum);
    }
}

template <typename Format>
constexpr DotKernels make_dot_kernels() {
  return {Format::kElements,
          Format::kZero != 0,
          Format::Unit::kIsFast,
          Format::Unit::kRowsReadAtOnce,
          pack_dot_rows<Format>,
          pack_dot_gates<Format>,
          dot_step_forward<Format, PlainCell>,
          dot_step_forward<Format, VariantCell>,
          dot_gate_product<Format>,
          add_unrounded_dot_row<Format>};
}

constexpr DotKernelSet kDotKernels{make_dot_kernels<Int16Pairs>(), make_dot_kernels<Int8Fours>()};

}  // namespace
}  // namespace lstmfast

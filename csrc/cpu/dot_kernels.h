// Integer products: float32 factors rounded to short integers and multiplied by the CPU's dot-product instructions, which
// take several elements of the depth at once. The sums are exact, so every ISA gives the same bits.
//
//   int16 pairs   left factor 12 bits, right factor 13; error of a result about 2e-4 of its size
//   int8 fours    8 bits each; 7e-3
//
// A left factor is rows of x or h, rounded at every call with one scale for each row, its largest magnitude. A right
// factor is a kernel, rounded when it is packed with one scale for each column. Both factors consist of words of 32 bits,
// which hold 2 or 4 elements of the depth. Elements are grouped so that packing needs no shuffles: of a group of n words
// (V = `vector_length`, at the end what is left) word w holds the elements w, n + w, 2n + w, ...
//
// Right factors are gate panels of words: [block][words of depth][W].
//
// This header is all that these kernels and their callers share. It defines no function.
#pragma once

#include "cpu/kernel_table.h"

namespace lstmfast {

// Sums are added to the float32 result after pieces of so many words: int16 sums could overflow after more, and 128 rows
// of a panel stay in L1.
constexpr Index kDotPiece = 128;

// Rows and columns with a larger magnitude, or one that is not finite, are not rounded: products of two that are cannot
// overflow. Those smaller than kDotSmallest count as zero.
constexpr float kDotLargest = 0x1p48f, kDotSmallest = 0x1p-100f;

// Left factor: rows of words from a call's row_begin on. Kernels read up to `rows_read_at_once` - 1 rows after the last,
// and rows to the end of 16 words; what is there does not matter.
struct DotRows {
  const int* words;
  Index stride;         // from one row to the next
  const float* scales;  // one of each row
};

// Right factor: gate panels.
struct DotPanels {
  const int* words;
  const int* starts;    // [block][piece][W]: what the sums of a piece start with; null: zero
  const float* scales;  // [block][W]
};
struct DotPanelsOut {
  int *words, *starts;
  float* scales;
};

struct DotStepArgs {
  StepForwardArgs<float> step;  // its x, h_prev and panels are not read
  DotRows x, h_prev;
  DotPanels input, recurrent;
};

struct DotGateProductArgs {
  GateProductArgs<float> product;  // its x and panels are not read
  DotRows x;
  DotPanels input;
};

struct DotKernels {
  int elements_per_word;
  bool needs_starts;
  bool faster_than_float32;  // whether the CPU has an instruction for these products
  Index rows_read_at_once;   // 16 in tiles of AMX, 1 without them

  // Words [count][stride] and scales of rows. Returns false if a row was not rounded: its scale is NaN.
  bool (*pack_rows)(const float* const* rows, Index count, Index depth, int* words, Index stride, float* scales);
  // A right factor from gate panels of float32. Returns false if a column cannot be rounded; the output is then undefined.
  bool (*pack_gates)(const float* panels, Index depth, Index blocks, const DotPanelsOut& out);

  void (*step_forward)(const DotStepArgs&);
  void (*variant_step_forward)(const DotStepArgs&);
  void (*gate_product)(const DotGateProductArgs&);
  // z += x·weights in float32, with the rounded weights: for a row that was not rounded. A block of z is `z_block_stride`
  // from the next, and z is that of block 0.
  void (*add_unrounded_row)(const float* x, Index depth, const DotPanels& weights, Range blocks, float* z,
                            Index z_block_stride);
};

struct DotKernelSet {
  DotKernels int16, int8;
};

}  // namespace lstmfast

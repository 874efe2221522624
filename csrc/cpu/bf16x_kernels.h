// bf16x products: float32 matrices multiplied on a unit that multiplies bfloat16 and adds in float32: tiles of
// AMX, or dot products of AVX512_BF16.
// A float is the sum of up to three bfloat16 of 8 bits each. `parts` is the number kept, and decides how many products
// of parts are added:
//
//   parts 1   1 product    "medium"    error of a result about 2e-3 of its size
//   parts 2   3 products   "high"      5e-6
//   parts 3   6 products   "highest"   1e-7: less than a plain float32 sum's
//
// These kernels and their callers share only this header. It defines no function.
//
// Both factors are packed first: cut into tiles of kBf16xDepth elements of depth and kBf16xRows rows (left) or
// kBf16xColumns columns (right), split, and padded with zeros in every direction:
//
//   [tile of rows or columns][tile of depth][part][16 x 64 bytes]
//
// bf16x_sizes.h has their sizes; they start on a cache line. The columns of a gate matrix [., 4*hidden] are
// taken in the order of gate panels with 16 lanes: column tile 4*u + gate holds units [16*u, 16*u + 16) of that gate.
//
// Every packing function returns whether all its values may take this path: finite, and at most kBf16xLargest. If not,
// the packed factor must not be used: do the whole call with the kernels of KernelTable, so that special values do not
// depend on the engine. Products of values that may take it overflow neither here nor there. Values and
// parts below 1.2e-38 (denormals) count as zero: an error of at most 1.2e-38 times the other factor.
//
// Sums run over the depth in tiles of kBf16xDepth from element 0 on; the same bits for every split of rows and columns,
// and for a depth in pieces that are whole tiles (`add`).
//
// Calls for a layer of `hidden` units and one thread's rows (bf16x_gemm.h does the loops over chunks):
//
//   weights, once per update   pack_gates(kernel, stride, depth, hidden, parts, right): input kernel, recurrent kernel
//                              pack_gates_transposed(kernel, stride, columns, hidden, parts, right): for d_h and d_x
//   input product, all rows    bf16x_rows_to_gates: init = bias or looked-up rows -> z in gate panels
//   recurrent product          pack_rows(h_prev) and to_gates with init = null: z += h_prev·R for the step's rows; then the
//                              gate epilogue starts from z
//   step backward              pack_rows(d_gates_next: gate blocks, 64, block stride), right = R transposed, to_rows: d_h
//   d_x                        bf16x_rows_to_rows: the same with the input kernel transposed
//   weight gradients           bf16x_transposed_to_rows: x or h_prev by row pointers, d_gates in gate panels
#pragma once

#include "core/inline.h"
#include "core/views.h"

namespace lstmfast {

using Bfloat16 = unsigned short;

constexpr Index kBf16xRows = 16, kBf16xColumns = 16, kBf16xDepth = 32;
constexpr Index kBf16xTile = kBf16xRows * kBf16xDepth;  // elements of one part of one tile
constexpr int kBf16xMostParts = 3;
constexpr float kBf16xLargest = 0x1p48f;  // 2.8e14: its square times 2^31 of depth is still finite

// Rows of a left factor. Each consists of `depth_blocks` pieces of `block_length`, `block_stride` apart; if there are
// several, block_length is a multiple of 16. Plain rows are 1 piece; rows of gate panels are pieces of 64.
struct Bf16xRows {
  const float* const* rows;
  Index depth_blocks, block_length, block_stride;
};

// left [rows, depth] times right [depth, columns], both packed with as many parts.
struct Bf16xFactors {
  int parts;
  Index rows, depth;
  const Bfloat16 *left, *right;
  bool left_by_pairs = false;  // a left tile is 16 pairs of 16 rows instead of 16 rows of 16 pairs
};

// panels = init + left·right for gate blocks [block_begin, block_end).
struct Bf16xToGatesArgs {
  Bf16xFactors factors;
  Index block_begin, block_end;
  const float* const* init;  // [rows] -> the row's first gate block of starting values; null: the panels themselves
  Index init_block_stride;
  float* panels;  // gate panels of 16 lanes, from the product's first row on
  Index block_stride;
};

// out = start + left·right for column tiles [tile_begin, tile_end); start is out itself if `add`, else bias, else zero.
struct Bf16xToRowsArgs {
  Bf16xFactors factors;
  Index tile_begin, tile_end;
  float* const* rows;        // [rows] -> [columns]; or, if null,
  MatrixView<float> matrix;  // [rows, columns]
  Index columns;
  Index gate_hidden_size;  // > 0: right's columns are gate tiles, `columns` is 4 * that
  const float* bias;       // [columns] or null
  bool add;
};

struct Bf16xKernels {
  int most_parts;      // that the unit multiplies faster than float32 is
  bool left_by_pairs;  // the form in which pack_rows_transposed leaves its tiles

  // Left factors. Rows [0, count); or columns [begin, end) of `depth` rows, transposed.
  bool (*pack_rows)(const Bf16xRows&, Index count, int parts, Bfloat16* left);
  bool (*pack_rows_transposed)(const float* const* rows, Index depth, Index begin, Index end, int parts, Bfloat16* left);

  // Right factors.
  // kernel [depth, 4*hidden], gate tiles.
  bool (*pack_gates)(const float* kernel, Index stride, Index depth, Index hidden, int parts, Bfloat16* right);
  // kernel [columns, 4*hidden] transposed: ceil(hidden / 16) * 64 rows in the order of gate panels.
  bool (*pack_gates_transposed)(const float* kernel, Index stride, Index columns, Index hidden, int parts,
                                Bfloat16* right);
  // `depth` rows of `blocks` gate blocks of 16 lanes, gate tiles.
  bool (*pack_gate_panels)(const float* panels, Index block_stride, Index depth, Index blocks, int parts,
                           Bfloat16* right);
  bool (*pack)(const float* matrix, Index stride, Index depth, Index columns, int parts, Bfloat16* right);
  // matrix [columns, depth]
  bool (*pack_transposed)(const float* matrix, Index stride, Index columns, Index depth, int parts, Bfloat16* right);

  void (*to_gates)(const Bf16xToGatesArgs&);
  void (*to_rows)(const Bf16xToRowsArgs&);
};

}  // namespace lstmfast

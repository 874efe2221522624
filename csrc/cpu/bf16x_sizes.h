// Sizes of the packed factors of bf16x_kernels.h, and of the pieces in which large products are packed.
#pragma once

#include <algorithm>

#include "core/gates.h"
#include "cpu/bf16x_kernels.h"

namespace lstmfast {

struct Bf16xSizes {
  int parts;

  // Elements of a packed factor: `lines` are the rows of a left one, the columns of a right one.
  Index packed(Index lines, Index depth) const { return ceil_div(lines, kBf16xRows) * tile_stride(depth); }
  // The same for a right factor whose columns are gates, and the depth of one whose rows are.
  Index packed_gates(Index hidden, Index depth) const { return packed(gate_depth(hidden), depth); }
  static Index gate_depth(Index hidden) { return ceil_div(hidden, kBf16xColumns) * kGateCount * kBf16xColumns; }
  // From one tile of rows or columns to the next.
  Index tile_stride(Index depth) const { return ceil_div(depth, kBf16xDepth) * parts * kBf16xTile; }

  // Rows of a left factor that stay in an L2 of 2 MB while all columns pass over them: at least two tiles of rows.
  Index rows_at_once(Index depth) const {
    return std::max<Index>(kLeftElements / std::max<Index>(tile_stride(depth), 1), 2) / 2 * 2 * kBf16xRows;
  }
  // The same for the depth of a transposed product with `rows` results a column. Not below 256: between two pieces of
  // depth, results wait in memory.
  Index depth_at_once(Index rows) const {
    const Index tiles = std::max<Index>(ceil_div(rows, kBf16xRows), 1) * parts * kBf16xTile;
    return std::max<Index>(kLeftElements / tiles, kSmallestDepth / kBf16xDepth) * kBf16xDepth;
  }

 private:
  static constexpr Index kLeftElements = Index{1} << 19;  // 1 MB
  static constexpr Index kSmallestDepth = 256;
};

}  // namespace lstmfast

// The loops over chunks: pack a chunk of the left factor, multiply it by all of the right one, go on to the next.
#include "cpu/split_product.h"

#include <algorithm>

#include "cpu/split_sizes.h"

namespace lstmfast {
namespace {

// multiply(begin, end) for chunks of rows, each packed in workspace.left.
template <typename Multiply>
bool for_each_chunk(const SplitKernels& k, const SplitRows& a, const SplitFactors& factors, SplitWorkspace& workspace,
                    const Multiply& multiply) {
  const SplitSizes sizes{factors.parts};
  const Index chunk = std::min(sizes.rows_at_once(factors.depth), factors.rows);
  Bfloat16* left = workspace.left.resize(sizes.packed(chunk, factors.depth));
  for (Index row = 0; row < factors.rows; row += chunk) {
    const Index end = std::min(row + chunk, factors.rows);
    const SplitRows rows{a.rows + row, a.depth_blocks, a.block_length, a.block_stride};
    if (!k.pack_rows(rows, end - row, factors.parts, left)) return false;
    multiply(row, SplitFactors{factors.parts, end - row, factors.depth, left, factors.right});
  }
  return true;
}

}  // namespace

bool split_rows_to_gates(const SplitKernels& k, const SplitRows& a, SplitToGatesArgs product, SplitWorkspace& workspace) {
  return for_each_chunk(k, a, product.factors, workspace, [&](Index row, const SplitFactors& factors) {
    SplitToGatesArgs mine = product;
    mine.factors = factors;
    if (product.init) mine.init += row;
    mine.panels += row * kGateCount * kSplitColumns;
    k.to_gates(mine);
  });
}

bool split_rows_to_rows(const SplitKernels& k, const SplitRows& a, SplitToRowsArgs product, SplitWorkspace& workspace) {
  return for_each_chunk(k, a, product.factors, workspace, [&](Index row, const SplitFactors& factors) {
    SplitToRowsArgs mine = product;
    mine.factors = factors;
    if (product.rows)
      mine.rows += row;
    else
      mine.matrix.data = product.matrix.row(row);
    k.to_rows(mine);
  });
}

bool split_transposed_to_rows(const SplitKernels& k, const SplitTransposedArgs& args, SplitWorkspace& workspace) {
  const SplitSizes sizes{args.parts};
  const Index m = args.m_end - args.m_begin;
  const Index chunk = std::min(sizes.depth_at_once(m), std::max<Index>(args.rows, 1));
  const Index first_tile = args.panels ? args.block_begin * kGateCount : 0;
  const Index blocks = args.panels ? args.block_end - args.block_begin : 0;
  SplitToRowsArgs product{};
  product.tile_begin = first_tile;
  product.tile_end = args.panels ? args.block_end * kGateCount : ceil_div(args.columns, kSplitColumns);
  product.matrix = args.out;
  product.columns = args.columns;
  product.gate_hidden_size = args.gate_hidden_size;
  Bfloat16* left = workspace.left.resize(sizes.packed(m, chunk));
  // Where the caller wants some gate blocks, the others have a place here too, but nobody touches it.
  Bfloat16* right = workspace.right.resize(product.tile_end * sizes.tile_stride(chunk));
  Index row = 0;
  do {
    const Index depth = std::min(chunk, args.rows - row);
    bool safe = k.pack_rows_transposed(args.a + row, depth, args.m_begin, args.m_end, args.parts, left);
    if (args.panels)
      safe &= k.pack_gate_panels(args.panels + row * kGateCount * kSplitColumns, args.panel_block_stride, depth, blocks,
                                 args.parts, right + first_tile * sizes.tile_stride(depth));
    else
      safe &= k.pack(args.b.row(row), args.b.stride, depth, args.columns, args.parts, right);
    if (!safe) return false;
    product.factors = {args.parts, m, depth, left, right};
    product.add = args.add || row > 0;
    k.to_rows(product);
    row += chunk;
  } while (row < args.rows);
  return true;
}

}  // namespace lstmfast

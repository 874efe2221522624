// The loops over chunks: pack a chunk of the left factor, multiply it by all of the right one, repeat.
#include "cpu/bf16x_gemm.h"

#include <algorithm>

#include "cpu/bf16x_sizes.h"

namespace lstmfast {
namespace {

// multiply(begin, end) for chunks of rows, each packed in workspace.left.
template <typename Multiply>
bool for_each_chunk(const Bf16xKernels& k, const Bf16xRows& a, const Bf16xFactors& factors, Bf16xWorkspace& workspace,
                    const Multiply& multiply) {
  const Bf16xSizes sizes{factors.parts};
  const Index chunk = std::min(sizes.rows_at_once(factors.depth), factors.rows);
  Bfloat16* left = workspace.left.resize(sizes.packed(chunk, factors.depth));
  for (Index row = 0; row < factors.rows; row += chunk) {
    const Index end = std::min(row + chunk, factors.rows);
    const Bf16xRows rows{a.rows + row, a.depth_blocks, a.block_length, a.block_stride};
    if (!k.pack_rows(rows, end - row, factors.parts, left)) return false;
    multiply(row, Bf16xFactors{factors.parts, end - row, factors.depth, left, factors.right});
  }
  return true;
}

}  // namespace

bool bf16x_rows_to_gates(const Bf16xKernels& k, const Bf16xRows& a, Bf16xToGatesArgs product,
                         Bf16xWorkspace& workspace) {
  return for_each_chunk(k, a, product.factors, workspace, [&](Index row, const Bf16xFactors& factors) {
    Bf16xToGatesArgs mine = product;
    mine.factors = factors;
    if (product.init) mine.init += row;
    mine.panels += row * kGateCount * kBf16xColumns;
    k.to_gates(mine);
  });
}

bool bf16x_rows_to_rows(const Bf16xKernels& k, const Bf16xRows& a, Bf16xToRowsArgs product, Bf16xWorkspace& workspace) {
  return for_each_chunk(k, a, product.factors, workspace, [&](Index row, const Bf16xFactors& factors) {
    Bf16xToRowsArgs mine = product;
    mine.factors = factors;
    if (product.rows)
      mine.rows += row;
    else
      mine.matrix.data = product.matrix.row(row);
    k.to_rows(mine);
  });
}

bool bf16x_transposed_to_rows(const Bf16xKernels& k, const Bf16xTransposedArgs& args, Bf16xWorkspace& workspace) {
  const Bf16xSizes sizes{args.parts};
  const Index m = args.m_end - args.m_begin;
  const Index chunk = std::min(sizes.depth_at_once(m), std::max<Index>(args.rows, 1));
  const Index first_tile = args.panels ? args.block_begin * kGateCount : 0;
  const Index blocks = args.panels ? args.block_end - args.block_begin : 0;
  Bf16xToRowsArgs product{};
  product.tile_begin = first_tile;
  product.tile_end = args.panels ? args.block_end * kGateCount : ceil_div(args.columns, kBf16xColumns);
  product.matrix = args.out;
  product.columns = args.columns;
  product.gate_hidden_size = args.gate_hidden_size;
  Bfloat16* left = workspace.left.resize(sizes.packed(m, chunk));
  // If the caller wants only some gate blocks, the others have space here too, which stays unused.
  Bfloat16* right = workspace.right.resize(product.tile_end * sizes.tile_stride(chunk));
  Index row = 0;
  do {
    const Index depth = std::min(chunk, args.rows - row);
    bool safe = k.pack_rows_transposed(args.a + row, depth, args.m_begin, args.m_end, args.parts, left);
    if (args.panels)
      safe &= k.pack_gate_panels(args.panels + row * kGateCount * kBf16xColumns, args.panel_block_stride, depth, blocks,
                                 args.parts, right + first_tile * sizes.tile_stride(depth));
    else
      safe &= k.pack(args.b.row(row), args.b.stride, depth, args.columns, args.parts, right);
    if (!safe) return false;
    product.factors = {args.parts, m, depth, left, right, k.left_by_pairs};
    product.add = args.add || row > 0;
    k.to_rows(product);
    row += chunk;
  } while (row < args.rows);
  return true;
}

}  // namespace lstmfast

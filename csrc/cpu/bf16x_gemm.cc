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

// Equally spaced rows as a matrix: tiles of one are added to in place, those of rows anywhere through a copy.
void find_matrix(Bf16xToRowsArgs& product) {
  const Index rows = product.factors.rows;
  if (product.rows == nullptr || rows < 2) return;
  const Index stride = product.rows[1] - product.rows[0];
  for (Index r = 1; r < rows; ++r)
    if (product.rows[r] - product.rows[r - 1] != stride) return;
  if (stride < product.columns) return;
  product.matrix = {product.rows[0], stride};
  product.rows = nullptr;
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
  find_matrix(product);
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

bool bf16x_transposed_to_rows(const Bf16xKernels& k, const Bf16xTransposedArgs& args, const TransposedLeft<float>* left,
                              int count, Bf16xWorkspace& workspace) {
  const Bf16xSizes sizes{args.parts};
  Index most = 0;
  for (int i = 0; i < count; ++i) most = std::max(most, left[i].m_end - left[i].m_begin);
  const Index chunk = std::min(sizes.depth_at_once(most), std::max<Index>(args.rows, 1));
  const Index first_tile = args.panels ? args.block_begin * kGateCount : 0;
  const Index blocks = args.panels ? args.block_end - args.block_begin : 0;
  Bf16xToRowsArgs product{};
  product.tile_begin = first_tile;
  product.tile_end = args.panels ? args.block_end * kGateCount : ceil_div(args.columns, kBf16xColumns);
  product.columns = args.columns;
  product.gate_hidden_size = args.gate_hidden_size;
  Bfloat16* packed = workspace.left.resize(sizes.packed(most, chunk));
  // If the caller wants only some gate blocks, the others have space here too, which stays unused.
  Bfloat16* right = workspace.right.resize(product.tile_end * sizes.tile_stride(chunk));
  Index row = 0;
  do {
    const Index depth = std::min(chunk, args.rows - row);
    bool safe = args.panels
                    ? k.pack_gate_panels(args.panels + row * kGateCount * kBf16xColumns, args.panel_block_stride, depth,
                                         blocks, args.parts, right + first_tile * sizes.tile_stride(depth))
                    : k.pack(args.b.row(row), args.b.stride, depth, args.columns, args.parts, right);
    for (int i = 0; i < count && safe; ++i) {
      const auto& [a, m_begin, m_end, out] = left[i];
      safe = k.pack_rows_transposed(a + row, depth, m_begin, m_end, args.parts, packed);
      product.factors = {args.parts, m_end - m_begin, depth, packed, right, k.left_by_pairs};
      product.matrix = {out.row(m_begin), out.stride};
      product.add = args.add || row > 0;
      if (safe) k.to_rows(product);
    }
    if (!safe) return false;
    row += chunk;
  } while (row < args.rows);
  return true;
}

}  // namespace lstmfast

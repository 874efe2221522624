// See transpose.h.
#include "core/transpose.h"

#include <algorithm>
#include <cstring>

namespace lstmfast {
namespace {

// Sides of the blocks that are turned around in registers: four of baseline vectors (SSE2, NEON) of float.
constexpr Index kBlock = 4;
// Rows of out that are written side by side. More than 8 do not fit in L1 where rows are a multiple of 4 KB apart.
constexpr Index kTile = 8;

using Float4 = float __attribute__((vector_size(16)));

void transpose_block(MatrixView<const float> a, Index r, Index c, MatrixView<float> out) {
  Float4 row[kBlock];
  for (Index i = 0; i < kBlock; ++i) std::memcpy(&row[i], a.row(r + i) + c, sizeof(Float4));
  const Float4 low01 = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5);
  const Float4 high01 = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7);
  const Float4 low23 = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
  const Float4 high23 = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
  const Float4 turned[kBlock] = {
      __builtin_shufflevector(low01, low23, 0, 1, 4, 5), __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
      __builtin_shufflevector(high01, high23, 0, 1, 4, 5), __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
  for (Index i = 0; i < kBlock; ++i) std::memcpy(out.row(c + i) + r, &turned[i], sizeof(Float4));
}

void transpose_block(MatrixView<const double> a, Index r, Index c, MatrixView<double> out) {
  for (Index i = 0; i < kBlock; ++i)
    for (Index j = 0; j < kBlock; ++j) out.row(c + i)[r + j] = a.row(r + j)[c + i];
}

}  // namespace

template <typename T>
void transpose(MatrixView<const T> a, Index rows, Index columns, MatrixView<T> out) {
  const Index whole_rows = rows / kBlock * kBlock, whole_columns = columns / kBlock * kBlock;
  for (Index first = 0; first < whole_columns; first += kTile)
    for (Index r = 0; r < whole_rows; r += kBlock)
      for (Index c = first; c < std::min(first + kTile, whole_columns); c += kBlock) transpose_block(a, r, c, out);
  for (Index c = 0; c < columns; ++c)
    for (Index r = c < whole_columns ? whole_rows : 0; r < rows; ++r) out.row(c)[r] = a.row(r)[c];
}

template void transpose<float>(MatrixView<const float>, Index, Index, MatrixView<float>);
template void transpose<double>(MatrixView<const double>, Index, Index, MatrixView<double>);

}  // namespace lstmfast

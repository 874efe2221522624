// Copies and adds rows: bound by memory, whose speed plain loops reach.
#include "nn/embedding.h"

#include <algorithm>

namespace lstmfast {

template <typename T>
void embedding_gather(MatrixView<const T> table, const int* ids, Index rows, Index columns, MatrixView<T> out) {
  for (Index r = 0; r < rows; ++r) std::copy_n(table.row(ids[r]), columns, out.row(r));
}

template <typename T>
void embedding_scatter(MatrixView<const T> d_out, const int* ids, Index rows, Index columns, Index vocabulary,
                       bool add, MatrixView<T> d_table) {
  for (Index id = 0; id < vocabulary && !add; ++id) std::fill_n(d_table.row(id), columns, T(0));
  for (Index r = 0; r < rows; ++r) {
    T* sum = d_table.row(ids[r]);
    const T* row = d_out.row(r);
    for (Index j = 0; j < columns; ++j) sum[j] += row[j];
  }
}

#define LSTMFAST_INSTANTIATE(T)                                                                          \
  template void embedding_gather(MatrixView<const T>, const int*, Index, Index, MatrixView<T>);          \
  template void embedding_scatter(MatrixView<const T>, const int*, Index, Index, Index, bool, MatrixView<T>);
LSTMFAST_INSTANTIATE(float)
LSTMFAST_INSTANTIATE(double)
#undef LSTMFAST_INSTANTIATE

}  // namespace lstmfast

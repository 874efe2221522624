// Rows of a table by token id, and its gradient: a sum of rows in their given order.
#pragma once

#include "core/views.h"

namespace lstmfast {

// out[r, :] = table[ids[r], :]
template <typename T>
void embedding_gather(MatrixView<const T> table, const int* ids, Index rows, Index columns, MatrixView<T> out);

// d_table = 0, unless `add`; d_table[ids[r], :] += d_out[r, :]
template <typename T>
void embedding_scatter(MatrixView<const T> d_out, const int* ids, Index rows, Index columns, Index vocabulary,
                       bool add, MatrixView<T> d_table);

}  // namespace lstmfast

// Sizes, in elements, of the packed layouts of kernel_table.h with the vectors of one ISA.
#pragma once

#include "core/gates.h"
#include "cpu/kernel_table.h"

namespace lstmfast {

template <typename T>
struct PanelSizes {
  Index vector_length;

  explicit PanelSizes(const KernelTable<T>& k) : vector_length(k.vector_length) {}
  Index gate_blocks(Index hidden) const { return ceil_div(hidden, vector_length); }
  Index gate_width() const { return kGateCount * vector_length; }
  Index gate_depth(Index hidden) const { return gate_blocks(hidden) * gate_width(); }  // columns of padded gates
  Index panels(Index columns) const { return ceil_div(columns, kPanelVectors * vector_length); }
  Index padded(Index columns) const { return ceil_div(columns, vector_length) * vector_length; }
};

}  // namespace lstmfast

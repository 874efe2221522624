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
  Range units_of_blocks(Range blocks, Index hidden) const { return units_of(blocks, vector_length, hidden); }
  Range units_of_panels(Range panels, Index columns) const {
    return units_of(panels, kPanelVectors * vector_length, columns);
  }
  Index padded(Index columns) const { return ceil_div(columns, vector_length) * vector_length; }

 private:
  static Range units_of(Range parts, Index width, Index columns) {
    const auto limited = [&](Index part) { return part * width < columns ? part * width : columns; };
    return {limited(parts.begin), limited(parts.end)};
  }
};

}  // namespace lstmfast

// Rounding to bfloat16, two gates to a word; kernel_table.h has the layout.
#include "lstm/bfloat16_weights.h"

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/gates.h"
#include "lstm/packed_weights.h"

namespace lstmfast {
namespace {

std::uint32_t to_bfloat16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (std::isnan(value)) return (bits >> 16) | 0x40;  // rounding could carry a NaN into infinity
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

}  // namespace

void BFloat16Gates::pack(const KernelTable<float>& k, MatrixView<const float> kernel, Index rows, Index hidden) {
  const PanelSizes<float> sizes(k);
  const Index V = sizes.vector_length, gate_rows = sizes.gate_blocks(hidden) * rows;
  PackedGates<float> packed;
  packed.pack(k, {kernel, rows}, hidden);
  const float* gates = packed.data();
  int* words = words_.resize(gate_rows * kGateCount / 2 * V);
  for (Index row = 0; row < gate_rows; ++row, gates += kGateCount * V)
    for (int pair = 0; pair < kGateCount / 2; ++pair)
      for (Index unit = 0; unit < V; ++unit)
        *words++ = static_cast<int>(to_bfloat16(gates[2 * pair * V + unit]) |
                                    to_bfloat16(gates[(2 * pair + 1) * V + unit]) << 16);
}

}  // namespace lstmfast

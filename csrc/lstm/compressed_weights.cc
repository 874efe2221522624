// Rounding to bfloat16 and int8, and four gates to a word or two; kernel_table.h has the layouts.
#include "lstm/compressed_weights.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>

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

float scale_of(const float* weights, Index rows, Index stride) {
  float largest = 0;
  for (Index row = 0; row < rows; ++row) {
    const float size = std::abs(weights[row * stride]);
    if (!std::isfinite(size)) throw std::invalid_argument("kernel must be finite where weights are int8");
    largest = std::max(largest, size);
  }
  return largest / 127;
}

int to_int8(float value, float scale) {  // a scale so small that it is rounded itself may lead past the end
  return scale == 0 ? 0 : static_cast<int>(std::clamp(std::nearbyint(value / scale), -127.0f, 127.0f));
}

}  // namespace

void CompressedGates::pack(const KernelTable<float>& k, MatrixView<const float> kernel, Index rows, Index hidden,
                           WeightFormat format) {
  const PanelSizes<float> sizes(k);
  const Index blocks = sizes.gate_blocks(hidden), V = sizes.vector_length, W = sizes.gate_width();
  PackedGates<float> packed;
  packed.pack(k, {kernel, rows}, hidden);
  const float* weights = packed.data();
  const bool is_int8 = format == WeightFormat::kInt8;
  int* words = words_.resize(blocks * rows * V * (is_int8 ? 1 : 2));
  float* scales = is_int8 ? scales_.resize(blocks * W) : nullptr;
  for (Index block = 0; block < blocks; ++block, weights += rows * W) {
    if (is_int8)
      for (Index column = 0; column < W; ++column)
        scales[block * W + column] = scale_of(weights + column, rows, W);
    for (Index row = 0; row < rows; ++row) {
      const float* gates = weights + row * W;
      if (is_int8) {
        for (Index unit = 0; unit < V; ++unit) {
          std::uint32_t word = 0;
          for (int gate = kGateCount - 1; gate >= 0; --gate)
            word = (word << 8) + static_cast<std::uint32_t>(
                                     to_int8(gates[gate * V + unit], scales[block * W + gate * V + unit]));
          *words++ = static_cast<int>(word);
        }
      } else {
        for (int pair = 0; pair < kGateCount / 2; ++pair)
          for (Index unit = 0; unit < V; ++unit)
            *words++ = static_cast<int>(to_bfloat16(gates[2 * pair * V + unit]) |
                                        to_bfloat16(gates[(2 * pair + 1) * V + unit]) << 16);
      }
    }
  }
  for (Index i = 0; is_int8 && i < blocks * W; ++i) scales[i] /= 1 << 24;
}

}  // namespace lstmfast

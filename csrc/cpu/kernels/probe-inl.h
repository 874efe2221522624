// The peaks of the machine, for benches: independent multiply-adds, and reads without computation.
// No part of any LSTM. The caller takes the time (cpu/probes.cc).
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/kernels/vec-inl.h"

namespace lstmfast {
namespace {

// As many chains as a register tile has accumulators: at least latency x instructions per cycle of every CPU in
// question. Their starting values differ, or the compiler would merge them, and tend to 1: never denormal or infinite.
template <typename T>
LSTMFAST_NOINLINE Index fma_probe(Index rounds, T* sum) {
  const Vec<T> half = broadcast<T>(T(0.5));
  Vec<T> chains[kTileRows][kPanelVectors];
  for (int r = 0; r < kTileRows; ++r)
    for (int n = 0; n < kPanelVectors; ++n) chains[r][n] = broadcast<T>(T(r * kPanelVectors + n));
  for (Index round = 0; round < rounds; ++round)
    for (int r = 0; r < kTileRows; ++r)
      for (int n = 0; n < kPanelVectors; ++n) chains[r][n] = fused_multiply_add(chains[r][n], half, half);
  Vec<T> total{};
  for (int r = 0; r < kTileRows; ++r)
    for (int n = 0; n < kPanelVectors; ++n) total += chains[r][n];
  *sum = total[0];
  return rounds * kTileRows * kPanelVectors * kLanes<T> * 2;
}

template <typename T>
LSTMFAST_NOINLINE T read_probe(const T* data, Index count) {
  constexpr int kChains = 8;
  Vec<T> chains[kChains] = {};
  for (Index i = 0; i + kChains * kLanes<T> <= count; i += kChains * kLanes<T>)
    for (int n = 0; n < kChains; ++n) chains[n] += load(data + i + n * kLanes<T>);
  Vec<T> total{};
  for (int n = 0; n < kChains; ++n) total += chains[n];
  return total[0];
}

}  // namespace
}  // namespace lstmfast

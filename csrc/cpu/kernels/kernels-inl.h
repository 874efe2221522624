// The table of one ISA, filled from the one kernel source. The including .cc selects the ISA by defining, in an
// anonymous namespace of lstmfast: kVectorBytes, kTileRows and fused_multiply_add(a, b, c) for both vector types.
#pragma once

#include "cpu/kernels/bfloat16-inl.h"
#include "cpu/kernels/dot-inl.h"
#include "cpu/kernels/fingerprint-inl.h"
#include "cpu/kernels/layer_norm-inl.h"
#include "cpu/kernels/mask-inl.h"
#include "cpu/kernels/pack-inl.h"
#include "cpu/kernels/probe-inl.h"
#include "cpu/kernels/product-inl.h"
#include "cpu/kernels/step-inl.h"
#include "cpu/kernels/training-inl.h"
#include "cpu/kernels/unpacked-inl.h"

namespace lstmfast {
namespace {

template <typename T>
constexpr KernelTable<T> make_table() {
  KernelTable<T> t{};
  t.vector_length = static_cast<int>(kLanes<T>);
  t.tile_rows = kTileRows;
  t.pack_gate_rows = pack_gate_rows<T>;
  t.pack_gates_transposed = pack_gates_transposed<T>;
  t.pack_gate_columns = pack_gate_columns<T>;
  t.pack_gate_columns_transposed = pack_gate_columns_transposed<T>;
  t.pack = pack<T>;
  t.pack_transposed = pack_transposed<T>;
  t.transpose = transpose<T>;
  t.unpack_gates = unpack_gates<T>;
  t.step_forward = step_forward<T, PlainCell>;
  t.gate_product = gate_product<T>;
  t.step_backward = step_backward<T>;
  t.variant_step_forward = step_forward<T, VariantCell>;
  t.variant_step_backward = variant_step_backward<T>;
  t.peephole_gradients = peephole_gradients<T>;
  t.fill_mask = fill_mask<T>;
  t.complete_state_gradient = complete_state_gradient<T>;
  t.normalize_gates = normalize_gates<T>;
  t.normalize_gates_backward = normalize_gates_backward<T>;
  t.gate_gain_gradients = gate_gain_gradients<T>;
  t.normalized_cells = normalized_cells<T>;
  t.normalized_cells_backward = normalized_cells_backward<T>;
  t.multiply = multiply<T>;
  t.mix = mix<T>;
  t.product = product<T>;
  t.transposed_product = transposed_product<T>;
  t.add_row_product = add_row_product<T>;
  t.row_dot_products = row_dot_products<T>;
  t.outer_products = outer_products<T>;
  t.sum_gate_rows = sum_gate_rows<T>;
  t.sum_rows = sum_rows<T>;
  t.scatter_gate_rows = scatter_gate_rows<T>;
  t.softmax_cross_entropy = softmax_cross_entropy<T>;
  t.sum_of_squares = sum_of_squares<T>;
  t.optimizers = kOptimizers<T>;
  t.optimizer_count = sizeof(kOptimizers<T>) / sizeof(kOptimizers<T>[0]);
  t.fingerprint = fingerprint<T>;
  t.sigmoid = map<T, vector_sigmoid<T>>;
  t.tanh = map<T, vector_tanh<T>>;
  t.exp = map<T, vector_exp<T>>;
  t.fma_probe = fma_probe<T>;
  t.read_probe = read_probe<T>;
  return t;
}

constexpr Kernels kKernels{make_table<float>(),
                           make_table<double>(),
                           step_bfloat16,
                           &kDotKernels};

}  // namespace
}  // namespace lstmfast

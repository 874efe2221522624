// lstmfast._core.testing, bf16x products: one function for each form of call. Not API.
// Gate panels are arrays [blocks, rows, 64]. Every function returns whether the values may take this path; if not,
// outputs are undefined.
#include <algorithm>

#include "bindings/array_args.h"
#include "bindings/register.h"
#include "cpu/dispatch.h"
#include "cpu/bf16x_gemm.h"
#include "cpu/bf16x_sizes.h"

namespace lstmfast::bindings {
namespace {

constexpr Index kGateWidth = kGateCount * kBf16xColumns;

const Bf16xKernels& bf16x_kernels() {
  const Bf16xKernels* bf16x = current_kernels().bf16x;
  if (bf16x == nullptr) throw py::value_error(std::string("ISA '") + current_isa().name + "' has no bf16x products");
  return *bf16x;
}

int checked(int parts) {
  if (parts < 1 || parts > kBf16xMostParts) {
    throw py::value_error("parts must be 1, 2 or 3, got " + std::to_string(parts));
  }
  return parts;
}

// Rows of gate panels, as a left factor.
std::vector<const float*> panel_rows(SequenceView<const float> panels, Index rows) {
  std::vector<const float*> all(static_cast<std::size_t>(rows));
  for (Index r = 0; r < rows; ++r) all[r] = panels.row(0, r);
  return all;
}

template <typename T>
ArrayArg<T> panels_arg(const py::object& object, const char* name) {
  ArrayArg<T> panels(object, name);
  if (!panels) return panels;
  panels.must_have_ndim(3, "[blocks, rows, 64]");
  if (panels.size(2) != kGateWidth || (panels.size(1) > 1 && panels.stride(1) != kGateWidth))
    panels.fail("must have rows of 64 without gaps");
  return panels;
}

// out = (out if add, else bias or zero) + a·b; b is [columns, depth] if transposed. Rows of `out` are given by pointer,
// the last first, so that they are no matrix; or as a matrix. Column tiles [tile_begin, tile_end) only.
bool product(const py::object& a, const py::object& b, const py::object& out, int parts, const py::object& bias,
             bool transposed, bool add, bool by_pointer, Index tile_begin, Index tile_end) {
  const Bf16xKernels& k = bf16x_kernels();
  const ArrayArg<const float> a_arg(a, "a"), b_arg(b, "b"), bias_arg(bias, "bias");
  const ArrayArg<float> out_arg(out, "out");
  a_arg.must_have_ndim(2, "[rows, depth]");
  b_arg.must_have_ndim(2, "[depth, columns]");
  const Index rows = a_arg.size(0), depth = a_arg.size(1), columns = b_arg.size(transposed ? 0 : 1);
  b_arg.must_have_shape(transposed ? Shape{columns, depth} : Shape{depth, columns});
  out_arg.must_have_shape({rows, columns});
  bias_arg.must_have_shape({columns});
  Bf16xWorkspace workspace;
  AlignedBuffer<Bfloat16> right;
  const MatrixView<const float> b_view = b_arg.matrix();
  const auto pack = transposed ? k.pack_transposed : k.pack;
  Bfloat16* packed = right.resize(Bf16xSizes{checked(parts)}.packed(columns, depth));
  if (!pack(b_view.data, b_view.stride, transposed ? columns : depth, transposed ? depth : columns, parts, packed))
    return false;
  std::vector<const float*> a_rows = pointers(a_arg.matrix(), rows);
  std::vector<float*> out_rows = pointers(out_arg.matrix(), rows);
  if (by_pointer) {
    std::reverse(a_rows.begin(), a_rows.end());
    std::reverse(out_rows.begin(), out_rows.end());
  }
  Bf16xToRowsArgs args{};
  args.factors = {parts, rows, depth, nullptr, packed};
  args.tile_begin = tile_begin;
  args.tile_end = tile_end < 0 ? ceil_div(columns, kBf16xColumns) : tile_end;
  args.rows = by_pointer ? out_rows.data() : nullptr;
  args.matrix = out_arg.matrix();
  args.columns = columns;
  args.bias = bias_arg.contiguous();
  args.add = add;
  return bf16x_rows_to_rows(k, {a_rows.data(), 1, depth, 0}, args, workspace);
}

// panels = (init, or panels) + a·kernel for gate blocks [block_begin, block_end).
bool gates(const py::object& a, const py::object& kernel, const py::object& panels, int parts, const py::object& init,
           Index block_begin, Index block_end) {
  const Bf16xKernels& k = bf16x_kernels();
  const ArrayArg<const float> a_arg(a, "a"), kernel_arg(kernel, "kernel");
  const ArrayArg<float> panels_out = panels_arg<float>(panels, "panels");
  const ArrayArg<const float> init_arg = panels_arg<const float>(init, "init");
  a_arg.must_have_ndim(2, "[rows, depth]");
  kernel_arg.must_have_ndim(2, "[depth, 4*hidden]");
  const Index rows = a_arg.size(0), depth = a_arg.size(1), hidden = kernel_arg.size(1) / kGateCount;
  const Index blocks = ceil_div(hidden, kBf16xColumns);
  kernel_arg.must_have_shape({depth, kGateCount * hidden});
  panels_out.must_have_shape({blocks, rows, kGateWidth});
  init_arg.must_have_shape({blocks, rows, kGateWidth});
  Bf16xWorkspace workspace;
  AlignedBuffer<Bfloat16> right;
  Bfloat16* packed = right.resize(Bf16xSizes{checked(parts)}.packed_gates(hidden, depth));
  if (!k.pack_gates(kernel_arg.matrix().data, kernel_arg.matrix().stride, depth, hidden, parts, packed)) return false;
  const std::vector<const float*> a_rows = pointers(a_arg.matrix(), rows);
  const std::vector<const float*> init_rows =
      init_arg ? panel_rows(init_arg.sequence(), rows) : std::vector<const float*>{};
  Bf16xToGatesArgs args{};
  args.factors = {parts, rows, depth, nullptr, packed};
  args.block_begin = block_begin;
  args.block_end = block_end < 0 ? blocks : block_end;
  args.init = init_arg ? init_rows.data() : nullptr;
  args.init_block_stride = init_arg ? init_arg.stride(0) : 0;
  args.panels = panels_out.data();
  args.block_stride = panels_out.stride(0);
  return bf16x_rows_to_gates(k, {a_rows.data(), 1, depth, 0}, args, workspace);
}

// out = panels·kernelᵀ: gradients of gates back to a layer's input or earlier state. kernel is [columns, 4*hidden].
bool gates_back(const py::object& panels, const py::object& kernel, const py::object& out, int parts) {
  const Bf16xKernels& k = bf16x_kernels();
  const ArrayArg<const float> panels_in = panels_arg<const float>(panels, "panels"), kernel_arg(kernel, "kernel");
  const ArrayArg<float> out_arg(out, "out");
  kernel_arg.must_have_ndim(2, "[columns, 4*hidden]");
  const Index rows = panels_in.size(1), columns = kernel_arg.size(0), hidden = kernel_arg.size(1) / kGateCount;
  const Index blocks = ceil_div(hidden, kBf16xColumns), depth = Bf16xSizes::gate_depth(hidden);
  panels_in.must_have_shape({blocks, rows, kGateWidth});
  out_arg.must_have_shape({rows, columns});
  Bf16xWorkspace workspace;
  AlignedBuffer<Bfloat16> right;
  Bfloat16* packed = right.resize(Bf16xSizes{checked(parts)}.packed(columns, depth));
  const MatrixView<const float> kernel_view = kernel_arg.matrix();
  if (!k.pack_gates_transposed(kernel_view.data, kernel_view.stride, columns, hidden, parts, packed)) return false;
  const std::vector<const float*> rows_in = panel_rows(panels_in.sequence(), rows);
  const std::vector<float*> out_rows = pointers(out_arg.matrix(), rows);
  Bf16xToRowsArgs args{};
  args.factors = {parts, rows, depth, nullptr, packed};
  args.tile_end = ceil_div(columns, kBf16xColumns);
  args.rows = out_rows.data();
  args.columns = columns;
  return bf16x_rows_to_rows(k, {rows_in.data(), blocks, kGateWidth, panels_in.stride(0)}, args, workspace);
}

// out[m_begin:m_end] = (aᵀ·b)[m_begin:m_end]; b is [rows, columns], or gate panels of `hidden` units, of which the gate
// blocks [block_begin, block_end).
bool transposed_product(const py::object& a, const py::object& b, const py::object& out, int parts, Index hidden,
                        Index m_begin, Index m_end, Index block_begin, Index block_end) {
  const Bf16xKernels& k = bf16x_kernels();
  const ArrayArg<const float> a_arg(a, "a"), b_arg(b, "b");
  const ArrayArg<float> out_arg(out, "out");
  a_arg.must_have_ndim(2, "[rows, m]");
  const Index rows = a_arg.size(0), m = a_arg.size(1);
  const std::vector<const float*> a_rows = pointers(a_arg.matrix(), rows);
  Bf16xTransposedArgs args{};
  args.parts = checked(parts);
  args.rows = rows;
  if (hidden > 0) {
    const ArrayArg<const float> panels = panels_arg<const float>(b, "b");
    const Index blocks = ceil_div(hidden, kBf16xColumns);
    panels.must_have_shape({blocks, rows, kGateWidth});
    args.block_begin = block_begin;
    args.block_end = block_end < 0 ? blocks : block_end;
    args.panels = panels.data() + args.block_begin * panels.stride(0);
    args.panel_block_stride = panels.stride(0);
    args.columns = kGateCount * hidden;
    args.gate_hidden_size = hidden;
  } else {
    b_arg.must_have_ndim(2, "[rows, columns]");
    args.columns = b_arg.size(1);
    b_arg.must_have_shape({rows, args.columns});
    args.b = b_arg.matrix();
  }
  out_arg.must_have_shape({m, args.columns});
  const TransposedLeft<float> left{a_rows.data(), m_begin, m_end < 0 ? m : m_end, out_arg.matrix()};
  Bf16xWorkspace workspace;
  return bf16x_transposed_to_rows(k, args, &left, 1, workspace);
}

}  // namespace

void register_testing_bf16x(py::module_& testing) {
  using py::arg;
  testing.def("bf16x_most_parts", [] { return current_kernels().bf16x ? current_kernels().bf16x->most_parts : 0; });
  testing.def("bf16x_product", product, arg("a"), arg("b"), arg("out"), arg("parts"), py::kw_only(),
              arg("bias") = py::none(), arg("transposed") = false, arg("add") = false, arg("by_pointer") = true,
              arg("tile_begin") = 0, arg("tile_end") = -1);
  testing.def("bf16x_gates", gates, arg("a"), arg("kernel"), arg("panels"), arg("parts"), py::kw_only(),
              arg("init") = py::none(), arg("block_begin") = 0, arg("block_end") = -1);
  testing.def("bf16x_gates_back", gates_back, arg("panels"), arg("kernel"), arg("out"), arg("parts"));
  testing.def("bf16x_transposed_product", transposed_product, arg("a"), arg("b"), arg("out"), arg("parts"),
              py::kw_only(), arg("hidden") = 0, arg("m_begin") = 0, arg("m_end") = -1, arg("block_begin") = 0,
              arg("block_end") = -1);
}

}  // namespace lstmfast::bindings

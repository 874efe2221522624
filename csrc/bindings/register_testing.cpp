// lstmfast._core.testing: functions for the tests. Not API.
#include <pybind11/stl.h>

#include <iterator>

#include "bindings/array_args.h"
#include "bindings/register.h"
#include "cpu/cpu_features.h"
#include "cpu/dispatch.h"
#include "lstm/fingerprint.h"
#include "lstm/masks.h"
#include "lstm/products.h"

namespace lstmfast::bindings {
namespace {

void activations(const std::string& kind, const py::object& x, const py::object& out) {
  with_float_type(x, "x", [&](auto type) {
    using T = decltype(type);
    const ArrayArg<const T> x_arg(x, "x");
    x_arg.must_have_ndim(1, "[values]");
    T* out_data = ArrayArg<T>(out, "out").must_have_shape({x_arg.size(0)}).contiguous();
    const KernelTable<T>& k = kernels<T>();
    auto* function = kind == "sigmoid" ? k.sigmoid : kind == "tanh" ? k.tanh : kind == "exp" ? k.exp : nullptr;
    if (function == nullptr) throw py::value_error("kind must be sigmoid, tanh or exp, got " + kind);
    function(x_arg.contiguous(), out_data, x_arg.size(0));
  });
}

// z [rows, 4*hidden] = bias + x·kernel, of factors rounded to "int16" or "int8".
void rounded_product(const py::object& x, const py::object& kernel, const py::object& bias, const py::object& z,
                     const std::string& format) {
  const ArrayArg<const float> x_arg(x, "x"), kernel_arg(kernel, "kernel");
  const Index rows = x_arg.must_have_ndim(2, "[rows, depth]").size(0), depth = x_arg.size(1);
  const Index columns = kernel_arg.must_have_ndim(2, "[depth, 4*hidden_size]").size(1), hidden = columns / kGateCount;
  kernel_arg.must_have_shape({depth, kGateCount * hidden});
  const KernelTable<float>& k = kernels<float>();
  const PanelSizes<float> sizes(k);
  const auto products = make_dot_products(k, format == "int8" ? current_kernels().dots->int8
                                                              : current_kernels().dots->int16,
                                          make_fma_products<float>(k));
  products->prepare(1);
  if (!products->pack({kernel_arg.matrix(), depth}, {{}, 0}, hidden))
    throw py::value_error("kernel cannot be rounded");
  StartingValues<float> init;
  init.pack_bias(k, ArrayArg<const float>(bias, "bias").must_have_shape({columns}).contiguous(), 0.0f, hidden);
  AlignedBuffer<float> panels;
  GateProductArgs<float> product{};
  product.row_end = rows;
  product.block_end = sizes.gate_blocks(hidden);
  product.init = init.of_all();
  const std::vector<const float*> x_rows = pointers(x_arg.matrix(), rows);
  product.x = x_rows.data();
  product.input_size = depth;
  product.z_block_stride = rows * sizes.gate_width();
  product.z = panels.resize(product.block_end * product.z_block_stride);
  products->multiply_to_gates(Products<float>::Kernel::kInput, product, 0);
  const std::vector<float*> z_rows = pointers(ArrayArg<float>(z, "z").must_have_shape({rows, columns}).matrix(), rows);
  k.unpack_gates(product.z, product.z_block_stride, hidden, z_rows.data(), rows);
}

// out [rows, units]: the factors of a dropout, or of a zoneout for purposes 1 and 2, of the rows from 0 on.
void mask(const py::object& out, unsigned long long seed, unsigned layer, unsigned purpose, unsigned step, double rate) {
  with_float_type(out, "out", [&](auto type) {
    using T = decltype(type);
    const ArrayArg<T> arg(out, "out");
    const MatrixView<T> rows = arg.must_have_ndim(2, "[rows, units]").matrix();
    MaskArgs<T> args = mask_of<T>({true, seed, layer, 0}, static_cast<MaskPurpose>(purpose), rate);
    std::vector<MaskRow> numbers;
    for (Index r = 0; r < arg.size(0); ++r) numbers.push_back({static_cast<unsigned>(r), step});
    args.rows = numbers.data();
    args.row_count = arg.size(0);
    args.unit_end = arg.size(1);
    args.factors = rows.data;
    args.stride = rows.stride;
    kernels<T>().fill_mask(args);
  });
}

py::tuple keys_of_fingerprints() {
  const FingerprintKeys& keys = fingerprint_keys();
  return py::make_tuple(py::make_tuple(keys.points[0], keys.points[1]),
                        py::array_t<unsigned>(static_cast<Index>(std::size(keys.words)), keys.words));
}

}  // namespace

void register_testing(py::module_& module) {
  py::module_ testing = module.def_submodule("testing", "Functions for the tests of lstmfast. Not API.");
  testing.def("set_isa", [](const std::string& name) { set_isa(parse_isa(name)); }, py::arg("name"));
  testing.def("activations", activations, py::arg("kind"), py::arg("x"), py::arg("out"));
  testing.def("cpu_features", named_cpu_features);
  testing.def("cpu_features_by_compiler", cpu_features_by_compiler);
  testing.def("fingerprint_keys", keys_of_fingerprints);
  testing.def("mask", mask, py::arg("out"), py::arg("seed"), py::arg("layer"), py::arg("purpose"), py::arg("step"),
              py::arg("rate"));
  testing.def("rounded_product", rounded_product, py::arg("x"), py::arg("kernel"), py::arg("bias"), py::arg("z"),
              py::arg("format"));
  register_testing_bf16x(testing);
}

}  // namespace lstmfast::bindings

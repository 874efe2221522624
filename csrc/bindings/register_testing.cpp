// lstmfast._core.testing: doors for the tests. Not API.
#include <iterator>

#include "bindings/array_args.h"
#include "bindings/register.h"
#include "cpu/dispatch.h"
#include "lstm/fingerprint.h"

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

py::tuple keys_of_fingerprints() {
  const FingerprintKeys& keys = fingerprint_keys();
  return py::make_tuple(py::make_tuple(keys.points[0], keys.points[1]),
                        py::array_t<unsigned>(static_cast<Index>(std::size(keys.words)), keys.words));
}

}  // namespace

void register_testing(py::module_& module) {
  py::module_ testing = module.def_submodule("testing", "Doors for the tests of lstmfast. Not API.");
  testing.def("set_isa", [](const std::string& name) { set_isa(parse_isa(name)); }, py::arg("name"));
  testing.def("activations", activations, py::arg("kind"), py::arg("x"), py::arg("out"));
  testing.def("fingerprint_keys", keys_of_fingerprints);
  register_testing_bf16x(testing);
}

}  // namespace lstmfast::bindings

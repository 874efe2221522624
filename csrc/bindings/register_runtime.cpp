// Bindings of the machine and the build: ISAs, threads, compiler.
#include <pybind11/stl.h>

#include <map>

#include "bindings/array_args.h"
#include "bindings/register.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/probes.h"

namespace lstmfast::bindings {
namespace {

std::vector<std::string> names(const std::vector<const Isa*>& isas, bool available_only = false) {
  std::vector<std::string> names;
  for (const Isa* isa : isas)
    if (!available_only || isa->machine_has()) names.emplace_back(isa->name);
  return names;
}

std::map<std::string, std::string> build_info() {
  return {{"version", LSTMFAST_VERSION},
          {"compiler", LSTMFAST_COMPILER},
          {"build_type", LSTMFAST_BUILD_TYPE},
          {"sanitizer", LSTMFAST_SANITIZER},
          {"system", LSTMFAST_SYSTEM},
          {"cplusplus", std::to_string(__cplusplus)},
          {"cuda", LSTMFAST_CUDA_KERNELS}};
}

double probe_flops(const std::string& dtype) {
  if (dtype != "float32" && dtype != "float64")
    throw pybind11::value_error("dtype must be float32 or float64, got " + dtype);
  const pybind11::gil_scoped_release release;
  return dtype == "float32" ? measured_flops<float>() : measured_flops<double>();
}

double probe_read_bandwidth(Index size_bytes) {
  if (size_bytes < 4096) throw pybind11::value_error("size_bytes must be at least 4096, got " + std::to_string(size_bytes));
  const pybind11::gil_scoped_release release;
  return measured_read_bandwidth(size_bytes);
}

}  // namespace

void register_runtime(pybind11::module_& module) {
  module.def("built_isas", [] { return names(built_isas()); });
  module.def("available_isas", [] { return names(built_isas(), true); });
  module.def("unbuilt_isas", [] { return names(unbuilt_isas()); });
  module.def("current_isa", [] { return std::string(current_isa().name); });
  module.def("get_num_threads", num_threads);
  module.def("set_num_threads", set_num_threads, pybind11::arg("threads"));
  module.def("build_info", build_info);
  module.def("probe_flops", probe_flops, pybind11::arg("dtype"));
  module.def("probe_read_bandwidth", probe_read_bandwidth, pybind11::arg("size_bytes"));
}

}  // namespace lstmfast::bindings

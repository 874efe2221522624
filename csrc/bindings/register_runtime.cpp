// The machine and the build: ISAs, threads, compiler.
#include <pybind11/stl.h>

#include <map>

#include "bindings/register.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace lstmfast::bindings {
namespace {

std::vector<std::string> names_where(bool (*wanted)(Isa)) {
  std::vector<std::string> names;
  for (const Isa isa : built_isas())
    if (wanted(isa)) names.emplace_back(isa_name(isa));
  return names;
}

std::map<std::string, std::string> build_info() {
  return {{"version", LSTMFAST_VERSION},
          {"compiler", LSTMFAST_COMPILER},
          {"build_type", LSTMFAST_BUILD_TYPE},
          {"sanitizer", LSTMFAST_SANITIZER},
          {"system", LSTMFAST_SYSTEM},
          {"cplusplus", std::to_string(__cplusplus)},
          {"cuda", "not built"}};
}

}  // namespace

void register_runtime(pybind11::module_& module) {
  module.def("built_isas", [] { return names_where([](Isa) { return true; }); });
  module.def("available_isas", [] { return names_where(cpu_has); });
  module.def("current_isa", [] { return std::string(isa_name(current_isa())); });
  module.def("get_num_threads", num_threads);
  module.def("set_num_threads", set_num_threads, pybind11::arg("threads"));
  module.def("build_info", build_info);
}

}  // namespace lstmfast::bindings

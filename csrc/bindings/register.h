// The functions by which binding files add to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace lstmfast::bindings {

void register_runtime(pybind11::module_& module);
void register_lstm(pybind11::module_& module);
void register_nn(pybind11::module_& module);
void register_testing(pybind11::module_& module);
void register_testing_bf16x(pybind11::module_& testing);

}  // namespace lstmfast::bindings

// lstmfast._core: the Python bindings. Each checks, makes views and calls one function. See python/lstmfast/_core.pyi.
#include "bindings/register.h"

PYBIND11_MODULE(_core, module, pybind11::mod_gil_not_used()) {
  module.doc() = "C++ kernels of lstmfast. Not API: use the functions and classes of lstmfast.";
  module.attr("__version__") = LSTMFAST_VERSION;
  lstmfast::bindings::register_runtime(module);
  lstmfast::bindings::register_lstm(module);
  lstmfast::bindings::register_nn(module);
  lstmfast::bindings::register_testing(module);
}

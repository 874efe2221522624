// Bindings of nn/: the trainer's hot loops.
#include <variant>

#include "bindings/array_args.h"
#include "bindings/register.h"
#include "cpu/dispatch.h"
#include "nn/embedding.h"
#include "nn/linear.h"
#include "nn/loss.h"
#include "nn/optimizers.h"
#include "nn/projected_loss.h"

namespace lstmfast::bindings {
namespace {

void py_linear(const py::object& x, const py::object& kernel, const py::object& bias, const py::object& out) {
  with_float_type(x, "x", [&](auto type) {
    using T = decltype(type);
    const auto x_arg = required<const T>(x, "x").must_have_ndim(2, "[rows, inputs]");
    const auto kernel_arg = required<const T>(kernel, "kernel").must_have_ndim(2, "[inputs, outputs]");
    const Index rows = x_arg.size(0), inputs = x_arg.size(1), outputs = kernel_arg.size(1);
    const auto kernel_view = kernel_arg.must_have_shape({inputs, outputs}).matrix();
    const T* bias_data = ArrayArg<const T>(bias, "bias").must_have_shape({outputs}).contiguous();
    const auto out_view = required<T>(out, "out").must_have_shape({rows, outputs}).matrix();
    const auto x_view = x_arg.matrix();
    const py::gil_scoped_release release;
    linear(x_view, kernel_view, bias_data, out_view, rows, inputs, outputs);
  });
}

void py_linear_backward(const py::object& x, const py::object& kernel, const py::object& d_out, const py::object& d_x,
                        const py::object& d_kernel, const py::object& d_bias) {
  with_float_type(x, "x", [&](auto type) {
    using T = decltype(type);
    const auto x_arg = required<const T>(x, "x").must_have_ndim(2, "[rows, inputs]");
    const auto kernel_arg = required<const T>(kernel, "kernel").must_have_ndim(2, "[inputs, outputs]");
    const Index rows = x_arg.size(0), inputs = x_arg.size(1), outputs = kernel_arg.size(1);
    const auto x_view = x_arg.matrix();
    const auto kernel_view = kernel_arg.must_have_shape({inputs, outputs}).matrix();
    const auto d_out_view = required<const T>(d_out, "d_out").must_have_shape({rows, outputs}).matrix();
    const auto d_x_view = ArrayArg<T>(d_x, "d_x").must_have_shape({rows, inputs}).matrix();
    const auto d_kernel_view = ArrayArg<T>(d_kernel, "d_kernel").must_have_shape({inputs, outputs}).matrix();
    T* d_bias_data = ArrayArg<T>(d_bias, "d_bias").must_have_shape({outputs}).contiguous();
    const py::gil_scoped_release release;
    linear_backward(x_view, kernel_view, d_out_view, d_x_view, d_kernel_view, d_bias_data, rows, inputs, outputs);
  });
}

class PyPackedLinear {
 public:
  PyPackedLinear(const py::object& kernel, const py::object& bias) : linear_(pack(kernel, bias)) {}

  void apply(const py::object& x, const py::object& out) const {
    std::visit([&](const auto& linear) { multiply(linear, x, out); }, linear_);
  }

 private:
  using Linear = std::variant<PackedLinear<float>, PackedLinear<double>>;

  static Linear pack(const py::object& kernel, const py::object& bias) {
    return with_float_type(kernel, "kernel", [&](auto type) -> Linear {
      using T = decltype(type);
      const auto kernel_arg = required<const T>(kernel, "kernel").must_have_ndim(2, "[inputs, outputs]");
      const Index inputs = kernel_arg.size(0), outputs = kernel_arg.size(1);
      const T* bias_data = required<const T>(bias, "bias").must_have_shape({outputs}).contiguous();
      return PackedLinear<T>(kernels<T>(), kernel_arg.matrix(), bias_data, inputs, outputs);
    });
  }

  template <typename T>
  static void multiply(const PackedLinear<T>& linear, const py::object& x, const py::object& out) {
    const auto x_arg = required<const T>(x, "x").must_have_ndim(2, "[rows, inputs]");
    const Index rows = x_arg.size(0);
    const auto x_view = x_arg.must_have_shape({rows, linear.inputs()}).matrix();
    const auto out_view = required<T>(out, "out").must_have_shape({rows, linear.outputs()}).matrix();
    const py::gil_scoped_release release;
    linear.apply(x_view, out_view, rows);
  }

  Linear linear_;
};

void py_softmax_cross_entropy(const py::object& logits, const py::object& targets, const py::object& losses,
                              const py::object& d_logits, double scale) {
  with_float_type(logits, "logits", [&](auto type) {
    using T = decltype(type);
    const auto logits_arg = required<const T>(logits, "logits").must_have_ndim(2, "[rows, classes]");
    const Index rows = logits_arg.size(0), classes = logits_arg.size(1);
    const auto targets_arg = required<const int>(targets, "targets").must_have_shape({rows});
    check_ids(targets_arg, classes);
    const auto logits_view = logits_arg.matrix();
    const int* target_data = targets_arg.contiguous();
    T* loss_data = required<T>(losses, "losses").must_have_shape({rows}).contiguous();
    const auto gradient_view = ArrayArg<T>(d_logits, "d_logits").must_have_shape({rows, classes}).matrix();
    const py::gil_scoped_release release;
    softmax_cross_entropy(logits_view, target_data, rows, classes, static_cast<T>(scale), loss_data, gradient_view);
  });
}

void py_projected_cross_entropy(const py::object& x, const py::object& kernel, const py::object& bias,
                                const py::object& targets, const py::object& losses, const py::object& d_x,
                                const py::object& d_kernel, const py::object& d_bias, bool transposed, double scale) {
  with_float_type(x, "x", [&](auto type) {
    using T = decltype(type);
    const auto x_arg = required<const T>(x, "x").must_have_ndim(2, "[rows, inputs]");
    const auto bias_arg = required<const T>(bias, "bias").must_have_ndim(1, "[classes]");
    const Index rows = x_arg.size(0), inputs = x_arg.size(1), classes = bias_arg.size(0);
    const Index first = transposed ? classes : inputs, second = transposed ? inputs : classes;
    const auto kernel_view = required<const T>(kernel, "kernel").must_have_shape({first, second}).matrix();
    const auto targets_arg = required<const int>(targets, "targets").must_have_shape({rows});
    check_ids(targets_arg, classes);
    const auto x_view = x_arg.matrix();
    const T* bias_data = bias_arg.contiguous();
    const int* target_data = targets_arg.contiguous();
    T* loss_data = required<T>(losses, "losses").must_have_shape({rows}).contiguous();
    const auto d_x_view = ArrayArg<T>(d_x, "d_x").must_have_shape({rows, inputs}).matrix();
    const auto d_kernel_view = ArrayArg<T>(d_kernel, "d_kernel").must_have_shape({first, second}).matrix();
    T* d_bias_data = ArrayArg<T>(d_bias, "d_bias").must_have_shape({classes}).contiguous();
    if (d_x.is_none() != d_kernel.is_none() || d_x.is_none() != d_bias.is_none())
      throw py::value_error("d_x, d_kernel and d_bias must all be given or all be None");
    const py::gil_scoped_release release;
    projected_cross_entropy(x_view, kernel_view, transposed, bias_data, target_data, rows, inputs, classes,
                            static_cast<T>(scale), loss_data, d_x_view, d_kernel_view, d_bias_data);
  });
}

void py_embedding_gather(const py::object& table, const py::object& ids, const py::object& out) {
  with_float_type(table, "table", [&](auto type) {
    using T = decltype(type);
    const auto table_arg = required<const T>(table, "table").must_have_ndim(2, "[vocabulary, columns]");
    const auto ids_arg = required<const int>(ids, "ids").must_have_ndim(1, "[rows]");
    const Index rows = ids_arg.size(0), columns = table_arg.size(1);
    check_ids(ids_arg, table_arg.size(0));
    const auto out_view = required<T>(out, "out").must_have_shape({rows, columns}).matrix();
    embedding_gather(table_arg.matrix(), ids_arg.contiguous(), rows, columns, out_view);
  });
}

void py_embedding_scatter(const py::object& d_out, const py::object& ids, const py::object& d_table,
                          bool add) {
  with_float_type(d_out, "d_out", [&](auto type) {
    using T = decltype(type);
    const auto d_out_arg = required<const T>(d_out, "d_out").must_have_ndim(2, "[rows, columns]");
    const auto table_arg = required<T>(d_table, "d_table").must_have_ndim(2, "[vocabulary, columns]");
    const Index rows = d_out_arg.size(0), columns = d_out_arg.size(1), vocabulary = table_arg.size(0);
    const auto ids_arg = required<const int>(ids, "ids").must_have_shape({rows});
    check_ids(ids_arg, vocabulary);
    const auto table_view = table_arg.must_have_shape({vocabulary, columns}).matrix();
    embedding_scatter(d_out_arg.matrix(), ids_arg.contiguous(), rows, columns, vocabulary, add, table_view);
  });
}

double py_global_norm(const py::object& values) {
  return with_float_type(values, "values", [&](auto type) {
    using T = decltype(type);
    const auto arg = required<const T>(values, "values").must_have_ndim(1, "[parameters]");
    const T* data = arg.contiguous();
    const Index count = arg.size(0);
    const py::gil_scoped_release release;
    return global_norm(data, count);
  });
}

void py_optimizer_update(const std::string& name, const py::object& parameters, const py::object& gradients,
                         const py::sequence& slots, const py::sequence& constants, double gradient_scale) {
  with_float_type(parameters, "parameters", [&](auto type) {
    using T = decltype(type);
    const OptimizerKernel<T>& optimizer = optimizer_named<T>(name);
    const auto must_have = [&](const char* what, std::size_t wanted, std::size_t given) {
      if (given != wanted)
        throw py::value_error(std::string(what) + " must have length " + std::to_string(wanted) + " for " + name + ", got " +
                              std::to_string(given));
    };
    must_have("slots", static_cast<std::size_t>(optimizer.slots), slots.size());
    must_have("constants", static_cast<std::size_t>(optimizer.constants), constants.size());
    const auto parameters_arg = required<T>(parameters, "parameters").must_have_ndim(1, "[parameters]");
    const Index count = parameters_arg.size(0);
    T* p = parameters_arg.contiguous();
    const T* g = required<const T>(gradients, "gradients").must_have_shape({count}).contiguous();
    T* slot_data[kMostSlots];
    for (int i = 0; i < optimizer.slots; ++i)
      slot_data[i] = required<T>(slots[i], "every slot").must_have_shape({count}).contiguous();
    T constant_values[kMostConstants];
    for (int i = 0; i < optimizer.constants; ++i) constant_values[i] = static_cast<T>(constants[i].cast<double>());
    const py::gil_scoped_release release;
    optimizer_update(optimizer, p, g, slot_data, count, constant_values, static_cast<T>(gradient_scale));
  });
}

}  // namespace

void register_nn(py::module_& module) {
  const py::none none;
  module.def("linear", py_linear, py::arg("x"), py::arg("kernel"), py::arg("bias"), py::arg("out"));
  module.def("linear_backward", py_linear_backward, py::arg("x"), py::arg("kernel"), py::arg("d_out"),
             py::arg("d_x") = none, py::arg("d_kernel") = none, py::arg("d_bias") = none);
  py::class_<PyPackedLinear>(module, "PackedLinear", "`linear` with a copy of kernel and bias, packed once.")
      .def(py::init<const py::object&, const py::object&>(), py::arg("kernel"), py::arg("bias"))
      .def("apply", &PyPackedLinear::apply, py::arg("x"), py::arg("out"));
  module.def("softmax_cross_entropy", py_softmax_cross_entropy, py::arg("logits"), py::arg("targets"),
             py::arg("losses"), py::arg("d_logits") = none, py::arg("scale") = 1.0);
  module.def("projected_cross_entropy", py_projected_cross_entropy, py::arg("x"), py::arg("kernel"), py::arg("bias"),
             py::arg("targets"), py::arg("losses"), py::arg("d_x") = none, py::arg("d_kernel") = none,
             py::arg("d_bias") = none, py::arg("transposed") = false, py::arg("scale") = 1.0);
  module.def("embedding_gather", py_embedding_gather, py::arg("table"), py::arg("ids"), py::arg("out"));
  module.def("embedding_scatter", py_embedding_scatter, py::arg("d_out"), py::arg("ids"), py::arg("d_table"),
             py::arg("add") = false);
  module.def("global_norm", py_global_norm, py::arg("values"));
  module.def("optimizer_update", py_optimizer_update, py::arg("optimizer"), py::arg("parameters"),
             py::arg("gradients"), py::arg("slots"), py::arg("constants"), py::arg("gradient_scale"));
}

}  // namespace lstmfast::bindings

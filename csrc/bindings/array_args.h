// From NumPy arrays to views: every array that reaches C++ is checked here, once more, by name. Nothing is converted or
// copied: Python has done that where it is allowed. Errors are one sentence: the argument, what was wanted, what came.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/views.h"

namespace lstmfast::bindings {

namespace py = pybind11;

using Shape = std::vector<Index>;

inline std::string to_string(const Shape& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

template <typename T>
const char* dtype_name();
template <>
inline const char* dtype_name<float>() { return "float32"; }
template <>
inline const char* dtype_name<double>() { return "float64"; }
template <>
inline const char* dtype_name<int>() { return "int32"; }
template <>
inline const char* dtype_name<Index>() { return "int64"; }
template <>
inline const char* dtype_name<bool>() { return "bool"; }

// An array of elements T. `ArrayArg<const T>` reads, `ArrayArg<T>` also checks that it may be written.
template <typename T>
class ArrayArg {
  using Element = std::remove_const_t<T>;

 public:
  ArrayArg() = default;  // absent
  ArrayArg(const py::object& object, const char* name) : name_(name) {
    if (object.is_none()) return;
    if (!py::isinstance<py::array>(object))
      throw py::type_error(std::string(name) + " must be a NumPy array, got " +
                           std::string(py::str(py::type::of(object).attr("__name__"))));
    array_ = py::reinterpret_borrow<py::array>(object);
    if (!py::isinstance<py::array_t<Element>>(array_))
      throw py::type_error(std::string(name) + " must be " + dtype_name<Element>() + ", got " +
                           std::string(py::str(array_.dtype())));
    if (!std::is_const_v<T> && !array_.writeable()) fail("must be writable, got a read-only array");
    if (!(array_.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) fail("must be aligned to its element size");
    present_ = true;
  }

  explicit operator bool() const { return present_; }
  Index ndim() const { return array_.ndim(); }
  Index size(Index axis) const { return array_.shape(axis); }
  Index stride(Index axis) const { return array_.strides(axis) / static_cast<Index>(sizeof(T)); }
  T* data() const { return present_ ? const_cast<T*>(static_cast<const Element*>(array_.data())) : nullptr; }

  Shape shape() const { return {array_.shape(), array_.shape() + array_.ndim()}; }

  const ArrayArg& must_have_ndim(Index ndim, const char* meaning) const {
    if (array_.ndim() != ndim) fail("must have " + std::to_string(ndim) + " axes " + meaning + ", got shape " + to_string(shape()));
    return *this;
  }
  // Absent arrays pass.
  const ArrayArg& must_have_shape(const Shape& wanted) const {
    if (present_ && shape() != wanted) fail("must have shape " + to_string(wanted) + ", got " + to_string(shape()));
    return *this;
  }

  // The last `packed_axes` axes must lie without gaps; the others may have any stride.
  MatrixView<T> matrix() const {
    if (!present_) return {};
    must_be_packed(1);
    return {data(), stride(0)};
  }
  SequenceView<T> sequence(Index packed_axes = 1) const {
    if (!present_) return {};
    must_be_packed(packed_axes);
    return {data(), stride(0), stride(1)};
  }
  T* contiguous() const {
    if (!present_) return nullptr;
    must_be_packed(array_.ndim());
    return data();
  }

  [[noreturn]] void fail(const std::string& what) const { throw py::value_error(std::string(name_) + " " + what); }

 private:
  void must_be_packed(Index packed_axes) const {
    if (array_.size() == 0) return;
    Index expected = 1;
    for (Index axis = array_.ndim() - 1; axis >= 0; --axis) {
      if (array_.strides(axis) % static_cast<Index>(sizeof(T)) != 0) fail("must have strides of whole elements");
      if (axis >= array_.ndim() - packed_axes && array_.shape(axis) > 1 && stride(axis) != expected)
        fail(packed_axes == array_.ndim() ? "must be C-contiguous" : "must be contiguous along its last axes");
      expected *= array_.shape(axis);
    }
  }

  py::array array_;
  const char* name_ = "";
  bool present_ = false;
};

// Calls body(T{}) with T float or double, as the array's dtype says.
template <typename Body>
auto with_float_type(const py::object& object, const char* name, const Body& body) {
  if (!py::isinstance<py::array>(object))
    throw py::type_error(std::string(name) + " must be a NumPy array, got " +
                         std::string(py::str(py::type::of(object).attr("__name__"))));
  if (py::isinstance<py::array_t<float>>(object)) return body(float{});
  if (py::isinstance<py::array_t<double>>(object)) return body(double{});
  throw py::type_error(std::string(name) + " must be float32 or float64, got " +
                       std::string(py::str(py::reinterpret_borrow<py::array>(object).dtype())));
}

// Every id must be a row of the table it selects from: the kernels do not look.
inline void check_ids(const ArrayArg<const int>& ids, Index vocabulary) {
  const Index outer = ids.size(0), inner = ids.ndim() > 1 ? ids.size(1) : 1;
  for (Index i = 0; i < outer; ++i)
    for (Index j = 0; j < inner; ++j) {
      const int id = ids.data()[i * ids.stride(0) + (ids.ndim() > 1 ? j * ids.stride(1) : 0)];
      if (id < 0 || id >= vocabulary)
        ids.fail("must lie in [0, " + std::to_string(vocabulary) + "), got " + std::to_string(id));
    }
}

}  // namespace lstmfast::bindings

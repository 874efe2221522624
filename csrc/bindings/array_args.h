// From NumPy arrays to views. Every array that reaches C++ is checked again here. Nothing is converted or copied:
// Python does that where it is allowed. Errors are one sentence: the argument, what was wanted, what came.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <initializer_list>
#include <string>
#include <vector>

#include "core/precision.h"
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

// Whether an array has elements of this type, in this machine's byte order. Nearly every array carries NumPy's one
// dtype object of its type: comparing the pointer takes a nanosecond, comparing dtypes by value 60.
template <typename Element>
bool holds(const py::handle& array) {
  static const PyObject* const usual = py::dtype::of<Element>().release().ptr();
  return py::detail::array_proxy(array.ptr())->descr == usual || py::isinstance<py::array_t<Element>>(array);
}

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
    if (!holds<Element>(object))
      throw py::type_error(std::string(name) + " must be " + dtype_name<Element>() + ", got " +
                           std::string(py::str(py::reinterpret_borrow<py::array>(object).dtype())));
    array_ = py::detail::array_proxy(object.ptr());
    using Flags = py::detail::npy_api;
    // A mask would be ignored. Python checks too, but not in every step of a stream.
    if (reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) != reinterpret_cast<PyObject*>(Flags::get().PyArray_Type_) &&
        py::hasattr(object, "mask"))
      throw py::type_error(std::string(name) + " must be an array without a mask, got a masked array; fill it, e.g. " +
                           "with .filled(0)");
    if (!std::is_const_v<T> && !(array_->flags & Flags::NPY_ARRAY_WRITEABLE_))
      fail("must be writable, got a read-only array");
    if (!(array_->flags & Flags::NPY_ARRAY_ALIGNED_)) fail("must be aligned to its element size");
  }

  explicit operator bool() const { return array_ != nullptr; }
  Index ndim() const { return array_->nd; }
  Index size(Index axis) const { return array_->dimensions[axis]; }
  Index stride(Index axis) const { return array_->strides[axis] / static_cast<Index>(sizeof(T)); }
  T* data() const { return array_ ? reinterpret_cast<T*>(array_->data) : nullptr; }

  Shape shape() const { return {array_->dimensions, array_->dimensions + ndim()}; }

  const ArrayArg& must_have_ndim(Index ndim, const char* meaning) const {
    if (!array_) throw py::type_error(std::string(name_) + " must be a NumPy array, got None");
    if (this->ndim() != ndim)
      fail("must have " + std::to_string(ndim) + " axes " + meaning + ", got shape " + to_string(shape()));
    return *this;
  }
  // Absent arrays are accepted.
  template <typename Sizes = std::initializer_list<Index>>
  const ArrayArg& must_have_shape(const Sizes& wanted) const {
    if (array_ && !std::equal(wanted.begin(), wanted.end(), array_->dimensions, array_->dimensions + ndim()))
      fail("must have shape " + to_string(wanted) + ", got " + to_string(shape()));
    return *this;
  }

  // The last `packed_axes` axes must be contiguous; the others may have any stride.
  MatrixView<T> matrix() const {
    if (!array_) return {};
    must_be_packed(1);
    return {data(), stride(0)};
  }
  SequenceView<T> sequence(Index packed_axes = 1) const {
    if (!array_) return {};
    must_be_packed(packed_axes);
    return {data(), stride(0), stride(1)};
  }
  T* contiguous() const {
    if (!array_) return nullptr;
    must_be_packed(ndim());
    return data();
  }

  [[noreturn]] void fail(const std::string& what) const { throw py::value_error(std::string(name_) + " " + what); }

 private:
  void must_be_packed(Index packed_axes) const {
    const auto is_empty = [](Index size) { return size == 0; };
    if (std::any_of(array_->dimensions, array_->dimensions + ndim(), is_empty)) return;
    Index expected = 1;
    for (Index axis = ndim() - 1; axis >= 0; --axis) {
      if (array_->strides[axis] % static_cast<Index>(sizeof(T)) != 0) fail("must have strides of whole elements");
      if (axis >= ndim() - packed_axes && size(axis) > 1 && stride(axis) != expected)
        fail(packed_axes == ndim() ? "must be C-contiguous" : "must be contiguous along its last axes");
      expected *= size(axis);
    }
  }

  const py::detail::PyArray_Proxy* array_ = nullptr;  // borrowed: the argument outlives the call; null: absent
  const char* name_ = "";
};

template <typename T>
ArrayArg<T> required(const py::object& object, const char* name) {
  if (object.is_none()) throw py::type_error(std::string(name) + " must be a NumPy array, got None");
  return {object, name};
}

// Calls body(T{}) with T float or double, according to the array's dtype.
template <typename Body>
auto with_float_type(const py::object& object, const char* name, const Body& body) {
  if (!py::isinstance<py::array>(object))
    throw py::type_error(std::string(name) + " must be a NumPy array, got " +
                         std::string(py::str(py::type::of(object).attr("__name__"))));
  if (holds<float>(object)) return body(float{});
  if (holds<double>(object)) return body(double{});
  throw py::type_error(std::string(name) + " must be float32 or float64, got " +
                       std::string(py::str(py::reinterpret_borrow<py::array>(object).dtype())));
}

inline MatmulPrecision precision_of(const std::string& word) {
  if (word == "highest") return MatmulPrecision::kHighest;
  if (word == "high") return MatmulPrecision::kHigh;
  if (word == "medium") return MatmulPrecision::kMedium;
  throw py::value_error("matmul_precision must be highest, high or medium, got " + word);
}

// Every id must be a row of the table it selects from: the kernels do not check.
inline void check_ids(const ArrayArg<const int>& ids, Index vocabulary) {
  const Index outer = ids.size(0), inner = ids.ndim() > 1 ? ids.size(1) : 1;
  for (Index i = 0; i < outer; ++i)
    for (Index j = 0; j < inner; ++j) {
      const int id = ids.data()[i * ids.stride(0) + (ids.ndim() > 1 ? j * ids.stride(1) : 0)];
      if (id < 0 || id >= vocabulary)
        ids.fail("must lie in [0, " + std::to_string(vocabulary) + "), got " + std::to_string(id));
    }
}

// Of every row.
template <typename T>
std::vector<T*> pointers(MatrixView<T> matrix, Index rows) {
  std::vector<T*> all(static_cast<std::size_t>(rows));
  for (Index r = 0; r < rows; ++r) all[r] = matrix.row(r);
  return all;
}

}  // namespace lstmfast::bindings

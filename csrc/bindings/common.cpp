// C++ errors become the classes of runtime.errors, which is imported when the first one is thrown.
#include <string>

#include "bindings/bind.h"
#include "runtime/error.h"

namespace py = pybind11;

namespace runtime::bindings {
namespace {

// A refused value as the caller knows it: a number where it reads as one.
py::object Value(const std::string& text) {
  if (text.empty()) return py::none();
  for (PyTypeObject* type : {&PyLong_Type, &PyFloat_Type}) {
    PyObject* number = PyObject_CallFunction(reinterpret_cast<PyObject*>(type), "s", text.c_str());
    if (number != nullptr) return py::reinterpret_steal<py::object>(number);
    PyErr_Clear();
  }
  return py::str(text);
}

void Raise(const char* name, const py::args& args, const py::kwargs& kwargs) {
  const py::object type = py::module_::import("runtime.errors").attr(name);
  const py::object error = type(*args, **kwargs);
  PyErr_SetObject(type.ptr(), error.ptr());
}

void Translate(std::exception_ptr thrown) {
  using py::literals::operator""_a;
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const InvalidRequest& e) {
    Raise("InvalidRequestError",
          py::make_tuple(e.param(), Value(e.value()), e.limit(), Value(e.suggestion())),
          py::dict("message"_a = e.what(), "hint"_a = e.hint()));
  } catch (const ConfigError& e) {
    Raise("ConfigError", py::make_tuple(e.what()), py::dict("hint"_a = e.hint()));
  } catch (const CapacityError& e) {
    Raise("CapacityError", py::make_tuple(e.what()), py::dict("hint"_a = e.hint()));
  } catch (const CommunicatorError& e) {
    Raise("CommunicatorError", py::make_tuple(e.what()), py::dict("hint"_a = e.hint()));
  } catch (const EngineDead& e) {
    Raise("EngineDeadError", py::make_tuple(e.what()), py::dict("hint"_a = e.hint()));
  } catch (const InvalidArgument& e) {
    PyErr_SetString(PyExc_ValueError, e.what());
  } catch (const Error& e) {
    PyErr_SetString(PyExc_RuntimeError, e.what());
  }
}

}  // namespace

void BindErrors() { py::register_exception_translator(&Translate); }

}  // namespace runtime::bindings

#include "runtime/request_params.h"

#include <cmath>
#include <string>

#include "bindings/bind.h"
#include "runtime/error.h"

namespace py = pybind11;

namespace runtime::bindings {
namespace {

std::string Repr(py::handle value) {
  std::string text = py::str(py::repr(value));
  return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

[[noreturn]] void RefuseType(const char* param, py::handle value, const char* limit) {
  throw InvalidRequest(param, Repr(value), limit);
}

// Any integer, numpy's included; neither a bool nor a float is one.
std::int64_t ToInt(const char* param, py::handle value) {
  if (PyBool_Check(value.ptr()) || !PyIndex_Check(value.ptr())) {
    RefuseType(param, value, "an integer");
  }
  const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!index) throw py::error_already_set();
  int overflow = 0;
  const long long number = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  if (overflow != 0) RefuseType(param, value, "between -2**63 and 2**63 - 1");
  return number;
}

double ToReal(const char* param, py::handle value) {
  if (PyBool_Check(value.ptr())) RefuseType(param, value, "a number");
  const double number = PyFloat_AsDouble(value.ptr());
  if (number == -1.0 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    RefuseType(param, value, "a number");
  }
  return number;
}

bool ToBool(const char* param, py::handle value) {
  if (!PyBool_Check(value.ptr())) RefuseType(param, value, "True or False");
  return value.ptr() == Py_True;
}

std::vector<std::int64_t> ToInts(const char* param, py::handle value) {
  if (py::isinstance<py::str>(value) || !py::isinstance<py::iterable>(value)) {
    RefuseType(param, value, "a list of token ids");
  }
  std::vector<std::int64_t> ids;
  for (const py::handle item : py::reinterpret_borrow<py::iterable>(value)) {
    ids.push_back(ToInt(param, item));
  }
  return ids;
}

// A dict, or pairs of token id and number.
std::vector<std::pair<std::int64_t, double>> ToBiases(const char* param, py::handle value) {
  constexpr const char* kLimit = "a dict of token id to number";
  const bool is_dict = py::isinstance<py::dict>(value);
  if (!is_dict && !py::isinstance<py::list>(value)) RefuseType(param, value, kLimit);
  const py::object items =
      is_dict ? value.attr("items")() : py::reinterpret_borrow<py::object>(value);
  std::vector<std::pair<std::int64_t, double>> biases;
  for (const py::handle item : items) {
    if (!py::isinstance<py::tuple>(item) || py::len(item) != 2) RefuseType(param, value, kLimit);
    const auto pair = py::reinterpret_borrow<py::tuple>(item);
    biases.emplace_back(ToInt(param, pair[0]), ToReal(param, pair[1]));
  }
  return biases;
}

RequestParams MakeParams(const py::object& n, const py::object& temperature,
                         const py::object& top_p, const py::object& top_k, const py::object& min_p,
                         const py::object& presence_penalty, const py::object& frequency_penalty,
                         const py::object& repetition_penalty, const py::object& seed,
                         const py::object& stop_token_ids, const py::object& ignore_eos,
                         const py::object& max_tokens, const py::object& min_tokens,
                         const py::object& logprobs, const py::object& logit_bias,
                         const py::object& allowed_token_ids, const py::object& prompt_logprobs,
                         const py::object& banned_token_ids) {
  RequestNumbers numbers;
  numbers.n = ToInt("n", n);
  numbers.temperature = ToReal("temperature", temperature);
  numbers.top_p = ToReal("top_p", top_p);
  numbers.top_k = ToInt("top_k", top_k);
  numbers.min_p = ToReal("min_p", min_p);
  numbers.presence_penalty = ToReal("presence_penalty", presence_penalty);
  numbers.frequency_penalty = ToReal("frequency_penalty", frequency_penalty);
  numbers.repetition_penalty = ToReal("repetition_penalty", repetition_penalty);
  if (!seed.is_none()) numbers.seed = ToInt("seed", seed);
  if (!stop_token_ids.is_none()) numbers.stop_token_ids = ToInts("stop_token_ids", stop_token_ids);
  numbers.ignore_eos = ToBool("ignore_eos", ignore_eos);
  if (!max_tokens.is_none()) numbers.max_tokens = ToInt("max_tokens", max_tokens);
  numbers.min_tokens = ToInt("min_tokens", min_tokens);
  if (!logprobs.is_none()) numbers.logprobs = ToInt("logprobs", logprobs);
  if (!logit_bias.is_none()) numbers.logit_bias = ToBiases("logit_bias", logit_bias);
  if (!allowed_token_ids.is_none()) {
    numbers.allowed_token_ids = ToInts("allowed_token_ids", allowed_token_ids);
  }
  if (!prompt_logprobs.is_none()) {
    numbers.prompt_logprobs = ToInt("prompt_logprobs", prompt_logprobs);
  }
  if (!banned_token_ids.is_none()) {
    numbers.banned_token_ids = ToInts("banned_token_ids", banned_token_ids);
  }
  return RequestParams(numbers);
}

}  // namespace

void BindRequestParams(py::module_& m) {
  using py::literals::operator""_a;
  py::class_<RequestParams>(
      m, "RequestParams",
      "Validated numbers of one request. Raises InvalidRequestError with the field, its value, the "
      "limit and the nearest value that works.")
      .def(py::init(&MakeParams), py::kw_only(), "n"_a = 1, "temperature"_a = 1.0, "top_p"_a = 1.0,
           "top_k"_a = 0, "min_p"_a = 0.0, "presence_penalty"_a = 0.0, "frequency_penalty"_a = 0.0,
           "repetition_penalty"_a = 1.0, "seed"_a = py::none(), "stop_token_ids"_a = py::none(),
           "ignore_eos"_a = false, "max_tokens"_a = py::none(), "min_tokens"_a = 0,
           "logprobs"_a = py::none(), "logit_bias"_a = py::none(),
           "allowed_token_ids"_a = py::none(), "prompt_logprobs"_a = py::none(),
           "banned_token_ids"_a = py::none())
      .def_property_readonly("n", &RequestParams::n)
      .def_property_readonly("is_greedy", &RequestParams::is_greedy)
      .def_property_readonly("num_logprobs", &RequestParams::num_logprobs, "-1: off.")
      .def_property_readonly("num_prompt_logprobs", &RequestParams::num_prompt_logprobs,
                             "-1: off.");
}

}  // namespace runtime::bindings

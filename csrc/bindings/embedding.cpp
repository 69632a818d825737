// The side of the bridge to libruntime that knows Python: engines for C++ programs, and the mailbox
// that runtime.embedded reads requests from and writes chunks to.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bind.h"
#include "embed/bridge.h"
#include "runtime/error.h"
#include "runtime/scheduler_stats.h"
#include "runtime/version.h"

namespace py = pybind11;

namespace runtime::bindings {
namespace {

using namespace embed;

// ---- errors: from Python's and C++'s to the bridge's

constexpr Py_ssize_t kMaxShown = 80;  // characters of a refused value

struct ErrorTexts {
  std::string code = "python_error", message, hint, param, value, limit, suggestion;
};

// A lone surrogate must not hide the error that it is part of.
std::string Text(const py::object& value) {
  if (value.is_none()) return "";
  return py::bytes(py::str(value).attr("encode")("utf-8", "replace"));
}

std::string Attribute(const py::object& object, const char* name) {
  return Text(py::getattr(object, name, py::none()));
}

ErrorTexts TextsOf(const py::object& error) {
  ErrorTexts texts;
  if (py::isinstance(error, py::module_::import("runtime.errors").attr("Error"))) {
    texts.code = Attribute(error, "code");
    texts.message = Attribute(error, "message");
    texts.hint = Attribute(error, "hint");
  } else {
    texts.message = Attribute(py::type::of(error), "__name__") + ": " + Text(error);
  }
  texts.param = Attribute(error, "param");
  const auto value = py::str(py::getattr(error, "value", py::str()));
  texts.value = Text(value[py::slice(0, kMaxShown, 1)]);
  texts.limit = Attribute(error, "limit");
  texts.suggestion = Attribute(error, "suggestion");
  return texts;
}

ErrorTexts TextsOfCurrentException() {
  try {
    throw;
  } catch (const py::error_already_set& e) {
    return TextsOf(e.value());
  } catch (const InvalidRequest& e) {
    return {e.code(), e.what(), e.hint(), e.param(), e.value(), e.limit(), e.suggestion()};
  } catch (const Error& e) {
    return {e.code(), e.what(), e.hint(), "", "", "", ""};
  } catch (const std::exception& e) {
    return {"python_error", e.what(), "", "", "", "", ""};
  }
}

BridgeError View(const ErrorTexts& texts) {
  return {texts.code.c_str(),  texts.message.c_str(), texts.hint.c_str(),      texts.param.c_str(),
          texts.value.c_str(), texts.limit.c_str(),   texts.suggestion.c_str()};
}

// ---- keyword arguments: from the bridge's to Python's

py::object Decode(const char* name, const BridgeText& text) {
  PyObject* found = PyUnicode_DecodeUTF8(text.data, static_cast<Py_ssize_t>(text.size), "strict");
  if (found == nullptr) {
    PyErr_Clear();
    throw InvalidRequest(name, "a text of " + std::to_string(text.size) + " bytes", "UTF-8");
  }
  return py::reinterpret_steal<py::object>(found);
}

template <typename Item>
py::list ToList(const BridgeField& field, auto convert) {
  py::list list;
  const auto* items = static_cast<const Item*>(field.data);
  for (std::size_t i = 0; i < field.size; ++i) list.append(convert(items[i]));
  return list;
}

py::dict ToKeywords(const BridgeField* fields, std::size_t num_fields,
                    const std::string& owner = {});

// `name` is for errors.
py::object ToPython(const BridgeField& field, const char* name) {
  const auto as_int = [](auto value) { return py::int_(value); };
  switch (field.kind) {
    case kBridgeNone:
      return py::none();
    case kBridgeBool:
      return py::bool_(field.integer != 0);
    case kBridgeInteger:
      return py::int_(field.integer);
    case kBridgeReal:
      return py::float_(field.real);
    case kBridgeText:
      return Decode(name, {static_cast<const char*>(field.data), field.size});
    case kBridgeTokenIds:
      return ToList<std::int32_t>(field, as_int);
    case kBridgeIntegers:
      return ToList<std::int64_t>(field, as_int);
    case kBridgeTexts:
      return ToList<BridgeText>(field, [&](const auto& text) { return Decode(name, text); });
    case kBridgeFields:
      return ToKeywords(static_cast<const BridgeField*>(field.data), field.size,
                        std::string(name) + ".");
    case kBridgeBiases:
      break;
  }
  py::dict biases;
  const auto* items = static_cast<const BridgeBias*>(field.data);
  for (std::size_t i = 0; i < field.size; ++i) {
    biases[py::int_(items[i].token_id)] = items[i].bias;
  }
  return biases;
}

py::dict ToKeywords(const BridgeField* fields, std::size_t num_fields, const std::string& owner) {
  py::dict keywords;
  for (std::size_t i = 0; i < num_fields; ++i) {
    keywords[fields[i].name] = ToPython(fields[i], (owner + fields[i].name).c_str());
  }
  return keywords;
}

// ---- the mailbox

using RawLogprobs = std::vector<std::pair<std::vector<std::int32_t>, std::vector<float>>>;

class Mailbox {
 public:
  explicit Mailbox(const BridgeMailbox& bridge) : bridge_(bridge) {}
  ~Mailbox() { bridge_.release(bridge_.self); }
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  bool Wait(double timeout_s) const { return bridge_.wait(bridge_.self, timeout_s) != 0; }

  using Items = py::typing::List<
      py::typing::Tuple<py::int_, py::int_, py::typing::Dict<py::str, py::object>>>;

  Items Take() {
    struct Taken {
      Mailbox* mailbox;
      py::list items;
    } taken{this, py::list()};
    bridge_.take(bridge_.self, &taken, [](void* context, const BridgeItem* item) {
      auto& [mailbox, items] = *static_cast<Taken*>(context);
      try {
        py::dict fields = ToKeywords(item->fields, item->num_fields);
        items.append(py::make_tuple(static_cast<int>(item->kind), item->id, std::move(fields)));
      } catch (...) {  // a request that cannot be told to Python ends alone
        mailbox->FailWith(item->id, TextsOfCurrentException());
      }
    });
    return Items(taken.items);
  }

  bool WantsNews(std::int64_t id) const { return bridge_.wants_news(bridge_.self, id) != 0; }

  void Push(std::int64_t id, std::int32_t index, const py::str& text,
            const std::vector<std::int32_t>& token_ids, const RawLogprobs& raw_logprobs,
            std::int32_t finish, const std::optional<std::string>& stop_string,
            std::int32_t stop_token_id, const std::optional<BridgeMetrics>& metrics) {
    Py_ssize_t size = 0;
    const char* utf8 = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (utf8 == nullptr) throw py::error_already_set();
    std::vector<BridgeLogprobs> logprobs;
    for (const auto& [ids, values] : raw_logprobs) {
      logprobs.push_back({ids.data(), values.data(), std::min(ids.size(), values.size())});
    }
    BridgeText stop{nullptr, 0};
    if (stop_string) stop = {stop_string->data(), stop_string->size()};
    const BridgeChunk chunk{index,
                            {utf8, static_cast<std::size_t>(size)},
                            token_ids.data(),
                            token_ids.size(),
                            logprobs.data(),
                            logprobs.size(),
                            finish,
                            stop,
                            stop_token_id,
                            metrics ? &*metrics : nullptr};
    bridge_.push(bridge_.self, id, &chunk);
  }

  void End(std::int64_t id) { bridge_.end(bridge_.self, id); }
  void Fail(std::int64_t id, const py::object& error) { FailWith(id, TextsOf(error)); }
  void Close() { bridge_.close(bridge_.self); }

 private:
  void FailWith(std::int64_t id, const ErrorTexts& texts) {
    const BridgeError error = View(texts);
    bridge_.fail(bridge_.self, id, &error);
  }

  BridgeMailbox bridge_;
};

BridgeMetrics MakeMetrics(double queue_s, double ttft_s, double e2e_s, std::int64_t prompt_tokens,
                          std::int64_t cached_tokens, std::int64_t output_tokens,
                          std::int64_t preemptions) {
  return {queue_s, ttft_s, e2e_s, prompt_tokens, cached_tokens, output_tokens, preemptions};
}

// ---- engines

// Runs `call` with the GIL; 1 with the error in the sink when it throws.
int Guarded(const BridgeErrorSink& sink, auto call) noexcept {
  const py::gil_scoped_acquire gil;
  try {
    call();
    return 0;
  } catch (...) {
    const ErrorTexts texts = TextsOfCurrentException();
    const BridgeError error = View(texts);
    sink.set(sink.context, &error);
    return 1;
  }
}

py::module_ Embedded() { return py::module_::import("runtime.embedded"); }

int Open(const BridgeField* arguments, std::size_t num_arguments, BridgeMailbox mailbox,
         void** engine, BridgeErrorSink sink) noexcept {
  auto owned = std::make_unique<Mailbox>(mailbox);
  return Guarded(sink, [&] {
    const py::object owner = py::cast(std::move(owned));
    py::object opened =
        Embedded().attr("EmbeddedEngine")(owner, ToKeywords(arguments, num_arguments));
    *engine = opened.release().ptr();
  });
}

int Plan(const BridgeField* arguments, std::size_t num_arguments, BridgePlan* plan,
         BridgeErrorSink sink) noexcept {
  return Guarded(sink, [&] {
    const py::object found = Embedded().attr("plan")(ToKeywords(arguments, num_arguments));
    const auto get = [&](const char* name) { return found.attr(name).cast<std::int64_t>(); };
    *plan = {get("weights"),  get("kv_bytes_per_token"), get("kv_blocks"),    get("block_size"),
             get("kv_cache"), get("workspace"),          get("graphs"),       get("context"),
             get("total"),    get("max_model_len"),      get("max_sequences")};
  });
}

int Stats(void* engine, void* scheduler_stats, BridgeErrorSink sink) noexcept {
  return Guarded(sink, [&] {
    const py::handle self(static_cast<PyObject*>(engine));
    *static_cast<SchedulerStats*>(scheduler_stats) = self.attr("stats").cast<SchedulerStats>();
  });
}

void Close(void* engine) noexcept {
  BridgeErrorSink nobody{nullptr, [](void*, const BridgeError*) {}};
  Guarded(nobody, [&] {
    const auto self = py::reinterpret_steal<py::object>(static_cast<PyObject*>(engine));
    self.attr("close")();
  });
}

const BridgeEngine kBridge{kBridgeSize, RUNTIME_VERSION, &Open, &Plan, &Stats, &Close};

}  // namespace

void BindEmbedding(py::module_& m) {
  using py::literals::operator""_a;
  m.attr(kBridgeAttribute) = py::capsule(&kBridge, kBridgeName);
  py::class_<BridgeMetrics>(m, "MailboxMetrics", "Of a request that has ended, for Mailbox.push.")
      .def(py::init(&MakeMetrics), py::kw_only(), "queue_s"_a, "ttft_s"_a, "e2e_s"_a,
           "prompt_tokens"_a, "cached_tokens"_a, "output_tokens"_a, "preemptions"_a);
  py::class_<Mailbox>(m, "Mailbox",
                      "Requests of a C++ program on their way to its engine, and chunks on their "
                      "way back. Thread-safe.")
      .def("wait", &Mailbox::Wait, "timeout_s"_a, py::call_guard<py::gil_scoped_release>(),
           "Blocks, without the GIL, until there are items; False once the mailbox is closed.")
      .def("take", &Mailbox::Take,
           "The items: (kind, id, fields), kind 0 submit, 1 score, 2 abort, 3 more; fields are "
           "keyword arguments of SamplingParams and SubmitOptions, and prompt or continuation.")
      .def("wants_news", &Mailbox::WantsNews, "id"_a,
           "Whether what was pushed has been read. Otherwise news may be held back until an item "
           "asks for more; not those of a request that has ended.")
      .def("push", &Mailbox::Push, "id"_a, "index"_a, "text"_a, "token_ids"_a, "logprobs"_a,
           "finish"_a, "stop_string"_a, "stop_token_id"_a, "metrics"_a,
           "News of completion `index`. logprobs: (ids, values) of each token; finish: as in "
           "StepResult; metrics: with the request's last chunk, else None.")
      .def("end", &Mailbox::End, "id"_a, "The request has ended; no chunk follows.")
      .def("fail", &Mailbox::Fail, "id"_a, "error"_a,
           "It has ended with an exception, which its caller gets.")
      .def("close", &Mailbox::Close, "Ends all requests and all waits.");
}

}  // namespace runtime::bindings

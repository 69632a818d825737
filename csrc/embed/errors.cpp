#include "embed/errors.h"

#include <string>
#include <string_view>

#include "runtime/error.h"

namespace runtime::embed {
namespace {

template <typename E>
std::exception_ptr Make(const BridgeError& error) {
  return std::make_exception_ptr(E(error.message, error.hint));
}

struct Maker {
  std::string_view code;
  std::exception_ptr (*make)(const BridgeError&);
};

// by the codes of runtime.errors
constexpr Maker kMakers[] = {
    {"config_error", &Make<ConfigError>},
    {"device_not_found", &Make<DeviceNotFound>},
    {"model_not_found", &Make<ModelNotFound>},
    {"model_format_error", &Make<ModelFormatError>},
    {"capacity_exceeded", &Make<CapacityError>},
    {"engine_dead", &Make<EngineDead>},
    {"request_aborted", &Make<RequestAborted>},
    {"deadline_exceeded", &Make<DeadlineExceeded>},
    {"communicator_failed", &Make<CommunicatorError>},
};

}  // namespace

std::exception_ptr ToException(const BridgeError& error) {
  if (std::string_view(error.code) == "invalid_request") {
    return std::make_exception_ptr(InvalidRequest(
        error.message, {error.param, error.value, error.limit, error.suggestion}, error.hint));
  }
  for (const Maker& maker : kMakers) {
    if (maker.code == error.code) return maker.make(error);
  }
  return Make<PythonError>(error);
}

void ErrorSlot::Set(void* context, const BridgeError* error) {
  static_cast<ErrorSlot*>(context)->error_ = ToException(*error);
}

void ErrorSlot::Check(int failed) const {
  if (failed != 0 && error_ != nullptr) std::rethrow_exception(error_);
  if (failed != 0) throw PythonError("a call into Python failed without a reason");
}

}  // namespace runtime::embed

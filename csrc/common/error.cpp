#include "runtime/error.h"

#include <utility>

namespace runtime {
namespace {

std::string RefusalText(const std::string& param, const std::string& value,
                        const std::string& limit, const std::string& suggestion) {
  std::string text = param + "=" + value + ": must be " + limit;
  if (!suggestion.empty()) text += "; nearest: " + suggestion;
  return text;
}

}  // namespace

Error::Error(std::string code, const std::string& message, std::string hint)
    : std::runtime_error(message), code_(std::move(code)), hint_(std::move(hint)) {}

InvalidArgument::InvalidArgument(const std::string& message, std::string hint)
    : Error("invalid_argument", message, std::move(hint)) {}

ConfigError::ConfigError(const std::string& message, std::string hint)
    : Error("config_error", message, std::move(hint)) {}

ConfigError::ConfigError(std::string code, const std::string& message, std::string hint)
    : Error(std::move(code), message, std::move(hint)) {}

DeviceNotFound::DeviceNotFound(const std::string& message, std::string hint)
    : ConfigError("device_not_found", message, std::move(hint)) {}

ModelNotFound::ModelNotFound(const std::string& message, std::string hint)
    : Error("model_not_found", message, std::move(hint)) {}

ModelFormatError::ModelFormatError(const std::string& message, std::string hint)
    : Error("model_format_error", message, std::move(hint)) {}

InvalidRequest::InvalidRequest(std::string param, std::string value, std::string limit,
                               std::string suggestion, std::string hint)
    : InvalidRequest(RefusalText(param, value, limit, suggestion),
                     Refusal{param, value, limit, suggestion}, std::move(hint)) {}

InvalidRequest::InvalidRequest(const std::string& message, Refusal refusal, std::string hint)
    : Error("invalid_request", message, std::move(hint)), refusal_(std::move(refusal)) {}

CapacityError::CapacityError(const std::string& message, std::string hint)
    : Error("capacity_exceeded", message, std::move(hint)) {}

CommunicatorError::CommunicatorError(const std::string& message, std::string hint)
    : Error("communicator_failed", message, std::move(hint)) {}

EngineDead::EngineDead(const std::string& message, std::string hint)
    : Error("engine_dead", message, std::move(hint)) {}

RequestAborted::RequestAborted(const std::string& message, std::string hint)
    : Error("request_aborted", message, std::move(hint)) {}

DeadlineExceeded::DeadlineExceeded(const std::string& message, std::string hint)
    : Error("deadline_exceeded", message, std::move(hint)) {}

PythonNotFound::PythonNotFound(const std::string& message, std::string hint)
    : Error("python_not_found", message, std::move(hint)) {}

PythonError::PythonError(const std::string& message, std::string hint)
    : Error("python_error", message, std::move(hint)) {}

InvariantError::InvariantError(const std::string& message) : Error("invariant_broken", message) {}

}  // namespace runtime

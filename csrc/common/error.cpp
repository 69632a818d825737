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

InvalidArgument::InvalidArgument(const std::string& message) : Error("invalid_argument", message) {}

ConfigError::ConfigError(const std::string& message, std::string hint)
    : Error("config_error", message, std::move(hint)) {}

InvalidRequest::InvalidRequest(std::string param, std::string value, std::string limit,
                               std::string suggestion, std::string hint)
    : Error("invalid_request", RefusalText(param, value, limit, suggestion), std::move(hint)),
      param_(std::move(param)),
      value_(std::move(value)),
      limit_(std::move(limit)),
      suggestion_(std::move(suggestion)) {}

CapacityError::CapacityError(const std::string& message, std::string hint)
    : Error("capacity_exceeded", message, std::move(hint)) {}

CommunicatorError::CommunicatorError(const std::string& message, std::string hint)
    : Error("communicator_failed", message, std::move(hint)) {}

EngineDead::EngineDead(const std::string& message, std::string hint)
    : Error("engine_dead", message, std::move(hint)) {}

InvariantError::InvariantError(const std::string& message) : Error("invariant_broken", message) {}

}  // namespace runtime

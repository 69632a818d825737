// Errors that a caller can meet. A failure that is the runtime's own fault never arrives as one of
// the first three: it is an EngineDead or an InvariantError, or ends the process with the
// invariant's text.
#pragma once

#include <stdexcept>
#include <string>

namespace runtime {

// Base of all. `code` is stable and meant for programs; `hint` says what to do, or is empty.
class Error : public std::runtime_error {
 public:
  Error(std::string code, const std::string& message, std::string hint = "");

  const std::string& code() const noexcept { return code_; }
  const std::string& hint() const noexcept { return hint_; }

 private:
  std::string code_;
  std::string hint_;
};

// A function was called against its contract.
class InvalidArgument : public Error {
 public:
  explicit InvalidArgument(const std::string& message);
};

// A setting that cannot work.
class ConfigError : public Error {
 public:
  explicit ConfigError(const std::string& message, std::string hint = "");
};

// One number of one request is refused. `limit` follows "must be"; `suggestion` is the nearest
// value that works, or empty.
class InvalidRequest : public Error {
 public:
  InvalidRequest(std::string param, std::string value, std::string limit,
                 std::string suggestion = "", std::string hint = "");

  const std::string& param() const noexcept { return param_; }
  const std::string& value() const noexcept { return value_; }
  const std::string& limit() const noexcept { return limit_; }
  const std::string& suggestion() const noexcept { return suggestion_; }

 private:
  std::string param_, value_, limit_, suggestion_;
};

// There is no room now; the same call may work later.
class CapacityError : public Error {
 public:
  explicit CapacityError(const std::string& message, std::string hint = "");
};

// A rank of a group died, left, did not come in time or makes another call; the group has ended.
class CommunicatorError : public Error {
 public:
  explicit CommunicatorError(const std::string& message, std::string hint = "");
};

// The engine, or one of the processes that it consists of, cannot go on.
class EngineDead : public Error {
 public:
  explicit EngineDead(const std::string& message, std::string hint = "");
};

// Check() found the runtime's own state broken.
class InvariantError : public Error {
 public:
  explicit InvariantError(const std::string& message);
};

}  // namespace runtime

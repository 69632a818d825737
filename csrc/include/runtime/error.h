// Errors that a caller can meet. A failure that is the runtime's own fault never arrives as one of
// the caller's: it is an EngineDead or an InvariantError, or ends the process with the invariant's
// text.
#pragma once

#include <stdexcept>
#include <string>

#include "runtime/export.h"

namespace runtime {

// Base of all. `code` is stable and meant for programs; `hint` says what to do, or is empty.
class RUNTIME_API Error : public std::runtime_error {
 public:
  Error(std::string code, const std::string& message, std::string hint = "");

  const std::string& code() const noexcept { return code_; }
  const std::string& hint() const noexcept { return hint_; }

 private:
  std::string code_;
  std::string hint_;
};

// A function was called against its contract.
class RUNTIME_API InvalidArgument : public Error {
 public:
  explicit InvalidArgument(const std::string& message, std::string hint = "");
};

// A setting that cannot work.
class RUNTIME_API ConfigError : public Error {
 public:
  explicit ConfigError(const std::string& message, std::string hint = "");

 protected:
  ConfigError(std::string code, const std::string& message, std::string hint);
};

// The device that was asked for is not there.
class RUNTIME_API DeviceNotFound : public ConfigError {
 public:
  explicit DeviceNotFound(const std::string& message, std::string hint = "");
};

// No model folder at the given path.
class RUNTIME_API ModelNotFound : public Error {
 public:
  explicit ModelNotFound(const std::string& message, std::string hint = "");
};

// A model folder whose files are wrong; the message has all that is, a problem a line.
class RUNTIME_API ModelFormatError : public Error {
 public:
  explicit ModelFormatError(const std::string& message, std::string hint = "");
};

// One field of one request is refused. `limit` follows "must be"; `suggestion` is the nearest
// value that works, or empty.
class RUNTIME_API InvalidRequest : public Error {
 public:
  InvalidRequest(std::string param, std::string value, std::string limit,
                 std::string suggestion = "", std::string hint = "");

  struct Refusal {
    std::string param, value, limit, suggestion;
  };
  // For a sentence that "must be" does not say.
  InvalidRequest(const std::string& message, Refusal refusal, std::string hint);

  const std::string& param() const noexcept { return refusal_.param; }
  const std::string& value() const noexcept { return refusal_.value; }
  const std::string& limit() const noexcept { return refusal_.limit; }
  const std::string& suggestion() const noexcept { return refusal_.suggestion; }

 private:
  Refusal refusal_;
};

// There is no room now; the same call may work later.
class RUNTIME_API CapacityError : public Error {
 public:
  explicit CapacityError(const std::string& message, std::string hint = "");
};

// A rank of a group died, left, did not come in time or makes another call; the group has ended.
class RUNTIME_API CommunicatorError : public Error {
 public:
  explicit CommunicatorError(const std::string& message, std::string hint = "");
};

// The engine, or one of the processes that it consists of, cannot go on: every request and every
// later one gets this.
class RUNTIME_API EngineDead : public Error {
 public:
  explicit EngineDead(const std::string& message, std::string hint = "");
};

// The engine takes no request any more, or was destroyed before this one finished.
class RUNTIME_API RequestAborted : public Error {
 public:
  explicit RequestAborted(const std::string& message, std::string hint = "");
};

// Something did not come in the time it was given.
class RUNTIME_API DeadlineExceeded : public Error {
 public:
  explicit DeadlineExceeded(const std::string& message, std::string hint = "");
};

// There is no Python here that an engine can run in: none was found, it has no shared library, or
// it lacks this version of the package.
class RUNTIME_API PythonNotFound : public Error {
 public:
  explicit PythonNotFound(const std::string& message, std::string hint = "");
};

// A Python exception that is none of the above; the message begins with its type.
class RUNTIME_API PythonError : public Error {
 public:
  explicit PythonError(const std::string& message, std::string hint = "");
};

// Check() found the runtime's own state broken.
class RUNTIME_API InvariantError : public Error {
 public:
  explicit InvariantError(const std::string& message);
};

}  // namespace runtime

#pragma once

#include <exception>

#include "embed/bridge.h"

namespace runtime::embed {

// The class of runtime/error.h whose code it has; PythonError for a code that none has.
std::exception_ptr ToException(const BridgeError& error);

// Keeps the error that a function of BridgeEngine failed with.
class ErrorSlot {
 public:
  BridgeErrorSink sink() { return {this, &Set}; }
  // Throws that error when `failed`.
  void Check(int failed) const;

 private:
  static void Set(void* context, const BridgeError* error);

  std::exception_ptr error_;
};

}  // namespace runtime::embed

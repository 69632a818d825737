// Require: the caller's fault, throws InvalidArgument. Ensure: our fault, prints the invariant and
// aborts. Plain functions, so that a branch which never fails counts once, here, in coverage.
#pragma once

#include <source_location>

namespace runtime {

[[noreturn]] void FailRequire(const char* message);
[[noreturn]] void FailEnsure(const char* invariant, const std::source_location& where);

inline void Require(bool holds, const char* message) {
  if (!holds) [[unlikely]]
    FailRequire(message);
}

inline void Ensure(bool holds, const char* invariant,
                   const std::source_location& where = std::source_location::current()) {
  if (!holds) [[unlikely]]
    FailEnsure(invariant, where);
}

}  // namespace runtime

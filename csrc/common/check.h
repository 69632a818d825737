// Require: the caller's fault, throws InvalidArgument. Ensure: our fault, prints the invariant and
// aborts. Hold: our fault as well, found by a Check() and thrown as InvariantError. Plain
// functions, so that a branch which never fails counts once, here, in coverage.
#pragma once

#include <cstdint>
#include <source_location>

namespace runtime {

[[noreturn]] void FailRequire(const char* message);
[[noreturn]] void FailHold(const char* invariant, std::int64_t id);
[[noreturn]] void FailEnsure(const char* invariant, const std::source_location& where);

inline void Require(bool holds, const char* message) {
  if (!holds) [[unlikely]]
    FailRequire(message);
}

// `id` names the request, -1 if it is about none.
inline void Hold(bool holds, const char* invariant, std::int64_t id = -1) {
  if (!holds) [[unlikely]]
    FailHold(invariant, id);
}

inline void Ensure(bool holds, const char* invariant,
                   const std::source_location& where = std::source_location::current()) {
  if (!holds) [[unlikely]]
    FailEnsure(invariant, where);
}

}  // namespace runtime

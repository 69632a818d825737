#include "common/check.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "runtime/error.h"

namespace runtime {

void FailRequire(const char* message) { throw InvalidArgument(message); }

void FailHold(const char* invariant, std::int64_t id) {
  const std::string whose = id < 0 ? "" : " (request " + std::to_string(id) + ")";
  throw InvariantError("broken invariant: " + (invariant + whose));
}

void FailEnsure(const char* invariant, const std::source_location& where) {
  const char* slash = std::strrchr(where.file_name(), '/');
  std::fprintf(stderr, "runtime: invariant broken: %s (%s:%u)\n", invariant,
               slash != nullptr ? slash + 1 : where.file_name(),
               static_cast<unsigned>(where.line()));
  std::abort();
}

}  // namespace runtime

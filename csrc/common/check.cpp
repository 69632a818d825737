#include "common/check.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "runtime/error.h"

namespace runtime {

void FailRequire(const char* message) { throw InvalidArgument(message); }

void FailEnsure(const char* invariant, const std::source_location& where) {
  const char* slash = std::strrchr(where.file_name(), '/');
  std::fprintf(stderr, "runtime: invariant broken: %s (%s:%u)\n", invariant,
               slash != nullptr ? slash + 1 : where.file_name(),
               static_cast<unsigned>(where.line()));
  std::abort();
}

}  // namespace runtime

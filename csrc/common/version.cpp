#include "runtime/version.h"

namespace runtime {

const char* Version() noexcept { return RUNTIME_VERSION; }

}  // namespace runtime

#pragma once

#include "bench/flags.h"

namespace runtime::bench {

// Becomes `runtime WORDS...` of the Python package. Replacing this process rather than hosting an
// interpreter needs no shared libpython, leaves Ctrl-C and the exit code to the one program that
// then runs, and lets it start processes of its own as always. Throws PythonNotFound.
[[noreturn]] void RunInPython(const Words& words);

}  // namespace runtime::bench

#pragma once

#include <string>

#include "embed/bridge.h"

namespace runtime::embed {

// runtime._core's functions, from the interpreter of this process, which is started on first use
// and never stopped. Throws PythonNotFound, PythonError, and InvalidArgument as RequireNoGil.
// Thread-safe.
const BridgeEngine& HostPython(const std::string& chosen_python);

// Whether the interpreter that HostPython found still runs: a program that started it may end it.
bool PythonRuns();

// Throws InvalidArgument when this thread holds the GIL: what it is about to wait for needs it.
void RequireNoGil();

}  // namespace runtime::embed

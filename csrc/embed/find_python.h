#pragma once

#include <string>
#include <vector>

namespace runtime::embed {

// The interpreter to use: `chosen` if it is not empty, then $RUNTIME_PYTHON, the environment that
// this library is installed in, $VIRTUAL_ENV, $CONDA_PREFIX, python3 on $PATH. A program gives the
// interpreter `beside` it instead of a library's environment. Throws PythonNotFound that says what
// was searched.
std::string FindPython(const std::string& chosen, const std::string& beside = "");

// "3.11" for the interpreter of that path. Throws PythonNotFound when it does not answer.
std::string VersionOf(const std::string& python);

// Where the shared library of that interpreter may be, best guess first; the interpreter is asked.
// Throws PythonNotFound when it does not answer.
std::vector<std::string> LibpythonCandidates(const std::string& python);

}  // namespace runtime::embed

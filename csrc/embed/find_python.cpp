#include "embed/find_python.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "runtime/error.h"

extern char** environ;

namespace runtime::embed {
namespace {

namespace fs = std::filesystem;

bool IsExecutable(const fs::path& path) {
  struct stat status{};
  return stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode) &&
         access(path.c_str(), X_OK) == 0;
}

std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// This library's own file.
fs::path OwnPath() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(&OwnPath), &info) == 0) return {};
  std::error_code ignored;
  return fs::canonical(info.dli_fname, ignored);
}

// Collects where it has looked, for the error.
class Search {
 public:
  bool Try(const std::string& where, const fs::path& python) {
    searched_ += "\n  " + where + ": " + python.string();
    return IsExecutable(python);
  }
  void Skip(const std::string& where, const std::string& why) {
    searched_ += "\n  " + where + ": " + why;
  }
  [[noreturn]] void Fail() const {
    throw PythonNotFound("no Python was found; searched:" + searched_,
                         "set EngineConfig::python or $RUNTIME_PYTHON to the interpreter that has "
                         "the package");
  }

 private:
  std::string searched_;
};

// The environment whose site-packages or dist-packages holds this library: .../lib/python3.x above
// them, bin beside lib.
fs::path OwnEnvironment() {
  fs::path folder = OwnPath();
  bool is_installed = false;
  while (folder.has_relative_path()) {
    const std::string name = folder.filename();
    is_installed |= name == "site-packages" || name == "dist-packages";
    folder = folder.parent_path();
    if (is_installed && IsExecutable(folder / "bin" / "python3")) return folder;
  }
  return {};
}

std::string Require(const char* where, const std::string& python) {
  if (!IsExecutable(python)) {
    throw PythonNotFound(std::string(where) + "=" + python + ": not an executable file",
                         "give the path of an interpreter, such as .venv/bin/python");
  }
  return python;
}

// What a program prints, at most 64 KiB of it. Empty when it cannot run or fails.
std::string OutputOf(const std::vector<std::string>& words) {
  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return {};
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  pid_t child = -1;
  const int failed =
      posix_spawn(&child, arguments[0], &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  std::string text;
  std::array<char, 4096> piece;
  while (failed == 0 && text.size() < (1u << 16)) {
    const ssize_t size = read(ends[0], piece.data(), piece.size());
    if (size < 0 && errno == EINTR) continue;
    if (size <= 0) break;
    text.append(piece.data(), static_cast<std::size_t>(size));
  }
  close(ends[0]);
  if (failed == 0) {  // a host that ignores SIGCHLD has nothing to wait for
    while (waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
  return text;
}

constexpr char kAskVersion[] = "import sys; print('%d.%d' % sys.version_info[:2])";

// Prints candidates, one a line. The interpreter's own folders come before a bare name, which the
// dynamic loader would look up: a library of another patch level does not find the environment.
constexpr char kAskLibpython[] = R"(
import os, sys, sysconfig
get = sysconfig.get_config_var
names = [n for n in (get("INSTSONAME"), "libpython%d.%d%s.so.1.0" % (*sys.version_info[:2], sys.abiflags)) if n and ".so" in n]
folders = [get("LIBDIR") or "", os.path.join(sys.base_prefix, "lib"), os.path.join(get("LIBDIR") or "", get("MULTIARCH") or "")]
found = [p for p in (os.path.join(f, n) for f in folders for n in names) if os.path.exists(p)]
print("\n".join(dict.fromkeys(found + names)))
)";

// The lines that the interpreter prints, the empty ones left out; at least one.
std::vector<std::string> Answer(const std::string& python, const char* program, const char* what) {
  std::istringstream output(OutputOf({python, "-I", "-S", "-c", program}));
  std::vector<std::string> lines;
  for (std::string line; std::getline(output, line);) {
    if (!line.empty()) lines.push_back(line);
  }
  if (lines.empty()) {
    throw PythonNotFound(python + " did not say " + what,
                         "is it a Python of version 3.10 or newer?");
  }
  return lines;
}

}  // namespace

std::string FindPython(const std::string& chosen, const std::string& beside) {
  if (!chosen.empty()) return Require("EngineConfig::python", chosen);
  if (const auto given = Variable("RUNTIME_PYTHON"); !given.empty()) {
    return Require("RUNTIME_PYTHON", given);
  }
  Search search;
  search.Skip("$RUNTIME_PYTHON", "not set");
  if (!beside.empty()) {
    if (search.Try("beside the program", beside)) return beside;
  } else if (const fs::path own = OwnEnvironment(); !own.empty()) {
    return own / "bin" / "python3";
  } else {
    search.Skip("the environment that libruntime.so is in", "it is in none");
  }
  for (const char* name : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
    const std::string folder = Variable(name);
    const std::string where = std::string("$") + name;
    if (folder.empty()) {
      search.Skip(where, "not set");
    } else if (const fs::path python = fs::path(folder) / "bin" / "python3";
               search.Try(where, python)) {
      return python;
    }
  }
  std::istringstream folders(Variable("PATH"));
  for (std::string folder; std::getline(folders, folder, ':');) {
    if (const fs::path python = fs::path(folder) / "python3"; search.Try("$PATH", python)) {
      return python;
    }
  }
  search.Fail();
}

std::string VersionOf(const std::string& python) {
  return Answer(python, kAskVersion, "which version it is").front();
}

std::vector<std::string> LibpythonCandidates(const std::string& python) {
  return Answer(python, kAskLibpython, "where its shared library is");
}

}  // namespace runtime::embed

#include "embed/python_host.h"

#include <dlfcn.h>

#include <atomic>
#include <csignal>
#include <cwchar>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "embed/find_python.h"
#include "embed/python_api.h"
#include "runtime/error.h"
#include "runtime/version.h"

namespace runtime::embed {
namespace {

// Set once, before bridge; never destroyed, for Python's threads outlive static destructors.
PythonApi g_python;
std::atomic<const BridgeEngine*> g_bridge = nullptr;
std::mutex g_starting;

class GilGuard {
 public:
  GilGuard() : state_(g_python.GilEnsure()) {}
  ~GilGuard() { g_python.GilRelease(state_); }
  GilGuard(const GilGuard&) = delete;
  GilGuard& operator=(const GilGuard&) = delete;

 private:
  int state_;
};

struct DecRef {
  void operator()(void* object) const { g_python.DecRef(object); }
};
using Object = std::unique_ptr<void, DecRef>;

std::string Text(void* object) {
  const Object text(object == nullptr ? nullptr : g_python.Str(object));
  const char* utf8 = text == nullptr ? nullptr : g_python.AsUtf8(text.get());
  std::string found = utf8 == nullptr ? "?" : utf8;
  g_python.ErrClear();
  return found;
}

// "ModuleNotFoundError: No module named 'runtime'"; the pending exception is cleared.
std::string TakePendingError() {
  void *type = nullptr, *value = nullptr, *traceback = nullptr;
  g_python.ErrFetch(&type, &value, &traceback);
  g_python.ErrNormalize(&type, &value, &traceback);
  const Object owned[] = {Object(type), Object(value), Object(traceback)};
  const Object name(type == nullptr ? nullptr : g_python.GetAttrString(type, "__name__"));
  return Text(name.get()) + ": " + Text(value);
}

// Opens the interpreter's library; all its symbols must be global, extension modules link to none.
void* OpenLibpython(const std::string& python) {
  std::string tried;
  for (const std::string& candidate : LibpythonCandidates(python)) {
    if (void* library = dlopen(candidate.c_str(), RTLD_NOW | RTLD_GLOBAL)) return library;
    tried += std::string("\n  ") + dlerror();
  }
  throw PythonNotFound("the shared library of " + python + " was not found; tried:" + tried,
                       "Debian and Ubuntu have it in the package libpython3.X, X as in `python3 "
                       "--version`");
}

void StartWithInitConfig(const std::string& python) {
  void* config = g_python.InitConfigCreate();
  g_python.InitConfigSetStr(config, "program_name", python.c_str());
  g_python.InitConfigSetStr(config, "executable", python.c_str());
  g_python.InitConfigSetInt(config, "install_signal_handlers", 0);
  g_python.InitConfigSetInt(config, "parse_argv", 0);
  const char* message = nullptr;
  if (g_python.InitializeFromInitConfig(config) != 0) {
    g_python.InitConfigGetError(config, &message);
    throw PythonError("Python did not start: " + std::string(message == nullptr ? "?" : message));
  }
  g_python.InitConfigFree(config);
}

// Ctrl-C stays the host's: Python's module `signal` takes SIGINT when it is first imported, so that
// is done here.
void GiveBackSigint(const struct sigaction& before) {
  const Object module(g_python.ImportModule("signal"));
  g_python.ErrClear();
  sigaction(SIGINT, &before, nullptr);
}

void StartAsProgram(const std::string& python) {
  wchar_t* name = g_python.DecodeLocale(python.c_str(), nullptr);  // Python keeps the pointer
  if (name == nullptr || g_python.SetProgramName == nullptr) {
    throw PythonNotFound("the path of " + python + " cannot be told to Python");
  }
  g_python.SetProgramName(name);
  g_python.InitializeEx(0);
}

// With `python` as its name an interpreter finds the environment, whose pyvenv.cfg lies beside it,
// and starts processes of its own with it. The host's signal handlers are left alone.
void Start(const std::string& python) {
  struct sigaction sigint{};
  sigaction(SIGINT, nullptr, &sigint);
  if (g_python.InitConfigCreate != nullptr && g_python.InitializeFromInitConfig != nullptr) {
    StartWithInitConfig(python);
  } else {
    StartAsProgram(python);
  }
  GiveBackSigint(sigint);
  g_python.SaveThread();  // gives the GIL up; from now on it is taken call by call
}

// The program links a Python that it has not started: only an environment of that version can run.
void RequireLoadedVersion(const std::string& python) {
  const std::string loaded = g_python.GetVersion(), wanted = VersionOf(python);
  if (loaded.starts_with(wanted + ".")) return;
  throw PythonNotFound(
      python + " is Python " + wanted + ", and this process has loaded the library of Python " +
          loaded.substr(0, loaded.find(' ')),
      "choose an interpreter of that version with EngineConfig::python or $RUNTIME_PYTHON");
}

std::string EnsureInterpreter(const std::string& chosen) {
  const std::optional<void*> loaded = FindLoadedPython();
  if (loaded) {
    g_python = LoadPythonApi(*loaded);
    if (g_python.IsInitialized()) return "the Python of this process";
  }
  const std::string python = FindPython(chosen);
  if (loaded) {
    RequireLoadedVersion(python);
  } else {
    g_python = LoadPythonApi(OpenLibpython(python));
  }
  Start(python);
  return python;
}

const BridgeEngine* TakeBridge(const std::string& python) {
  const GilGuard gil;
  const std::string install = std::string("pip install runtime-llm==") + RUNTIME_VERSION;
  const Object module(g_python.ImportModule("runtime._core"));
  if (module == nullptr) {
    throw PythonNotFound(python + " cannot import the package: " + TakePendingError(),
                         install + " there, or choose another one with $RUNTIME_PYTHON");
  }
  const Object version(g_python.GetAttrString(module.get(), "__version__"));
  const std::string found = Text(version.get());
  if (found != RUNTIME_VERSION) {
    throw PythonNotFound(
        python + " has version " + found + " of the package, and libruntime is " + RUNTIME_VERSION,
        install + " there, or choose another one with $RUNTIME_PYTHON");
  }
  const Object capsule(g_python.GetAttrString(module.get(), kBridgeAttribute));
  const void* pointer =
      capsule == nullptr ? nullptr : g_python.CapsuleGetPointer(capsule.get(), kBridgeName);
  const auto* bridge = static_cast<const BridgeEngine*>(pointer);
  g_python.ErrClear();
  if (bridge == nullptr || bridge->size != kBridgeSize) {
    throw PythonNotFound("runtime._core of " + python + " and libruntime are of different builds",
                         "install both from one wheel");
  }
  return bridge;
}

// Whether this thread has the GIL of an interpreter that runs; the program may have started one
// that no engine has used yet.
bool HoldsGil() {
  if (g_bridge != nullptr) return g_python.IsInitialized() != 0 && g_python.GilCheck() != 0;
  const std::optional<void*> loaded = FindLoadedPython();
  if (!loaded) return false;
  const PythonApi python = LoadPythonApi(*loaded);
  return python.IsInitialized() != 0 && python.GilCheck() != 0;
}

}  // namespace

const BridgeEngine& HostPython(const std::string& chosen_python) {
  RequireNoGil();  // before the lock, whose holder may be waiting for the GIL
  if (g_bridge == nullptr) {
    const std::lock_guard lock(g_starting);
    if (g_bridge == nullptr) g_bridge = TakeBridge(EnsureInterpreter(chosen_python));
  }
  if (!PythonRuns()) {
    throw PythonNotFound("the program has finalized the Python of this process",
                         "let it run for as long as there are engines");
  }
  return *g_bridge;
}

bool PythonRuns() { return g_bridge != nullptr && g_python.IsInitialized() != 0; }

void RequireNoGil() {
  if (HoldsGil()) {
    throw InvalidArgument("this thread holds the GIL, without which the engine cannot go on",
                          "release it around calls that wait");
  }
}

}  // namespace runtime::embed

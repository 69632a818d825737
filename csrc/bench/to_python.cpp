#include "bench/to_python.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>

#include "embed/find_python.h"
#include "runtime/error.h"
#include "runtime/version.h"

namespace runtime::bench {
namespace {

namespace fs = std::filesystem;

// `python -m runtime` would look for the package in the working directory first, and say less when
// there is none or another version. sys.argv: "-c", this program's version, the words.
constexpr char kStart[] = R"py(
import sys
sys.path[:] = [folder for folder in sys.path if folder]
version = sys.argv.pop(1)
install = f"pip install runtime-llm=={version} there, or choose another one with $RUNTIME_PYTHON"
try:
    import runtime
except ImportError as error:
    print(f"runtime-bench: {sys.executable} cannot import the package: {error} ({install})", file=sys.stderr)
    sys.exit(69)
if runtime.__version__ != version:
    found = f"{sys.executable} has version {runtime.__version__} of the package"
    print(f"runtime-bench: {found}, and runtime-bench is {version} ({install})", file=sys.stderr)
    sys.exit(69)
from runtime.cli.main import main
sys.exit(main())
)py";

// Beside this program: the wheel puts it into an environment's bin.
std::string PythonBeside() {
  std::error_code failed;
  const fs::path own = fs::read_symlink("/proc/self/exe", failed);
  return failed ? std::string() : (own.parent_path() / "python3").string();
}

}  // namespace

void RunInPython(const Words& words) {
  const std::string python = embed::FindPython("", PythonBeside());
  Words all{python, "-c", kStart, RUNTIME_VERSION};
  all.insert(all.end(), words.begin(), words.end());
  std::vector<char*> arguments;
  for (std::string& word : all) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  execv(python.c_str(), arguments.data());
  throw PythonNotFound(python + " cannot be run: " + std::strerror(errno),
                       "choose another one with $RUNTIME_PYTHON");
}

}  // namespace runtime::bench

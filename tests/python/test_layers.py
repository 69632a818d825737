"""Import directions, lengths of files and forbidden calls: rules that hold for every file."""

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "runtime"

SHARED = {"config", "errors", "log", "start_timer"}
BELOW_ENGINE = {"basemodel", "kernels", "parallel", "loader", "models", "_core"}
BELOW_LLM = BELOW_ENGINE | {"engine", "outputs", "prompts", "sampling_params", "structured_outputs"}
BELOW_LLM |= {"tokenizer", "chat_template", "line_process"}
VERBS = BELOW_LLM | {"llm", "bench", "cli", "server", "simulation"}
# part of the package -> the parts it may import, besides SHARED
ALLOWED = {
    "kernels": set(),
    "models": {"basemodel", "kernels"},
    "loader": set(),
    "parallel": {"_core", "kernels"},
    "basemodel": {"kernels", "loader", "parallel", "_core"},
    "outputs": set(),
    "prompts": {"tokenizer"},
    "sampling_params": {"_core", "structured_outputs"},
    "structured_outputs": set(),
    "chat_template": {"line_process"},
    "chat_template_worker": set(),
    "line_process": set(),
    "tokenizer": {"chat_template", "loader"},
    "engine": BELOW_ENGINE - {"models"}
    | {"line_process", "outputs", "sampling_params", "structured_outputs", "tokenizer"},
    "worker": {"_core", "engine"},
    "llm": BELOW_LLM - {"models"},
    "embedded": BELOW_LLM - {"models"},
    "simulation": {"_core", "loader"},
    "server": BELOW_LLM - {"models"} | {"llm"},
    "bench": VERBS - {"models"},
    "cli": VERBS - {"models"},
    "config": set(),
    "errors": set(),
    "log": set(),
    "start_timer": set(),
    "__init__": {"_core", "llm", "outputs", "engine", "sampling_params", "structured_outputs"},
    "__main__": {"cli"},
}
NOT_SHARED_WITH = {"kernels", "errors", "chat_template_worker"}


def source_files():
    """(part of the package, file) of every source file; kernels and models lie outside and are linked in."""
    for folder in ("kernels", "models"):
        yield from ((folder, path) for path in (ROOT / folder).rglob("*.py"))
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part not in ("kernels", "models"):
            yield part, path


def imported_parts(part, path):
    """The parts of the package that a file imports, itself left out; imports for annotations count too."""
    depth = len(path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level >= depth and node.level:  # from .. import part
            modules = [f"runtime.{node.module or alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "runtime":
            modules = [f"runtime.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module]
        for module in modules:
            names = module.split(".")
            if names[0] in ("kernels", "models"):
                yield f"bare {names[0]}"
            elif names[0] == "runtime" and len(names) > 1 and names[1] != part:
                yield names[1]


def test_imports_follow_the_layers():
    parts = {part for part, _ in source_files()}
    assert parts <= set(ALLOWED), f"not in ALLOWED: {sorted(parts - set(ALLOWED))}"
    public = {"__version__", "LLM", "SamplingParams", "RequestOutput"}
    wrong = [
        f"{path.relative_to(ROOT)} imports runtime.{found}"
        for part, path in source_files()
        for found in imported_parts(part, path)
        if found not in ALLOWED[part] | public and (found not in SHARED or part in NOT_SHARED_WITH)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_check_sees_a_wrong_import(tmp_path):
    path = PACKAGE / "loader" / "x.py"

    class Fake(type(path)):
        def read_text(self, *args, **kwargs):
            return "from ..engine import Engine\nimport kernels\nfrom runtime import _core\nfrom . import checkpoint\n"

    assert list(imported_parts("loader", Fake(path))) == ["engine", "bare kernels", "_core"]


def test_model_files_stay_short():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "models").glob("*.py")}
    assert lengths and not {name: n for name, n in lengths.items() if n >= 150}


FORBIDDEN_MODULES = {"pickle", "pickletools", "marshal", "dill", "shelve", "cloudpickle", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def forbidden(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [(node.module or "").split(".")[0]]
        elif isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            if function in FORBIDDEN_CALLS or function == "torch.load" or function.endswith(".recv"):
                yield function
        yield from (name for name in names if name in FORBIDDEN_MODULES)


def test_nothing_is_unpickled_or_evaluated():
    found = {str(path.relative_to(ROOT)): list(forbidden(path)) for _, path in source_files()}
    assert not {path: names for path, names in found.items() if names}


def test_files_stay_readable():
    listing = ["git", "ls-files", "-z", "--", "*.py", "*.cpp", "*.h", "*.c", "*.js", "*.sh", ".ci/run"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in names if name}
    assert len(lengths) > 500 and not {name: n for name, n in lengths.items() if n >= 400}

"""`python -m runtime`: the command line, and where CMake finds the package."""

from __future__ import annotations

import sys
from pathlib import Path

import runtime
from runtime.cli.main import main
from runtime.errors import ConfigError


def cmake_dir() -> Path:
    """The folder of runtimeConfig.cmake. In an editable install the package has several folders."""
    for folder in runtime.__path__:
        if (Path(folder) / "cmake" / "runtimeConfig.cmake").is_file():
            return Path(folder) / "cmake"
    raise ConfigError("this installation has no CMake package", hint="install the wheel")


if __name__ == "__main__":
    if sys.argv[1:] == ["--cmake-dir"]:
        print(cmake_dir())
    else:
        sys.exit(main())

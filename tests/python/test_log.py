"""Logging: silent below warnings until asked, and then each message once."""

import subprocess
import sys

import pytest

from runtime.errors import ConfigError
from runtime.log import get_logger, set_level


def stderr_of(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_nothing_below_warnings_shows_by_itself():
    assert stderr_of("from runtime.log import get_logger; get_logger('runtime.x').info('hello')") == ""


def test_each_message_shows_once_at_the_level_that_was_asked_for():
    shown = stderr_of(
        "import logging; logging.basicConfig(level=0)\n"  # the program's own handler
        "from runtime.log import get_logger, set_level\n"
        "set_level('debug'); set_level('INFO')\n"
        "get_logger('runtime.x').debug('quiet'); get_logger('runtime.x').info('hello')\n"
    )
    assert shown.count("hello") == 1 and "INFO" in shown and "quiet" not in shown


def test_loggers_are_of_one_tree():
    assert [get_logger(name).name for name in ("runtime.engine", "engine")] == ["runtime.engine", "runtime.engine"]


@pytest.mark.parametrize("level", ["loud", "", 5, None])
def test_other_levels_are_refused(level):
    with pytest.raises(ConfigError, match="log_level=.*: must be one of debug, info, warning, error, critical"):
        set_level(level)

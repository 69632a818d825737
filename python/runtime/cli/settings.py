"""Where a verb's arguments come from: flag > RUNTIME_<FLAG> variable > configuration file > default."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.cli.parser import kind_of
from runtime.errors import ConfigError, did_you_mean, shorten

PREFIX = "RUNTIME_"
_TEST_PREFIX = "RUNTIME_TEST_"  # for the project's own tests
_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
# about the command line itself
_NOT_SETTINGS = ("help", "config", "dry_run", "print_config")
_MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class Setting:
    """A value and where it came from."""

    value: Any
    source: str


class Settings:
    """The arguments of a parser, which from now says only what was given as a flag."""

    def __init__(self, parser: argparse.ArgumentParser, verb: str) -> None:
        self._verb = verb
        self._actions = {a.dest: a for a in parser._actions if a.dest not in _NOT_SETTINGS}
        self._defaults = {name: action.default for name, action in self._actions.items()}
        for action in self._actions.values():
            if action.help and action.default not in (None, argparse.SUPPRESS):
                action.help += f" (default: {str(action.default).replace('%', '%%')})"
            action.default = argparse.SUPPRESS
        parser.set_defaults(settings=self)

    def resolve(self, args: argparse.Namespace, environment: Mapping[str, str]) -> dict[str, Setting]:
        """Every argument, by name.

        Raises:
            ConfigError: an unknown name, with the nearest ones, or a value of a wrong type.
        """
        path = getattr(args, "config", None) or environment.get(f"{PREFIX}CONFIG")
        found = {name: Setting(default, "default") for name, default in self._defaults.items()}
        if path is not None:
            found |= self._from_file(Path(path))
        found |= self._from_environment(environment)
        found |= {name: Setting(getattr(args, name), "flag") for name in self._actions if hasattr(args, name)}
        return found

    def _from_environment(self, environment: Mapping[str, str]) -> dict[str, Setting]:
        found = {}
        for variable, text in environment.items():
            if not variable.startswith(PREFIX) or variable.startswith(_TEST_PREFIX):
                continue
            name = variable.removeprefix(PREFIX).lower()
            if name in _NOT_SETTINGS:
                continue
            if name not in self._actions:
                known = [f"{PREFIX}{one.upper()}" for one in self._actions]
                raise ConfigError(f"unknown variable {variable}{did_you_mean(variable, known)}")
            found[name] = Setting(self._parse(self._actions[name], text, variable), variable)
        return found

    def _from_file(self, path: Path) -> dict[str, Setting]:
        tables = read_toml(path)
        for name in tables:
            if name != self._verb:
                raise ConfigError(f"{path}: unknown table [{name}]{did_you_mean(name, [self._verb])}")
        table = tables.get(self._verb, {})
        if not isinstance(table, Mapping):
            raise ConfigError(f"{path}: {self._verb} must be a table, [{self._verb}]")
        found = {}
        for key, value in table.items():
            name = key.replace("-", "_")
            if name not in self._actions:
                raise ConfigError(f"{path}: unknown name {key!r} in [{self._verb}]{did_you_mean(name, self._actions)}")
            found[name] = Setting(self._check(self._actions[name], value, f"{path}: {key}"), str(path))
        return found

    def _parse(self, action: argparse.Action, text: str, where: str) -> Any:
        if _is_flag(action):
            if text.lower() not in _WORDS:
                raise ConfigError(f"{where}={shorten(text)}: must be true or false")
            return _WORDS[text.lower()]
        if _is_list(action):
            return [part.strip() for part in text.split(",") if part.strip()]
        return _convert(action, text, where)

    def _check(self, action: argparse.Action, value: Any, where: str) -> Any:
        if _is_flag(action):
            if not isinstance(value, bool):
                raise ConfigError(f"{where}={shorten(value)}: must be true or false")
            return value
        if _is_list(action):
            parts = [value] if isinstance(value, str) else value
            if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
                raise ConfigError(f"{where}={shorten(value)}: must be a list of texts")
            return parts
        if isinstance(value, (dict, list, bool)):
            raise ConfigError(f"{where}={shorten(value)}: must be one value")
        return _convert(action, str(value), where)


def read_toml(path: Path) -> dict[str, Any]:
    """A configuration file.

    Raises:
        ConfigError: it is not there, too large, or not TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError(f"{path} has more than {_MAX_FILE_BYTES} bytes")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror} (--config)") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def as_toml(verb: str, settings: Mapping[str, Setting]) -> str:
    """Settings as the file that would set them; a comment names the source of each. None is left out."""
    lines = [f"[{verb}]"]
    for name, setting in settings.items():
        if setting.value is None:
            lines.append(f"# {name} is not set")
        else:
            lines.append(f"{name} = {_toml_value(setting.value)}  # {setting.source}")
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return f"[{', '.join(map(_toml_value, value))}]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text) + '"'


def _is_flag(action: argparse.Action) -> bool:
    return action.nargs == 0


def _is_list(action: argparse.Action) -> bool:
    return isinstance(action, argparse._AppendAction)


def _convert(action: argparse.Action, text: str, where: str) -> Any:
    if action.type is None:
        return text
    try:
        return action.type(text)  # type: ignore[operator]
    except ValueError:
        raise ConfigError(f"{where}={shorten(text)}: must be {kind_of(action.type)}") from None

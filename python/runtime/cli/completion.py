"""Print a script that completes verbs and flags in a shell: `source <(runtime completion bash)`."""

from __future__ import annotations

import argparse
import importlib

from runtime.cli.parser import ArgumentParser

_SHELLS = ("bash", "zsh", "fish")

_BASH = """_runtime() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words
  case ${{COMP_WORDS[1]}} in
{cases}
    *) words="{verbs}" ;;
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then words="{verbs}"; fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _runtime runtime
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n" + _BASH


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=_SHELLS, help="the shell that will read the script")


def run(args: argparse.Namespace) -> int:
    flags = flags_by_verb()
    print(_fish(flags) if args.shell == "fish" else _bash(flags, _ZSH if args.shell == "zsh" else _BASH), end="")
    return 0


def flags_by_verb() -> dict[str, list[str]]:
    """The flags of every verb, and of those of its own verbs if it has any."""
    from runtime.cli.main import VERBS

    found = {}
    for verb in VERBS:
        module = importlib.import_module(f"runtime.cli.{verb}")
        parser = ArgumentParser(prog=f"runtime {verb}")
        module.add_arguments(parser)
        found[verb] = sorted(_words(parser))
    return found


def _words(parser: argparse.ArgumentParser) -> set[str]:
    words: set[str] = set()
    for action in parser._actions:
        words.update(option for option in action.option_strings if option.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                words |= {name} | _words(child)
        elif not action.option_strings and action.choices:
            words.update(map(str, action.choices))
    return words


def _bash(flags: dict[str, list[str]], template: str) -> str:
    cases = "\n".join(f'    {verb}) words="{" ".join(words)}" ;;' for verb, words in flags.items())
    return template.format(cases=cases, verbs=" ".join(flags))


def _fish(flags: dict[str, list[str]]) -> str:
    lines = [f"complete -c runtime -n __fish_use_subcommand -f -a '{' '.join(flags)}'"]
    for verb, words in flags.items():
        seen = f"-n '__fish_seen_subcommand_from {verb}'"
        for word in words:
            lines.append(f"complete -c runtime {seen} " + (f"-l {word[2:]}" if word.startswith("--") else f"-a {word}"))
    return "\n".join(lines) + "\n"

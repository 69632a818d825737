"""Renders chat templates for `chat_template.ChatTemplate`, in a process of its own that may be killed.

Reads lines {"template", "variables"} and answers {"text"} or {"error", "kind"}; imports nothing of the package.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_MEMORY_BYTES = 512 << 20
MAX_OUTPUT_CHARS = 8 << 20


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training; here its body is rendered as it stands."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(lineno)


class Refused(Exception):
    """The template called `raise_exception`."""


def raise_exception(message: str) -> NoReturn:
    """What templates call to refuse a conversation."""
    raise Refused(message)


def tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # jinja2's own escapes HTML characters
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(format: str) -> str:
    """The local time, as templates of some models date their prompts."""
    return datetime.now().strftime(format)


@functools.lru_cache(maxsize=8)
def compile_template(source: str) -> jinja2.Template:
    """The sandboxed template, with the functions and filters that `transformers` gives it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment.from_string(source)


def render(template: str, variables: dict[str, Any]) -> dict[str, str]:
    """The answer to one request: {"text"}, or {"error", "kind"} with kind "refused" or "template"."""
    parts, size = [], 0
    try:
        for part in compile_template(template).generate(**variables):
            parts.append(part)
            size += len(part)
            if size > MAX_OUTPUT_CHARS:
                return {"error": f"it writes more than {MAX_OUTPUT_CHARS} characters", "kind": "template"}
    except Refused as error:
        return {"error": str(error), "kind": "refused"}
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}", "kind": "template"}
    except Exception as error:  # whatever a template does is its own failure
        return {"error": f"{type(error).__name__}: {error}"[:500], "kind": "template"}
    return {"text": "".join(parts)}


def main() -> None:
    """Answers lines until standard input ends, under a limit of memory."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.write(json.dumps(render(request["template"], request["variables"])) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

"""The page at /: static files of this package, under a strict content security policy."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).with_name("static")
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page_routes() -> list[Route]:
    return [Route(path, _file) for path in _FILES]


async def _file(request: Request) -> Response:
    name, media_type = _FILES[request.url.path]
    content = (_FOLDER / name).read_bytes()
    return Response(content, headers={"content-security-policy": _POLICY}, media_type=media_type)

"""The page at /: static files of this package, under a strict content security policy."""

from __future__ import annotations

from starlette.routing import Route


def page_routes() -> list[Route]:
    return []

"""Ways to damage bytes and JSON."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

# what stands where a number, a name or a list should
ODD: list[Any] = [
    None, True, False, 0, 1, 2, 3, 7, -1, 8, 64, 255, 2**31, 2**63, 2**64, 10**30, 10**400, 0.5, -0.1, 1e308, 1e-308,
    float("nan"), float("inf"), "", "x", "1", "\x00", "\ud800", "é" * 99, [], [1], [[]], [1, 2], {}, {"a": 1},
]  # fmt: skip
_BYTES = b'0123456789[]{}",:.-+eE\\/ntfu \x00\x7f\x80\xff'


def bytes_of(raw: bytes, rng: Random) -> bytes:
    """`raw` with a few bytes replaced, removed or repeated."""
    damaged = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(damaged) + 1)
        match rng.randrange(4):
            case 0:
                damaged[at : at + 1] = bytes([rng.choice(_BYTES)])
            case 1:
                damaged[at:at] = bytes([rng.choice(_BYTES)]) * rng.choice((1, 1, 2, 5000))
            case 2:
                del damaged[at : at + rng.choice((1, 2, 8, 1 << 20))]
            case 3:
                damaged[at:at] = damaged[at : at + rng.randint(1, 40)]
    return bytes(damaged)


def json_of(value: Any, rng: Random) -> Any:
    """`value`, nested dicts and lists, with one entry replaced, removed or added. Changes it in place."""
    places = list(_places(value))
    if not places:
        return odd(rng)
    parent, key = rng.choice(places)
    match rng.randrange(8):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[rng.choice(("x", "", "é", "dtype", "shape"))] = odd(rng)
        case 2 if isinstance(parent[key], int):
            parent[key] = int(parent[key]) + rng.choice((-8, -1, 1, 8, 2**32))
        case 3:
            parent[key] = nested(rng.choice((3, 200)))
        case _:
            parent[key] = odd(rng)
    return value


def odd(rng: Random) -> Any:
    return copy.deepcopy(rng.choice(ODD))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def dump(value: Any) -> bytes:
    """JSON as Python writes it: NaN, lone surrogates and numbers of any size included."""
    return json.dumps(value).encode()


def _places(value: Any) -> Any:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield value, key
        yield from _places(inner)

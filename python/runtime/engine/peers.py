"""What the start of one rank needs of the others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from runtime.parallel import TpGroup


class Channel(Protocol):
    """`_core.Launcher` on rank 0, `_core.RankLink` on the others."""

    def exchange(self, data: bytes) -> list[bytes]:
        """What every rank has given, in their order, once all have; EngineDeadError once one is lost."""


class RankChannel(Channel, Protocol):
    """`_core.RankLink`."""

    def show_calls(self, num_calls: int) -> None:
        """How many collectives this rank has called, modulo 2^32: what rank 0 looks at when a step hangs."""


@dataclass(frozen=True)
class Peers:
    """The ranks of one model, as each of them sees them; by default a single one.

    Every rank calls the methods in the same order. They wait for all ranks, and raise EngineDeadError if one is lost.

    Args:
        tp_group: the collectives.
        channel: how ranks tell each other what is no tensor; None: there is nobody to tell.
    """

    tp_group: TpGroup = field(default_factory=TpGroup)
    channel: Channel | None = None

    @property
    def rank(self) -> int:
        """This one's number."""
        return self.tp_group.rank

    @property
    def size(self) -> int:
        """How many there are."""
        return self.tp_group.size

    def gathered(self, values: Mapping[str, float]) -> list[dict[str, float]]:
        """What each rank gives, in their order."""
        return self._exchange(values)

    def smallest(self, **sizes: int) -> dict[str, int]:
        """Each of these numbers, as small as on the rank where it is smallest."""
        given: list[dict[str, int]] = self._exchange(sizes)
        return {name: min(part[name] for part in given) for name in sizes}

    def told(self, **values: int) -> dict[str, int]:
        """The numbers that rank 0 gives; the others give none."""
        told: dict[str, int] = self._exchange(values)[0]
        return told

    def _exchange(self, values: Mapping[str, float]) -> list[dict[str, Any]]:
        if self.channel is None:
            return [dict(values)]
        return [json.loads(part) for part in self.channel.exchange(json.dumps(values).encode())]

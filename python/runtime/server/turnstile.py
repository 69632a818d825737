"""Work that comes in bursts, a part in each turn of the event loop."""

from __future__ import annotations

import asyncio
from collections import deque


class Turnstile:
    """Lets a few tasks through in each turn of the event loop, in the order in which they came.

    Answers, signs of life and new connections have their chance between the turns, however many requests come at once.
    """

    def __init__(self, max_a_turn: int) -> None:
        self._max_a_turn = max_a_turn
        self._num_left = max_a_turn  # in this turn
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        if self._num_left == self._max_a_turn:
            asyncio.get_running_loop().call_soon(self._turn)
        if self._num_left:
            self._num_left -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def _turn(self) -> None:
        """The next one: those who wait go first."""
        self._num_left = self._max_a_turn
        while self._waiting and self._num_left:
            turn = self._waiting.popleft()
            if not turn.done():  # cancelled
                turn.set_result(None)
                self._num_left -= 1
        if self._num_left < self._max_a_turn:
            asyncio.get_running_loop().call_soon(self._turn)

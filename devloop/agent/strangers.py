"""Connections of people who have not said yet who they are: the one policy for all that the agent listens on.

Anybody who reaches a port may connect, and say nothing. So strangers are counted, by address and in all; each has a
deadline; and where there are too many, the oldest makes room, of the address that has the most. Nobody is locked out by
it: who knows what to say says it at once, long before they are the oldest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from types import TracebackType
from typing import Self


class Stranger:
    """One of them; a context manager, whose end is that of the connection's time as a stranger's, whatever happens."""

    def __init__(self, strangers: Strangers, address: str, number: int, close: Callable[[], None]) -> None:
        self.address = address
        self.number = number
        self._strangers = strangers
        self._close = close
        self._timer = asyncio.get_running_loop().call_later(strangers.seconds, self.turn_away)

    def known(self) -> None:
        """It has said who it is, or has ended. May be called twice."""
        self._timer.cancel()
        self._strangers.forget(self)

    def turn_away(self) -> None:
        """Its time is over, or somebody else needs its place."""
        self.known()
        self._close()

    def __enter__(self) -> Self:
        """Nothing to do: it is counted already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Count it no more."""
        self.known()


class Strangers:
    """Those of one port: at most `each` of one address, `total` of all, `seconds` long."""

    def __init__(self, *, total: int, each: int, seconds: float) -> None:
        self.seconds = seconds
        self._total = total
        self._each = each
        self._numbers = count()
        self._there: dict[str, dict[int, Stranger]] = {}
        """By address, the oldest first."""

    def __len__(self) -> int:
        """How many there are."""
        return sum(map(len, self._there.values()))

    def arrived(self, address: str, close: Callable[[], None]) -> Stranger:
        """One more. `close` ends its connection, and is called once at most; the oldest one's may be, at once."""
        mine = self._there.get(address, {})
        if len(mine) >= self._each:
            next(iter(mine.values())).turn_away()
        elif len(self) >= self._total:
            most = max(self._there.values(), key=len)
            next(iter(most.values())).turn_away()
        made = Stranger(self, address, next(self._numbers), close)
        self._there.setdefault(address, {})[made.number] = made
        return made

    def forget(self, stranger: Stranger) -> None:
        """It is none any more."""
        found = self._there.get(stranger.address)
        if found is not None:
            found.pop(stranger.number, None)
            if not found:
                del self._there[stranger.address]

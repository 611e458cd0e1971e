"""From changed files to settled bursts, for all services: the debounces of the core, with real timers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from devloop.config.model import SECOND
from devloop.core.debounce import Burst, Debounce
from devloop.local.git import LOOK_AGAIN, Repository


class Bursts:
    """`on_settled(name, burst)` is called when what changed under a name has come to rest.

    Nothing has while `busy` says so: there are reports of changes then that nobody has looked at yet.
    """

    def __init__(self, root: Path, on_settled: Callable[[str, Burst], None], busy: Callable[[], bool]) -> None:
        self._busy = busy
        self._git = Repository(root)
        self._on_settled = on_settled
        self._debounces: dict[str, Debounce] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def changed(self, name: str, files: tuple[str, ...], quiet: int, at: int) -> None:
        """Files have changed at this monotonic time. `quiet`: shortest quiet time. Both in nanoseconds."""
        debounce = self._debounces.setdefault(name, Debounce(quiet))
        debounce.quiet = quiet
        self._look_at(name, debounce.feed(files, at))

    def close(self) -> None:
        """Forget what is under way."""
        for timer in self._timers.values():
            timer.cancel()

    def _look_at(self, name: str, deadline: int) -> None:
        timer = self._timers.get(name)
        if timer is not None:
            timer.cancel()
        delay = max(0, deadline - time.monotonic_ns()) / SECOND
        self._timers[name] = asyncio.get_running_loop().call_later(delay, self._look, name)

    def _look(self, name: str) -> None:
        debounce = self._debounces[name]
        now = time.monotonic_ns()
        again = now + LOOK_AGAIN if self._busy() else self._git.busy_until(now)
        if again is None:
            burst = debounce.settle(now)
            if burst is not None:
                self._on_settled(name, burst)
                return
            again = debounce.deadline
        self._look_at(name, again)

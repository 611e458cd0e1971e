"""Looks at files in intervals, where there are no events, or not of everything."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Protocol

from devloop.agent.tasks import background
from devloop.local.watch.scope import Scope

POLL_INTERVAL = 500_000_000
"""Nanoseconds between two looks, unless `poll` says otherwise."""
SHARE = 0.1
"""Of one core's time, what looking takes at the most: a look at a big tree is followed by a longer pause."""
WHOLE = 0.05
"""A file whose size and time stay for so long, in seconds, counts as whole."""
LONGEST_WAIT = 2.0
"""Seconds after which a file that is still being written counts all the same."""


class Polled(Protocol):
    """What is polled."""

    def polled(self) -> list[Scope]:
        """Those that are to be polled, in whole or in part."""

    def poll(self, scopes: list[Scope]) -> list[str]:
        """Look at these; the files whose content has changed. Runs in a thread."""

    def polled_changes(self, paths: list[str]) -> None:
        """These have changed."""


class Poller:
    """One task and one thread at a time for all that is polled."""

    def __init__(self, target: Polled) -> None:
        self.everything = False
        """There is no other way: the system's limits are used up."""
        self._target = target
        self._task: asyncio.Task[None] | None = None

    def interval(self, scope: Scope) -> int:
        """Nanoseconds between two looks at it."""
        return scope.spec.poll or POLL_INTERVAL

    def start(self) -> None:
        """Poll from now on, if there is anything to be polled."""
        if self._task is None and self._target.polled():
            self._task = background(self._run(), name="polling")

    def stop(self) -> None:
        """Poll no more."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        due: dict[int, int] = {}
        while True:
            scopes = self._target.polled()
            now = time.monotonic_ns()
            due = {id(s): due.get(id(s), now + self.interval(s)) for s in scopes}
            ready = [s for s in scopes if due[id(s)] <= now]
            if ready:
                changed, took = await asyncio.to_thread(self._look, ready)
                if changed:
                    self._target.polled_changes(changed)
                now = time.monotonic_ns()
                pause = int(took / SHARE)
                due.update((id(s), now + max(self.interval(s), pause)) for s in ready)
            wait = min((at - now for at in due.values()), default=POLL_INTERVAL)
            await asyncio.sleep(max(wait, 1_000_000) / 1e9)

    def _look(self, scopes: list[Scope]) -> tuple[list[str], int]:
        """What has changed, and the processor time that it took, in nanoseconds."""
        began = time.thread_time_ns()
        changed = self._target.poll(scopes)
        return changed, time.thread_time_ns() - began

    @staticmethod
    def wait_until_whole(files: list[str]) -> None:
        """Wait until nobody writes into them any more, as far as can be seen. For the thread."""
        end = time.monotonic() + LONGEST_WAIT
        before = _looks(files)
        while files and time.monotonic() < end:
            time.sleep(WHOLE)
            now = _looks(files)
            files, before = [path for path in files if now[path] != before[path]], now


def _looks(files: list[str]) -> dict[str, tuple[int, int] | None]:
    found: dict[str, tuple[int, int] | None] = {}
    for path in files:
        try:
            info = os.stat(path)
        except OSError:
            found[path] = None
        else:
            found[path] = (info.st_size, info.st_mtime_ns)
    return found

"""Events from watchfiles: where there is no inotify and, by polling, where its limits are reached."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

from devloop.agent.tasks import background

POLL_INTERVAL = 400
"""Milliseconds between two looks at every file, when polling."""


class WatchfilesSource:
    """Watches trees. `on_files` gets paths that were written, moved or deleted."""

    whole_files = False
    """A report may come while the file is still being written (samuelcolvin/watchfiles#360)."""

    def __init__(self, on_files: Callable[[list[Path]], None], *, poll: bool) -> None:
        self._on_files = on_files
        self._poll = poll
        self._roots: set[Path] = set()
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

    def add(self, folders: Iterable[Path]) -> None:
        """Watch these folders, and what lies below them, from the next `resume` on."""
        self._roots.update(folders)

    def resume(self) -> None:
        """Deliver events."""
        self._stop = asyncio.Event()
        if self._roots:
            self._task = background(self._run(self._stop), name="watchfiles")

    def pause(self) -> None:
        """Deliver no events until `resume`; those between are lost."""
        self._stop.set()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        if self._task is not None:
            self._task.cancel()

    async def _run(self, stop: asyncio.Event) -> None:
        from watchfiles import awatch

        # Parents only: watchfiles reports what lies below by itself.
        tops = [r for r in self._roots if not any(o != r and r.is_relative_to(o) for o in self._roots)]
        async for changes in awatch(
            *tops,
            watch_filter=None,
            step=20,
            debounce=100,
            stop_event=stop,
            force_polling=self._poll,
            poll_delay_ms=POLL_INTERVAL,
        ):
            self._on_files([Path(path) for _, path in changes])

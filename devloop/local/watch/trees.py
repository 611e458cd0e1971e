"""Events from watchfiles, where there is no inotify."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from devloop.agent.tasks import background
from devloop.local.watch.source import Happening, Kind


class WatchfilesSource:
    """Watches trees."""

    whole_files = False
    """A report may come while the file is still being written (samuelcolvin/watchfiles#360)."""

    def __init__(self, deliver: Callable[[list[Happening]], None]) -> None:
        self._deliver = deliver
        self._folders: set[Path] = set()
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._paused = True

    def add(self, folder: str) -> OSError | None:
        """Watch this folder, and what lies below it, from the next `resume` on."""
        path = Path(folder)
        covered = any(each in self._folders for each in (path, *path.parents))
        self._folders.add(path)
        if not covered and not self._paused:
            self.pause()
            self.resume()
        return None

    def drop(self, folder: str) -> None:
        """Watch it no more, from the next `resume` on."""
        self._folders = {each for each in self._folders if not each.is_relative_to(folder)}

    def resume(self) -> None:
        """Deliver events."""
        self._stop = asyncio.Event()
        self._paused = False
        if self._folders:
            self._task = background(self._run(self._stop), name="watchfiles")

    def pause(self) -> None:
        """Deliver no events until `resume`; those between are lost."""
        self._paused = True
        self._stop.set()

    def close(self) -> None:
        """Stop watching."""
        self.pause()
        if self._task is not None:
            self._task.cancel()

    async def _run(self, stop: asyncio.Event) -> None:
        from watchfiles import awatch

        # Parents only: watchfiles reports what lies below by itself.
        tops = [r for r in self._folders if r.is_dir() and not any(p in self._folders for p in r.parents)]
        if not tops:
            return
        async for changes in awatch(*tops, watch_filter=None, step=20, debounce=100, stop_event=stop):
            self._deliver([happening(Path(path)) for _, path in changes])


def happening(path: Path) -> Happening:
    """What a report without a kind means: what is there now tells."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            return Kind.FOLDER_CAME, str(path)
        if path.exists() or path.is_symlink():
            return Kind.PLACED, str(path)
    return Kind.GONE, str(path)

"""All services' files, watched by one source, and told apart."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from devloop.agent.tasks import background
from devloop.local.watch.fingerprint import Fingerprints
from devloop.local.watch.polling import POLL_INTERVAL, WatchfilesSource
from devloop.local.watch.scope import Scope, WatchSpec
from devloop.local.watch.source import Source, WatchLimitError

PLAUSIBLE = 2_000_000_000
"""A modification time further back than this, in nanoseconds, was not set by the save that is reported: the
file was moved or copied here."""
UNWHOLE_QUIET = 60_000_000
"""Shortest quiet time where the source can't tell that a file is whole, in nanoseconds."""


class Watcher:
    """Tells which watched files of which service have changed their content.

    `on_change(service, files, edited, detected)`: files relative to `root` where they lie below it; edited is
    the modification time of the first of them, detected that of the report, both monotonic nanoseconds.
    `on_trouble(text, hint)` is told when watching is not what it should be.
    """

    def __init__(
        self,
        root: Path,
        on_change: Callable[[str, tuple[str, ...], int, int], None],
        on_trouble: Callable[[str, str], None],
    ) -> None:
        self._root = root
        self._on_change = on_change
        self._on_trouble = on_trouble
        self._scopes: dict[str, Scope] = {}
        self._source: Source | None = None
        self._prints = Fingerprints()
        self._lock = asyncio.Lock()
        self._learning: asyncio.Task[None] | None = None

    @property
    def quiet(self) -> int:
        """Shortest quiet time that the source allows, in nanoseconds."""
        return 0 if self._source is None or self._source.whole_files else UNWHOLE_QUIET

    async def watch(self, specs: Iterable[WatchSpec]) -> None:
        """Watch exactly this. Returns when the kernel reports every change.

        Changes between the call and its return are not missed: they are found by their modification time.
        """
        began = time.time_ns()
        async with self._lock:
            before = self._scopes
            self._scopes = {}
            for spec in specs:
                known = before.get(spec.name)
                self._scopes[spec.name] = known if known and known.spec == spec else Scope(spec)
            if self._source is None:
                self._source = await asyncio.to_thread(self._open_source)
            else:
                self._source.pause()
            await self._arm(began)
            self._source.resume()

    async def close(self) -> None:
        """Stop watching."""
        async with self._lock:  # a thread that is opening the source can't be interrupted
            if self._learning is not None:
                self._learning.cancel()
                await asyncio.gather(self._learning, return_exceptions=True)
            if self._source is not None:
                self._source.close()
                self._source = None

    def quarantine(self, service: str, files: Iterable[str]) -> None:
        """Pass over these files for this service."""
        if service in self._scopes:
            self._scopes[service].quarantine.update(self._root / file for file in files)

    def release(self, service: str) -> None:
        """Watch them again."""
        if service in self._scopes:
            self._scopes[service].quarantine.clear()

    async def _arm(self, began: int) -> None:
        assert self._source is not None
        files: list[Path] = []
        folders: list[Path] = []
        await asyncio.to_thread(self._survey, folders, files)
        try:
            await asyncio.to_thread(self._source.add, folders)
        except WatchLimitError as error:
            self._source.close()
            self._source = self._polling_instead(error.name)
            self._source.add(folders)
        # Learned after the watch is armed, so that nothing is missed between; see FRESH.
        self._learning = background(self._learn(files, began))

    async def _learn(self, files: list[Path], began: int) -> None:
        modified = await asyncio.to_thread(self._prints.learn, files, began)
        if modified:
            self._changed(modified)

    def _survey(self, folders: list[Path], files: list[Path]) -> None:
        seen: set[Path] = set()
        for scope in self._scopes.values():
            folders.extend({path.parent for path in scope.files} - seen)
            files.extend(scope.files)
            for root in scope.folders:
                for folder, inside in scope.walk(root):
                    if folder not in seen:
                        seen.add(folder)
                        folders.append(folder)
                    files.extend(inside)

    def _open_source(self) -> Source:
        if sys.platform != "linux":
            return WatchfilesSource(self._changed, poll=False)
        from devloop.local.watch.inotify import InotifySource

        try:
            return InotifySource(self._changed, self._folder_appeared, self._folder_gone, self._overflow)
        except WatchLimitError as error:
            return self._polling_instead(error.name)

    def _polling_instead(self, limit: str) -> Source:
        self._on_trouble(
            f"the limit fs.inotify.{limit} is reached: files are polled every {POLL_INTERVAL} ms instead",
            f"raise it with `sudo sysctl fs.inotify.{limit}={'524288' if 'watches' in limit else '1024'}`, "
            "or ignore large folders",
        )
        return WatchfilesSource(self._changed, poll=True)

    def _folder_appeared(self, folder: Path) -> None:
        found: dict[Path, None] = {}
        for scope in self._scopes.values():
            if scope.watches_folder(folder):
                for below, files in scope.walk(folder):
                    self._add(below)
                    found.update(dict.fromkeys(files))
        # Files that were written before the new folder could be watched.
        if found:
            self._changed(list(found))

    def _add(self, folder: Path) -> None:
        assert self._source is not None
        try:
            self._source.add([folder])
        except WatchLimitError as error:
            self._source.close()
            self._source = self._polling_instead(error.name)
            self._source.add([f for scope in self._scopes.values() for f in scope.folders])
            self._source.resume()

    def _folder_gone(self, folder: Path) -> None:
        files = self._prints.below(folder)
        if files:
            self._changed(files)

    def _overflow(self) -> None:
        """The kernel has dropped events: look at everything."""
        folders: list[Path] = []
        files: list[Path] = []
        self._survey(folders, files)
        for folder in folders:
            self._add(folder)
        self._changed(files)

    def _changed(self, paths: list[Path]) -> None:
        detected = time.monotonic_ns()
        for path in paths:
            if path.name == ".gitignore":
                for scope in self._scopes.values():
                    scope.ignore.forget(path.parent)
        concerned: dict[str, list[Path]] = {}
        for path in paths:
            names = [
                name
                for name, scope in self._scopes.items()
                if (path in scope.files or scope.watches_folder(path.parent)) and scope.watches_file(path)
            ]
            # Asked once for all services: asking makes the new content the known one.
            if names and self._prints.changed(path):
                for name in names:
                    concerned.setdefault(name, []).append(path)
        for name, files in concerned.items():
            edited = min(_edited(path, detected) for path in files)
            self._on_change(name, tuple(self._relative(path) for path in files), edited, detected)

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self._root) if path.is_relative_to(self._root) else path)


def _edited(path: Path, detected: int) -> int:
    """When the file was written, on the monotonic clock; the time of the report if that can't be known."""
    try:
        age = time.time_ns() - path.stat().st_mtime_ns
    except OSError:
        return detected
    return time.monotonic_ns() - age if 0 <= age < PLAUSIBLE else detected

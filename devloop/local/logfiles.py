"""What services print, on disk: rotated files, written by a thread."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from devloop.config.model import LOGS_KEPT

FILES = 10
"""Files of each service; the oldest is dropped when another is begun, so at least nine tenths are there."""
SMALLEST = 64 * 1024
"""A file is not rotated before it has this size, in bytes."""
PENDING = 16 * 1024 * 1024
"""Bytes that may wait for the disk; what comes on top is left out of the file, with a mark."""


class LogFiles:
    """Rotated files, written by a thread: a slow disk delays neither a service nor a reload.

    What can't be written is counted: the file says it where the lines would be, and `tell` is called (in the
    thread) with a sentence when it begins.
    """

    def __init__(self, folder: Path, keep: int = LOGS_KEPT, tell: Callable[[str], None] | None = None) -> None:
        """`keep`: bytes for each service; 0 writes nothing."""
        self.keep = keep
        self._folder = folder
        self._tell = tell
        self._queue: queue.SimpleQueue[tuple[str, bytes] | None] = queue.SimpleQueue()
        self._queued = 0
        self._written = 0
        self._slow: dict[str, int] = {}
        """Service → bytes left out because too many wait."""
        self._failed: dict[str, int] = {}
        """Service → bytes that the disk did not take. The thread's."""
        self._broken = False
        self._thread = threading.Thread(target=self._run, name="log-files", daemon=True)
        self._thread.start()

    def write(self, service: str, data: bytes) -> None:
        """Append whole lines, soon."""
        if not self.keep:
            return
        if self._queued - self._written + len(data) > PENDING:
            self._slow[service] = self._slow.get(service, 0) + len(data)
            return
        missing = self._slow.pop(service, 0)
        if missing:
            data = _mark(missing, "the disk was too slow") + data
        self._queued += len(data)
        self._queue.put((service, data))

    def close(self) -> None:
        """Write out what is pending. Blocks."""
        for service, missing in self._slow.items():
            self._queue.put((service, _mark(missing, "the disk was too slow")))
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            service, data = item
            missing = self._failed.get(service, 0)
            try:
                self._append(service, _mark(missing, "they could not be written") + data if missing else data)
            except OSError as error:
                self._failed[service] = missing + len(data)
                self._complain(error)
            else:
                self._broken = False
                self._failed.pop(service, None)
            self._written += len(data)

    def _complain(self, error: OSError) -> None:
        if not self._broken and self._tell is not None:
            self._tell(f"what services print can't be written to {self._folder}: {error.strerror}")
        self._broken = True

    def _append(self, service: str, data: bytes) -> None:
        path = self._folder / f"{service}.log"
        size = max(SMALLEST, self.keep // FILES)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # somebody may have cleaned up
        with open(path, "ab", buffering=0, opener=_private) as file:
            before = file.tell()
            if before and before + len(data) > size:
                file.close()
                _rotate(path)
                self._append(service, data)
                return
            view = memoryview(data)
            try:
                while view:
                    view = view[file.write(view) :]
            except OSError:
                with contextlib.suppress(OSError):  # no half of a line stays
                    file.truncate(before)
                raise


def _rotate(path: Path) -> None:
    """Each file becomes the next older one; the oldest goes, and whatever an earlier, longer setting has left."""
    for number, old in list(older(path)):
        if number >= FILES - 1:
            old.unlink(missing_ok=True)
    for number in range(FILES - 1, 0, -1):
        newer = path.with_name(f"{path.name}.{number - 1}") if number > 1 else path
        with contextlib.suppress(FileNotFoundError):
            newer.replace(path.with_name(f"{path.name}.{number}"))


def older(path: Path) -> Iterator[tuple[int, Path]]:
    """The rotated files of one log, the newest first."""
    found = [
        (int(number), each)
        for each in path.parent.glob(f"{path.name}.*")
        if (number := each.name[len(path.name) + 1 :]).isdecimal()
    ]
    yield from sorted(found)


def last_lines(path: Path, count: int) -> list[bytes]:
    """The last lines of a log, over its rotated files, oldest first. Raises OSError."""
    lines: list[bytes] = []
    for file in (path, *(each for _, each in older(path))):
        if len(lines) >= count:
            break
        try:
            found = file.read_bytes().removesuffix(b"\n")
        except FileNotFoundError:
            continue  # it was rotated meanwhile
        if found:
            lines[:0] = found.split(b"\n")
    return lines[-count:] if count else []


def _mark(missing: int, why: str) -> bytes:
    return f"[devloop: {missing} bytes left out, {why}]\n".encode()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)

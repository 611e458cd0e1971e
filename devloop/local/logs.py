"""What services print: a bounded ring in memory, rotated files on disk, readers that can't be overrun.

Built for 100,000 lines a second: a chunk of a pipe is split once, its lines stay bytes, and are decoded only
when somebody reads them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from devloop.protocol import LogLine

MAX_LINES = 10_000
"""Lines kept in memory for each service."""
MAX_BYTES = 4 * 1024 * 1024
"""Bytes kept in memory for each service."""
MAX_LINE = 16 * 1024
"""A longer line is cut here, with a mark that tells how much is missing, in bytes."""
FILE_SIZE = 10 * 1024 * 1024
"""A log file is rotated at this size, in bytes."""
FILES = 3
"""Log files kept for each service."""
PIPE_SIZE = 256 * 1024
"""Of a pipe that a service writes into, and the most that is read from it at once, in bytes."""
READ_PAUSE = 0.005
"""Seconds between two reads of one pipe: who prints line by line would otherwise wake us for each."""
PARTIAL = 0.25
"""Seconds after which a line without an end (a prompt) is shown all the same."""

OUT, ERR, BUILD, DEVLOOP = "out", "err", "build", "devloop"


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Lines that came together."""

    first: int
    """Number of the first line among all lines of all services."""
    at: int
    stream: str
    lines: list[bytes]
    size: int


class Ring:
    """The newest lines of one service."""

    def __init__(self) -> None:
        self.chunks: deque[_Chunk] = deque()
        self.count = 0
        self.size = 0

    def add(self, chunk: _Chunk) -> None:
        """Add lines; the oldest go."""
        self.chunks.append(chunk)
        self.count += len(chunk.lines)
        self.size += chunk.size
        while len(self.chunks) > 1 and (self.count > MAX_LINES or self.size > MAX_BYTES):
            oldest = self.chunks.popleft()
            self.count -= len(oldest.lines)
            self.size -= oldest.size

    def after(self, number: int, limit: int) -> list[tuple[int, _Chunk, bytes]]:
        """The newest lines numbered `number` and up, at most `limit`, newest first."""
        found: list[tuple[int, _Chunk, bytes]] = []
        for chunk in reversed(self.chunks):
            for index in range(len(chunk.lines) - 1, -1, -1):
                if chunk.first + index < number or len(found) >= limit:
                    return found
                found.append((chunk.first + index, chunk, chunk.lines[index]))
        return found


class LogBook:
    """All services' logs. `on_lines` is told of each service that has printed."""

    def __init__(self, folder: Path | None, on_lines: Callable[[str], None]) -> None:
        self._rings: dict[str, Ring] = {}
        self._total = 0
        self._on_lines = on_lines
        self._matchers: dict[str, tuple[re.Pattern[bytes], Callable[[], None]]] = {}
        self._files = LogFiles(folder) if folder is not None else None

    @property
    def cursor(self) -> int:
        """The number of lines ever logged."""
        return self._total

    def add(self, service: str, stream: str, lines: list[bytes]) -> None:
        """Lines without their ends, oldest first."""
        if not lines:
            return
        kept = lines[-MAX_LINES:]
        size = sum(map(len, kept))
        first = self._total + len(lines) - len(kept)
        self._rings.setdefault(service, Ring()).add(_Chunk(first, time.time_ns(), stream, kept, size))
        self._total += len(lines)
        if self._files is not None:
            self._files.write(service, b"\n".join(lines) + b"\n")
        matcher = self._matchers.get(service)
        if matcher is not None and any(map(matcher[0].search, lines)):
            del self._matchers[service]
            matcher[1]()
        self._on_lines(service)

    def say(self, service: str, text: str) -> None:
        """A line of devloop's own in a service's log."""
        self.add(service, DEVLOOP, [text.encode("utf-8", "replace")])

    def tail(self, services: Sequence[str] | None, lines: int) -> list[LogLine]:
        """The last lines of these services (None: all), oldest first."""
        return self.since(services, 0, lines)[0]

    def since(self, services: Sequence[str] | None, cursor: int, limit: int) -> tuple[list[LogLine], int, int]:
        """The newest `limit` lines after `cursor`, the new cursor, and how many were passed over.

        Of a part of the services, lines that have left the ring already are not counted as passed over.
        """
        names = self._rings.keys() if services is None else [s for s in services if s in self._rings]
        # One more than asked for, to know what is passed over without walking through all of it.
        found = [(item, name) for name in names for item in self._rings[name].after(cursor, limit)]
        found.sort(key=lambda pair: pair[0][0])
        lines = [_decode(name, chunk, line) for (_, chunk, line), name in found[-limit:] if limit]
        new = self._total - cursor if services is None else sum(self._newer(n, cursor) for n in names)
        return lines, self._total, max(0, new - len(lines))

    def _newer(self, name: str, cursor: int) -> int:
        return sum(
            min(len(chunk.lines), max(0, chunk.first + len(chunk.lines) - cursor)) for chunk in self._rings[name].chunks
        )

    def when(self, service: str, pattern: str, then: Callable[[], None]) -> None:
        """Call `then` once, at the next line that matches. Replaces an earlier one of the service."""
        self._matchers[service] = (re.compile(pattern.encode()), then)

    def never_mind(self, service: str) -> None:
        """Take back `when`."""
        self._matchers.pop(service, None)

    def forget(self, service: str) -> None:
        """The service is gone from the project; its files stay."""
        self._rings.pop(service, None)
        self._matchers.pop(service, None)

    def close(self) -> None:
        """Write out what is pending."""
        if self._files is not None:
            self._files.close()


def _decode(service: str, chunk: _Chunk, line: bytes) -> LogLine:
    # What a progress bar has overwritten is not shown again.
    text = line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace")
    return LogLine(service, chunk.at, chunk.stream, text)


class LineSplitter:
    """Cuts a stream of bytes into lines, however they arrive."""

    def __init__(self) -> None:
        self._rest = b""
        self._cut = 0  # bytes of an overlong line that were thrown away so far

    @property
    def partial(self) -> bool:
        """Whether the end of a line is outstanding."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole now."""
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = self._finish(lines[0])
            if len(data) > MAX_LINE and max(map(len, lines)) > MAX_LINE:
                lines[1:] = [_cut(line) if len(line) > MAX_LINE else line for line in lines[1:]]
            self._rest = b""
        self._rest += rest
        if len(self._rest) > MAX_LINE:
            self._cut += len(self._rest) - MAX_LINE
            self._rest = self._rest[:MAX_LINE]
        return lines

    def flush(self) -> list[bytes]:
        """What there is of an unfinished line."""
        return [self._finish(b"")] if self._rest else []

    def _finish(self, end: bytes) -> bytes:
        line, self._rest = self._rest + end, b""
        cut, self._cut = self._cut, 0
        return _cut(line, cut) if cut or len(line) > MAX_LINE else line


def _cut(line: bytes, already: int = 0) -> bytes:
    missing = len(line) - MAX_LINE + already
    return line[:MAX_LINE] + f"\x1b[0m … [{missing} bytes cut by devloop]".encode()


class PipeReader:
    """Reads one pipe into the book until its other end is closed or `close` is called."""

    def __init__(self, book: LogBook, service: str, stream: str, raw: Callable[[bytes], None] = lambda _: None) -> None:
        """`raw` is given all that is read, as it is read."""
        self._book = book
        self._service = service
        self._stream = stream
        self._raw = raw
        self._splitter = LineSplitter()
        self._fd, self.write_end = self._open()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._fd, self._read)

    def _open(self) -> tuple[int, int]:
        """The end that is read, which does not block, and the one that is written."""
        fd, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(write_end, True)
        with contextlib.suppress(OSError, AttributeError):  # not everywhere, and limited for each user
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        return fd, write_end

    def _take(self) -> bytes:
        """What there is; nothing at the end. Raises BlockingIOError if there is nothing yet."""
        return os.read(self._fd, PIPE_SIZE)

    def _add(self, data: bytes) -> None:
        self._raw(data)
        self._book.add(self._service, self._stream, self._splitter.feed(data))

    def handed_over(self) -> None:
        """The write end is in other hands now."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def close(self) -> None:
        """Read what is there, then stop, even if someone still holds the other end."""
        if self._fd < 0:
            return
        self.handed_over()
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(OSError):
            for _ in range(4):
                self._add(self._take())
        self._end()

    def _read(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            data = self._take()
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end()
            return
        self._add(data)
        self._loop.remove_reader(self._fd)
        self._timer = self._loop.call_later(READ_PAUSE, self._listen)

    def _listen(self) -> None:
        self._timer = self._loop.call_later(PARTIAL, self._flush) if self._splitter.partial else None
        self._loop.add_reader(self._fd, self._read)

    def _flush(self) -> None:
        self._timer = None
        self._book.add(self._service, self._stream, self._splitter.flush())

    def _end(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._book.add(self._service, self._stream, self._splitter.flush())


class LogFiles:
    """Rotated files, written by a thread: a slow disk delays neither a service nor a reload."""

    PENDING = 16 * 1024 * 1024
    """Bytes that may wait for the disk; what comes on top is left out of the file, with a mark."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._queue: queue.SimpleQueue[tuple[str, bytes] | None] = queue.SimpleQueue()
        self._pending = 0
        self._dropped: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name="log-files", daemon=True)
        self._thread.start()

    def write(self, service: str, data: bytes) -> None:
        """Append, soon."""
        if self._pending + len(data) > self.PENDING:
            self._dropped[service] = self._dropped.get(service, 0) + len(data)
            return
        missing = self._dropped.pop(service, 0)
        if missing:
            data = f"[devloop: {missing} bytes left out, the disk was too slow]\n".encode() + data
        self._pending += len(data)
        self._queue.put((service, data))

    def close(self) -> None:
        """Write out what is pending. Blocks."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            service, data = item
            with contextlib.suppress(OSError):  # a full disk must not end a service
                self._append(service, data)
            self._pending -= len(data)

    def _append(self, service: str, data: bytes) -> None:
        path = self._folder / f"{service}.log"
        with open(path, "ab", opener=_private) as file:
            if file.tell() and file.tell() + len(data) > FILE_SIZE:
                file.close()
                for number in range(FILES - 1, 0, -1):
                    older = path.with_suffix(f".log.{number}")
                    newer = path.with_suffix(f".log.{number - 1}") if number > 1 else path
                    with contextlib.suppress(FileNotFoundError):
                        newer.replace(older)
            else:
                file.write(data)
                return
        self._append(service, data)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)

"""What services print: a bounded ring in memory, rotated files on disk, readers that can't be overrun.

Built for 100,000 lines a second: a chunk of a pipe is split once, its lines stay bytes, and are decoded only
when somebody reads them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from devloop.config.model import LOGS_KEPT
from devloop.escapes import overwritten, plain
from devloop.local.logfiles import LogFiles
from devloop.local.ring import Chunk, Ring
from devloop.protocol import LogLine

MAX_LINE = 16 * 1024
"""A longer line is cut here, with a mark that tells how much is missing, in bytes."""
PIPE_SIZE = 256 * 1024
"""Of a pipe that a service writes into, and the most that is read from it at once, in bytes."""
READ_PAUSE = 0.005
"""Seconds between two reads of one pipe: who prints line by line would otherwise wake us for each."""
PARTIAL = 0.25
"""Seconds after which a line without an end (a prompt, a progress bar) is shown, and shown anew if it has changed."""

OUT, ERR, BUILD, DEVLOOP = "out", "err", "build", "devloop"


class Sink(Protocol):
    """Who takes every line as it comes, and may be slower than a service: `up --headless`."""

    def put(self, service: str, at: int, stream: str, lines: list[bytes], *, partial: bool) -> None:
        """Take them; never blocks. `partial` is one line that has no end yet."""

    def full(self, service: str) -> bool:
        """Whether nothing more of this service is to be read for now."""


@dataclass(frozen=True, slots=True)
class _Partial:
    """A line without an end, as it is now."""

    revision: int
    at: int
    line: bytes


class LogBook:
    """All services' logs. `on_lines` is told of each service that has printed."""

    def __init__(
        self,
        folder: Path | None,
        on_lines: Callable[[str], None],
        *,
        keep: int = LOGS_KEPT,
        tell: Callable[[str], None] | None = None,
        sink: Sink | None = None,
    ) -> None:
        """`keep` and `tell`: see LogFiles."""
        self._rings: dict[str, Ring] = {}
        self._total = 0
        self._partials: dict[tuple[str, str], _Partial] = {}
        self._revision = 0
        self._on_lines = on_lines
        self._matchers: dict[str, tuple[re.Pattern[bytes], Callable[[], None]]] = {}
        self._followers: set[Follower] = set()
        self._sink = sink
        self._waiting: dict[str, list[Callable[[], None]]] = {}
        self._files = LogFiles(folder, keep, tell) if folder is not None else None

    @property
    def cursor(self) -> int:
        """The number of lines ever logged."""
        return self._total

    def add(self, service: str, stream: str, lines: list[bytes]) -> None:
        """Lines without their ends, oldest first."""
        if not lines:
            return
        if self._partials:
            self._partials.pop((service, stream), None)
        at = time.time_ns()
        held = min((f.position(service) for f in self._followers if f.wants(service)), default=None)
        self._rings.setdefault(service, Ring()).add(self._total, at, stream, lines, held)
        self._total += len(lines)
        if self._files is not None:
            self._files.write(service, b"\n".join(lines) + b"\n")
        if self._sink is not None:
            self._sink.put(service, at, stream, lines, partial=False)
        self._match(service, lines)
        self._on_lines(service)

    def partial(self, service: str, stream: str, line: bytes) -> None:
        """A line that has no end yet, as it is now. It is no line before it has one: `add` takes its place."""
        self._revision += 1
        at = time.time_ns()
        self._partials[service, stream] = _Partial(self._revision, at, line)
        if self._sink is not None:
            self._sink.put(service, at, stream, [line], partial=True)
        self._match(service, [line])
        self._on_lines(service)

    def say(self, service: str, text: str) -> None:
        """Lines of devloop's own in a service's log."""
        self.add(service, DEVLOOP, [line.encode("utf-8", "replace") for line in text.split("\n")])

    def _match(self, service: str, lines: list[bytes]) -> None:
        matcher = self._matchers.get(service)
        if matcher is None:
            return
        search = matcher[0].search
        if any(map(search, lines)) or any(search(plain(_text(one)).encode()) for one in lines if b"\x1b" in one):
            del self._matchers[service]
            matcher[1]()

    def tail(self, services: Sequence[str] | None, lines: int) -> list[LogLine]:
        """The last lines of these services (None: all), oldest first."""
        return self.since(services, 0, lines)[0]

    def since(self, services: Sequence[str] | None, cursor: int, limit: int) -> tuple[list[LogLine], int, int]:
        """The newest `limit` lines after `cursor`, the new cursor, and how many were passed over.

        Of a part of the services, lines that have left the ring already are not counted as passed over.
        """
        names = self._names(services)
        # One more than asked for, to know what is passed over without walking through all of it.
        found = [(item, name) for name in names for item in self._rings[name].after(cursor, limit)]
        found.sort(key=lambda pair: pair[0][0])
        lines = [
            LogLine(name, chunk.at, chunk.stream, _text(line)) for (_, chunk, line), name in found[-limit:] if limit
        ]
        new = self._total - cursor if services is None else sum(self._newer(n, cursor) for n in names)
        return lines, self._total, max(0, new - len(lines))

    def partials(self, services: Sequence[str] | None, revision: int) -> tuple[list[LogLine], int]:
        """Lines without an end that have changed since this revision (0: all), and the new revision."""
        if revision == self._revision:
            return [], revision
        found = [
            LogLine(name, each.at, stream, _text(each.line), partial=True)
            for (name, stream), each in self._partials.items()
            if each.revision > revision and (services is None or name in services)
        ]
        return found, self._revision

    def follow(self, services: Sequence[str] | None) -> Follower:
        """Who gets every line from now on, as long as memory holds those that it has not read."""
        follower = Follower(self._rings, services, self._followers.discard)
        self._followers.add(follower)
        return follower

    def count(self, services: Sequence[str] | None) -> int:
        """How many lines these services have printed."""
        return sum(self._rings[name].end for name in self._names(services))

    def _names(self, services: Sequence[str] | None) -> list[str]:
        return list(self._rings) if services is None else [s for s in services if s in self._rings]

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

    def must_wait(self, service: str, then: Callable[[], None]) -> bool:
        """Whether nothing more of this service is to be read for now; `then` is called once it is."""
        if self._sink is None or not self._sink.full(service):
            return False
        self._waiting.setdefault(service, []).append(then)
        return True

    def may_go_on(self, service: str) -> None:
        """The sink is no longer full."""
        for then in self._waiting.pop(service, ()):
            then()

    def keep(self, size: int) -> None:
        """How many bytes the files of each service hold from now on."""
        if self._files is not None:
            self._files.keep = size

    def forget(self, service: str) -> None:
        """The service is gone from the project; its files stay."""
        self._rings.pop(service, None)
        self._matchers.pop(service, None)
        for key in [key for key in self._partials if key[0] == service]:
            del self._partials[key]
        for follower in self._followers:
            follower.forget(service)

    def close(self) -> None:
        """Write out what is pending."""
        if self._files is not None:
            self._files.close()


class Follower:
    """One reader of every line, at its own pace; `LogBook.follow` makes it."""

    def __init__(
        self, rings: dict[str, Ring], services: Sequence[str] | None, closed: Callable[[Follower], None]
    ) -> None:
        self._rings = rings
        self._services = None if services is None else frozenset(services)
        self._closed = closed
        self._positions = {name: ring.end for name, ring in rings.items() if self.wants(name)}

    def wants(self, service: str) -> bool:
        """Whether it follows this service."""
        return self._services is None or service in self._services

    def position(self, service: str) -> int:
        """The first line that it has not read."""
        return self._positions.get(service, 0)

    @property
    def pending(self) -> bool:
        """Whether there is something to read."""
        return any(ring.end > self.position(name) for name, ring in self._rings.items() if self.wants(name))

    def read(self, limit: int) -> tuple[list[tuple[str, int, str, str]], int]:
        """(service, time, stream, lines as one text), oldest first, `limit` bytes or a little more; lines missed."""
        found: list[tuple[Chunk, str]] = []
        missed = 0
        for name, ring in self._rings.items():
            if not self.wants(name):
                continue
            position = self.position(name)
            if position < ring.start:
                missed += ring.start - position
                self._positions[name] = ring.start
            found += [(chunk, name) for chunk in ring.since(self.position(name), limit)]
        found.sort(key=lambda pair: pair[0].first)
        chunks: list[tuple[str, int, str, str]] = []
        size = 0
        for chunk, name in found:
            if size >= limit:
                break
            lines = chunk.lines[max(0, self.position(name) - chunk.position) :]
            self._positions[name] = chunk.end
            size += chunk.size
            text = b"\n".join(lines).decode("utf-8", "replace")
            if "\r" in text:
                text = "\n".join(map(overwritten, text.split("\n")))
            chunks.append((name, chunk.at, chunk.stream, text))
        return chunks, missed

    def forget(self, service: str) -> None:
        """The service is gone; one of its name would begin anew."""
        self._positions.pop(service, None)

    def close(self) -> None:
        """Nothing is held for it any more."""
        self._closed(self)


def _text(line: bytes) -> str:
    # What a progress bar has overwritten is not shown again.
    return overwritten(line.decode("utf-8", "replace")) if b"\r" in line else line.decode("utf-8", "replace")


class LineSplitter:
    """Cuts a stream of bytes into lines, however they arrive."""

    def __init__(self) -> None:
        self._rest = b""
        self._cut = 0  # bytes of an overlong line that were thrown away so far

    @property
    def partial(self) -> bytes:
        """What there is of a line whose end is outstanding."""
        return self._rest

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole now."""
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = self._finish(lines[0])
            if len(data) > MAX_LINE and max(map(len, lines)) > MAX_LINE:
                lines[1:] = [_cut(line) if len(line) > MAX_LINE else line for line in lines[1:]]
            self._rest = b""
        self._rest += rest
        if b"\r" in rest:
            self._rest = _last_state(self._rest)
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
        if b"\r" in end.rstrip(b"\r"):
            cut = 0
        return _cut(line, cut) if cut or len(line) > MAX_LINE else line


def _last_state(line: bytes) -> bytes:
    """A bar's line without the states that are overwritten; what stood there is kept if only blanks came after it."""
    end = len(line.rstrip(b"\r \t"))
    begin = line.rfind(b"\r", 0, end)
    return line[begin:] if begin > 0 else line


def _cut(line: bytes, already: int = 0) -> bytes:
    line = _last_state(line)
    missing = len(line) - MAX_LINE + already
    if missing <= 0:
        return line
    return line[:MAX_LINE] + f"\x1b[0m … [{missing} bytes cut by devloop]".encode()


class PipeReader:
    """Reads one pipe into the book until its other end is closed or `close` is called.

    While the book's sink is full of this service it reads nothing, and the service waits as for any slow reader.
    """

    def __init__(self, book: LogBook, service: str, stream: str, raw: Callable[[bytes], None] = lambda _: None) -> None:
        """`raw` is given all that is read, as it is read."""
        self._book = book
        self._service = service
        self._stream = stream
        self._raw = raw
        self._splitter = LineSplitter()
        self._shown = b""
        self._fd, self.write_end = self._open()
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._unfinished: asyncio.TimerHandle | None = None
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

    def handed_over(self) -> None:
        """The write end is in other hands now."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    @property
    def closed(self) -> bool:
        """Nothing will come of it any more."""
        return self._fd < 0

    def drain(self) -> None:
        """Read what is there now, and go on."""
        if self._fd < 0:
            return
        self.handed_over()
        with contextlib.suppress(OSError):
            for _ in range(4):
                self._feed(self._take())

    def close(self) -> None:
        """Read what is there, then stop, even if someone still holds the other end."""
        if self._fd < 0:
            return
        self.drain()
        self._end()

    def _read(self) -> None:
        try:
            data = self._take()
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end()
            return
        self._feed(data)
        self._loop.remove_reader(self._fd)
        self._pause = self._loop.call_later(READ_PAUSE, self._listen)

    def _listen(self) -> None:
        self._pause = None
        if self._fd < 0:
            return
        if self._book.must_wait(self._service, self._listen):
            self._forget_unfinished()  # the rest of that line may be there: it is we who do not read it
            return
        self._await_end()
        self._loop.add_reader(self._fd, self._read)

    def _feed(self, data: bytes) -> None:
        self._raw(data)
        lines = self._splitter.feed(data)
        if lines:
            self._shown = b""
            self._book.add(self._service, self._stream, lines)
            self._forget_unfinished()
        self._await_end()

    def _await_end(self) -> None:
        if self._splitter.partial and self._unfinished is None:
            self._unfinished = self._loop.call_later(PARTIAL, self._show_unfinished)

    def _show_unfinished(self) -> None:
        self._unfinished = None
        partial = self._splitter.partial
        if partial and partial != self._shown:
            self._shown = partial
            self._book.partial(self._service, self._stream, partial)

    def _forget_unfinished(self) -> None:
        if self._unfinished is not None:
            self._unfinished.cancel()
            self._unfinished = None

    def _end(self) -> None:
        self._forget_unfinished()
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._book.add(self._service, self._stream, self._splitter.flush())

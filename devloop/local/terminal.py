"""The live side of a service's output and input: what its own process prints, byte by byte, and what is typed into it.

The log has the same output as lines. A `ServiceTerminal` outlives the service's restarts, and so do those who watch.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import termios
from collections import deque
from collections.abc import Callable
from functools import partial

from devloop.errors import ServiceError
from devloop.local.logs import LogBook, PipeReader

SIZE = (80, 24)
"""Columns and rows of a terminal that nobody looks at."""
LARGEST = 1000
"""Columns or rows; what a client asks for above that is taken for a mistake."""
KEPT = 256 * 1024
"""Bytes of output kept for each service, so that who comes later sees what is there."""
CHUNK = 4 * 1024
"""Bytes up to which small pieces of output are put together."""
TYPED = 64 * 1024
"""Bytes that may wait for a service that does not read its input."""
READ = 64 * 1024
"""Bytes taken from a terminal at once. The kernel gives 4 KB a read."""
AFTER_A_RUN = b"\x1b[!p\x1b[0m\x1b[?25h\x1b[?1l\x1b>\x1b[?2004l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1049l"
"""What a program that was killed may have left set: colours, a hidden cursor, the keypad, pasting, the mouse, the other
screen (xterm's control sequences, DECSTR and DECRST)."""
_IUTF8 = 0o40000  # asm-generic/termbits.h; the termios module lacks it before Python 3.13


class Output:
    """The newest bytes of an endless stream, with their positions in it."""

    def __init__(self) -> None:
        self._chunks: deque[bytes | bytearray] = deque()
        self._size = 0
        self.end = 0
        """The position after the newest byte."""

    def add(self, data: bytes) -> None:
        """Add bytes; the oldest go."""
        # A program that prints byte by byte must not cost an object for each.
        if self._chunks and len(self._chunks[-1]) + len(data) <= CHUNK:
            last = self._chunks[-1]
            if not isinstance(last, bytearray):
                last = self._chunks[-1] = bytearray(last)
            last += data
        else:
            self._chunks.append(data)
        self._size += len(data)
        self.end += len(data)
        while self._size - len(self._chunks[0]) >= KEPT:
            self._size -= len(self._chunks.popleft())

    def since(self, position: int, limit: int) -> tuple[bytes, int, int]:
        """At most `limit` bytes from a position on, the position after them, and how many before them are lost."""
        first = self.end - self._size
        missed = max(0, first - position)
        position = max(position, first)
        found = bytearray()
        at = first
        for chunk in self._chunks:
            if at + len(chunk) > position:
                found += chunk[max(0, position - at) :]
                if len(found) >= limit:
                    break
            at += len(chunk)
        data = bytes(found[:limit])
        return data, position + len(data), missed


class Keyboard:
    """Writes into one process what is typed, as fast as it reads."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._pending = bytearray()
        self._loop = asyncio.get_running_loop()
        self._moved = asyncio.Event()
        self._turn = asyncio.Lock()
        self.refused = False
        """The process has closed its input."""

    async def type(self, data: bytes) -> None:
        """Write, or have it written. Waits while more than TYPED bytes are waiting already."""
        async with self._turn:  # who comes now must not overtake who waits
            while len(self._pending) > TYPED and self._fd >= 0:
                self._moved.clear()
                await self._moved.wait()
            if self._fd < 0:
                return
            self._pending += data
            if len(self._pending) == len(data):
                self._write()

    def close(self) -> None:
        """The process has ended: what it has not read is dropped."""
        if self._fd >= 0:
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._moved.set()

    def _write(self) -> None:
        try:
            while self._pending:
                del self._pending[: os.write(self._fd, self._pending)]
        except BlockingIOError:
            self._loop.add_writer(self._fd, self._write)
        except OSError:
            self.refused = True
            self.close()
            return
        else:
            self._loop.remove_writer(self._fd)
        self._moved.set()


class TerminalReader(PipeReader):
    """Reads the engine's end of a pseudoterminal into the log. `write_end` is the service's end.

    That end stays open here too: reading would fail (EIO) whenever the service has none open for a moment.
    """

    def _open(self) -> tuple[int, int]:
        ours, theirs = os.openpty()
        os.set_blocking(ours, False)
        settings = termios.tcgetattr(theirs)
        settings[0] |= _IUTF8  # backspace takes back a character, not a byte
        termios.tcsetattr(theirs, termios.TCSANOW, settings)
        return ours, theirs

    def _take(self) -> bytes:
        data = bytearray()
        with contextlib.suppress(BlockingIOError):
            while len(data) < READ:
                data += os.read(self._fd, READ)
            return bytes(data)
        if not data:
            raise BlockingIOError
        return bytes(data)

    def handed_over(self) -> None:
        """Nothing is closed before the end."""

    def _end(self) -> None:
        super()._end()
        os.close(self.write_end)
        self.write_end = -1

    def keyboard(self) -> int:
        """A descriptor of its own for what is typed."""
        return os.dup(self._fd)

    def resize(self, columns: int, rows: int) -> None:
        """Its foreground processes get SIGWINCH if that changes something (tty_ioctl(2))."""
        if self._fd >= 0:
            fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


class Wiring:
    """One process's output and input: pipes, or a terminal."""

    def __init__(self, terminal: ServiceTerminal, book: LogBook, streams: tuple[str, str], *, tty: bool) -> None:
        self._terminal = terminal
        self._given = -1
        self.readers: list[PipeReader] = []
        try:
            typed = self._connect(terminal, book, streams, tty=tty)
        except OSError:  # no more descriptors, or terminals: what was opened is closed
            for each in self.readers:
                each.close()
            raise
        self.keyboard = Keyboard(typed)
        terminal.begin(self, tty=tty)

    def _connect(self, terminal: ServiceTerminal, book: LogBook, streams: tuple[str, str], *, tty: bool) -> int:
        """Open it all; the descriptor for what is typed. Raises OSError."""
        if tty:
            reader = TerminalReader(book, terminal.service, streams[0], partial(terminal.feed, streams[0]))
            self.readers.append(reader)
            self.output = (reader.write_end, reader.write_end)
            self.stdin = reader.write_end
            typed = reader.keyboard()
        else:
            for stream in streams:
                self.readers.append(PipeReader(book, terminal.service, stream, partial(terminal.feed, stream)))
            self.output = (self.readers[0].write_end, self.readers[1].write_end)
            # Never at its end: tools that watch (tailwindcss, esbuild, vite) stop when their input does.
            self.stdin, typed = os.pipe2(os.O_CLOEXEC)
            self._given = self.stdin
        return typed

    def handed_over(self) -> None:
        """The descriptors are with the holder."""
        for reader in self.readers:
            reader.handed_over()
        if self._given >= 0:
            os.close(self._given)
            self._given = -1

    def resize(self, columns: int, rows: int) -> None:
        """Of a terminal; a pipe has no size."""
        for reader in self.readers:
            if isinstance(reader, TerminalReader):
                reader.resize(columns, rows)

    def close(self) -> None:
        """The process has ended. What it printed last is read."""
        self.handed_over()
        for reader in self.readers:
            reader.close()
        self.keyboard.close()
        self._terminal.end(self)


class ServiceTerminal:
    """What clients see of one service, live, and where they type.

    All who are attached see all output, and all may type. The size is that of who came or resized last.
    """

    def __init__(self, service: str, arrived: Callable[[str], None]) -> None:
        self.service = service
        self.tty = False
        """Whether the process that runs, or ran last, has a terminal."""
        self.output = Output()
        self.runs = 0
        """How many processes it has had."""
        self.began = 0
        """Where in `output` the process that runs, or ran last, begins."""
        self.reads_nothing = False
        """It is a task without a terminal."""
        self.on_interrupt: Callable[[], None] = lambda: None
        self.on_output: Callable[[str, bytes], None] | None = None
        """Told the stream, and what was printed there."""
        self.on_typed: Callable[[bytes], None] | None = None
        self._arrived = arrived
        self._wiring: Wiring | None = None
        self._size = SIZE
        self._sizes: dict[object, tuple[int, int]] = {}

    # What the service's process does.

    def begin(self, wiring: Wiring, *, tty: bool) -> None:
        """A process is about to start."""
        self._wiring = wiring
        self.tty = tty
        self.began = self.output.end
        self.runs += 1
        self._arrived(self.service)
        wiring.resize(*self._size)

    def feed(self, stream: str, data: bytes) -> None:
        """It printed this."""
        if data:
            self.output.add(data)
            self._arrived(self.service)
            if self.on_output is not None:
                self.on_output(stream, data)

    def end(self, wiring: Wiring) -> None:
        """It has ended."""
        if wiring is self._wiring:
            self._wiring = None
            if self.tty:
                self.output.add(AFTER_A_RUN)
                self._arrived(self.service)

    # What clients do.

    async def type(self, data: bytes) -> None:
        """Give it input. Raises ServiceError if there is nothing that could read it."""
        wiring = self._wiring
        if wiring is None:
            raise self._absent()
        if wiring.keyboard.refused:
            raise ServiceError(
                f"{self.service} has closed its input", hint="with `tty = true` it would have a terminal"
            )
        if self.on_typed is not None:
            self.on_typed(data)
        await wiring.keyboard.type(data)

    def interrupt(self) -> None:
        """SIGINT to its process group: Ctrl-C where there is no terminal. Raises ServiceError if it does not run."""
        if self._wiring is None:
            raise self._absent()
        self.on_interrupt()

    def resize(self, client: object | None, columns: int, rows: int) -> None:
        """A client is so large. None: a pane that shows it and does not type; it counts while nobody is attached."""
        size = max(1, min(columns, LARGEST)), max(1, min(rows, LARGEST))
        if client is not None:
            self._sizes.pop(client, None)
            self._sizes[client] = size  # the last one counts
        elif self._sizes:
            return
        self._apply(size)

    def leave(self, client: object) -> None:
        """A client is gone: the size is that of the one before."""
        self._sizes.pop(client, None)
        if self._sizes:
            self._apply(next(reversed(self._sizes.values())))

    def _absent(self) -> ServiceError:
        if self.reads_nothing:
            return ServiceError(
                f"{self.service} is a task, and its input is at its end", hint="`tty = true` gives it a terminal"
            )
        return ServiceError(f"{self.service} does not run", hint="its state: `devloop status`")

    def _apply(self, size: tuple[int, int]) -> None:
        if size != self._size:
            self._size = size
            if self._wiring is not None:
                self._wiring.resize(*size)

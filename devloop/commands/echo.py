"""`devloop up --headless`: every line that services print, on standard output.

A thread writes. If standard output takes lines more slowly than a service prints them, that service's pipe is not
read meanwhile, and the service waits as any program does whose reader is slow; the engine and the other services go
on. A terminal is spared instead: what comes too quickly for it is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from devloop.commands.lines import LinePrinter
from devloop.streams import tell

if TYPE_CHECKING:
    from devloop.local.logs import LogBook

QUOTA = 1024 * 1024
"""Bytes of one service that may wait to be written before its pipe is no longer read."""
STUCK = 5.0
"""Seconds without any progress, at the end, after which a terminal is given up, and other readers are named."""

_Item = tuple[str, int, str, list[bytes], bool]


class Echo:
    """A `devloop.local.logs.Sink`. `gone` is called, in the event loop, when nobody reads standard output any more."""

    def __init__(self, printer: LinePrinter, gone: Callable[[], None]) -> None:
        sys.stdout.flush()
        self._printer = printer
        self._gone = gone
        self._fd = sys.stdout.fileno()
        self._encoding = sys.stdout.encoding or "utf-8"
        self._spares = sys.stdout.isatty()
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting: dict[str, int] = {}
        """Service → bytes of it that wait."""
        self._held: set[str] = set()
        """Services that are not read for now."""
        self._dropped = 0
        self._lost = 0
        self._told = 0.0
        self._progress = time.monotonic()
        self._closed = False
        self._book: LogBook | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="stdout", daemon=True)
        self._thread.start()

    def attach(self, book: LogBook) -> None:
        """Whose lines these are. Called in the event loop."""
        self._book = book
        self._loop = asyncio.get_running_loop()

    def put(self, service: str, at: int, stream: str, lines: list[bytes], *, partial: bool) -> None:
        """See Sink."""
        size = sum(map(len, lines)) + len(lines)
        with self._lock:
            if self._closed:
                return
            waiting = self._waiting.get(service, 0)
            if self._spares and waiting > QUOTA:
                self._dropped += 0 if partial else len(lines)
                return
            self._waiting[service] = waiting + size
        self._queue.put((service, at, stream, lines, partial))

    def full(self, service: str) -> bool:
        """See Sink."""
        with self._lock:
            if self._spares or self._closed or self._waiting.get(service, 0) <= QUOTA:
                return False
            self._held.add(service)
            return True

    def close(self) -> None:
        """Write what is left. A reader that takes nothing is waited for until Ctrl-C, a terminal for some seconds.

        Raises KeyboardInterrupt.
        """
        self._queue.put(None)
        self._progress = time.monotonic()
        told = False
        while self._thread.is_alive():
            self._thread.join(0.1)
            if told or time.monotonic() - self._progress < STUCK:
                continue
            if self._spares:
                tell("devloop: the terminal takes no more; the last lines are in the log files")
                break
            told = True
            tell("devloop: waits for whoever reads standard output; Ctrl-C gives up")
        self._tell(at_once=True)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            service, at, stream, lines, partial = item
            try:
                self._write(self._printer.chunk(service, at, stream, lines, partial=partial))
            except BrokenPipeError:  # `devloop up --headless | head`: who read this has had enough
                self._end()
                return
            except OSError as error:
                if not self._lost:
                    tell(f"devloop: can't write to standard output: {error.strerror}")
                self._lost += len(lines)
            self._written(service, sum(map(len, lines)) + len(lines))
            self._tell()

    def _write(self, text: str) -> None:
        view = memoryview(text.encode(self._encoding, "replace"))
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:  # somebody has made it so for all who share it
                select.select([], [self._fd], [], 1.0)
            else:
                self._progress = time.monotonic()

    def _written(self, service: str, size: int) -> None:
        with self._lock:
            self._waiting[service] -= size
            if service not in self._held or self._waiting[service] > QUOTA // 2:
                return
            self._held.discard(service)
        self._go_on([service])

    def _end(self) -> None:
        with self._lock:
            self._closed = True
            held, self._held = list(self._held), set()
        self._go_on(held)
        self._call(self._gone)

    def _go_on(self, services: list[str]) -> None:
        book = self._book
        if book is not None:
            for service in services:
                self._call(lambda service=service: book.may_go_on(service))  # type: ignore[misc]

    def _call(self, what: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(what)

    def _tell(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if not at_once and now - self._told < 1:
            return
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            self._told = now
            tell(f"devloop: {dropped} lines came too quickly to be shown")
        if at_once and self._lost:
            tell(f"devloop: {self._lost} lines could not be written to standard output")

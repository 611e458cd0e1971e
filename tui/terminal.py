"""A terminal that may go away: what Textual's driver for Linux and macOS lacks.

When the other end of a terminal is closed, reading gives an empty answer at once and for ever, and writing
fails. Textual's driver would read on as fast as it can, and block as soon as the queue to its writer thread,
which the error has ended, is full. Seen with Textual 8.2.
"""

from __future__ import annotations

import contextlib
import select
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO, cast

from textual.drivers.linux_driver import LinuxDriver

if TYPE_CHECKING:
    from tui.app import DevloopApp

GLANCE = 500
"""Milliseconds after which the watch sees that it is over."""


class _Forgiving:
    """A file that swallows what can't be written."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _try(self, write: Callable[[], object]) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody is there to read it
            write()

    def write(self, text: str) -> None:
        self._try(lambda: self._file.write(text))

    def flush(self) -> None:
        self._try(self._file.flush)


class TerminalDriver(LinuxDriver):
    """Draws on standard output, or standard error if only that is a terminal; leaves if it is closed."""

    def __init__(self, app: DevloopApp, **options: Any) -> None:
        super().__init__(app, **options)
        out = sys.__stdout__ if sys.__stdout__ and sys.__stdout__.isatty() else sys.__stderr__
        self._file = cast(Any, _Forgiving(cast(TextIO, out)))

    def start_application_mode(self) -> None:
        """Take the terminal, and watch it."""
        super().start_application_mode()  # type: ignore[no-untyped-call]
        if hasattr(select, "poll"):
            threading.Thread(target=self._watch, args=(self.exit_event,), daemon=True).start()

    def _watch(self, over: threading.Event) -> None:
        poll = select.poll()
        poll.register(self.fileno, 0)  # nothing but errors and the hang-up
        while not over.is_set():
            if poll.poll(GLANCE):
                over.set()  # ends the reading
                app = cast("DevloopApp", self._app)
                self._loop.call_soon_threadsafe(app.hung_up)
                return

"""What is told to a person: kept for clients that come later, sent to those that are there, and printed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from devloop.failures import explained, is_the_machines
from devloop.protocol import Notice
from devloop.streams import tell

KEPT = 50


class Notices:
    """The newest of them, and where they go."""

    def __init__(self, publish: Callable[[Notice], None]) -> None:
        self.kept: deque[Notice] = deque(maxlen=KEPT)
        self._publish = publish
        self._told: set[str] = set()

    def say(self, level: str, text: str, hint: str = "", service: str | None = None) -> None:
        """Tell it; what is about no service stands in the engine's own output too."""
        self._add(Notice(level, text, time.time_ns(), service, hint))

    def from_thread(self) -> Callable[[Notice], None]:
        """To be called in another thread than this one's event loop."""
        loop = asyncio.get_running_loop()

        def add(notice: Notice) -> None:
            with contextlib.suppress(RuntimeError):  # the engine has ended meanwhile
                loop.call_soon_threadsafe(self._add, notice)

        return add

    def warn_from_thread(self) -> Callable[[str], None]:
        """A warning, from another thread."""
        add = self.from_thread()
        return lambda text: add(Notice("warning", text, time.time_ns()))

    def fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception that nobody caught: said to the user, and in full in the engine's log."""
        what = context.get("exception") or context["message"]
        if is_the_machines(what):
            # A full disk, no more descriptors: no fault of devloop's, and told once, however often it comes.
            error = explained(what)
            text = f"{error.where}: {error.what}" if error.where else error.what
            if text not in self._told:
                self._told.add(text)
                self.say("error", text, error.hint or "")
            return
        loop.default_exception_handler(context)
        self.say("error", f"a fault in devloop itself: {what!r}", "please report it; the rest goes on")

    def _add(self, notice: Notice) -> None:
        self.kept.append(notice)
        self._publish(notice)
        if notice.service is None:
            tell(f"devloop: {notice.level}: {notice.text}" + (f"\n  {notice.hint}" if notice.hint else ""))

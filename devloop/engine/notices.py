"""What is told to a person: kept for clients that come later, sent to those that are there, and printed."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from devloop.protocol import Notice

KEPT = 50


class Notices:
    """The newest of them, and where they go."""

    def __init__(self, publish: Callable[[Notice], None]) -> None:
        self.kept: deque[Notice] = deque(maxlen=KEPT)
        self._publish = publish

    def say(self, level: str, text: str, hint: str = "", service: str | None = None) -> None:
        """Tell it; what is about no service stands in the engine's own output too."""
        self._add(Notice(level, text, time.time_ns(), service, hint))

    def from_thread(self) -> Callable[[Notice], None]:
        """To be called in another thread than this one's event loop."""
        loop = asyncio.get_running_loop()

        def tell(notice: Notice) -> None:
            with contextlib.suppress(RuntimeError):  # the engine has ended meanwhile
                loop.call_soon_threadsafe(self._add, notice)

        return tell

    def warn_from_thread(self) -> Callable[[str], None]:
        """A warning, from another thread."""
        tell = self.from_thread()
        return lambda text: tell(Notice("warning", text, time.time_ns()))

    def fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception that nobody caught: said to the user, and in full in the engine's log."""
        loop.default_exception_handler(context)
        what = context.get("exception") or context["message"]
        self.say("error", f"a fault in devloop itself: {what!r}", "please report it; the rest goes on")

    def _add(self, notice: Notice) -> None:
        self.kept.append(notice)
        self._publish(notice)
        if notice.service is None:
            print(f"devloop: {notice.level}: {notice.text}", notice.hint, sep="\n  ", file=sys.stderr)

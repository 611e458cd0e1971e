"""The same trouble, told once in a while: programs try again and again, and a page can make up names without end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

AGAIN_SECONDS = 60.0
"""Until the same words are told again."""
MOST = 20
"""Different words in that time."""


class Seldom:
    """Passes words on, if they are not the same again and not too many."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._told: dict[str, float] = {}

    def __call__(self, text: str) -> None:
        """Called in the event loop."""
        now = asyncio.get_running_loop().time()
        self._told = {each: at for each, at in self._told.items() if now - at < AGAIN_SECONDS}
        if text not in self._told and len(self._told) < MOST:
            self._told[text] = now
            self._log(text)

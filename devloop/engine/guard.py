"""Looks after the state folder while the engine runs, so that clients find the engine for as long as there is one.

`git clean -fdx` and `rm -rf .devloop` take the folder away, a rename moves it with the project, and a removed project
leaves an engine that nobody could reach any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from devloop.control.server import ControlServer
from devloop.errors import DevloopError, EngineError
from devloop.state import StateFolder

LOOK = 0.5
"""Seconds between two looks, each a stat or two. What is missing twice in a row is made again: an `rm -r` that is
still at work would fail if something came back under its hands."""


class Guard:
    """One engine's."""

    def __init__(
        self,
        state: StateFolder,
        file: Path,
        server: ControlServer,
        *,
        notice: Callable[[str, str, str], None],
        again: Callable[[], None],
        end: Callable[[], None],
    ) -> None:
        """`notice`: level, text, hint. `again` is called once the folder was made anew; `end` ends the engine."""
        self._state = state
        self._file = file
        self._server = server
        self._notice = notice
        self._again = again
        self._end = end
        self._missing = 0
        self._told = ""

    async def run(self) -> None:
        """Look for as long as this is not cancelled."""
        while True:
            await asyncio.sleep(LOOK)
            self._state.hang_up()
            if self._state.root_removed:
                self._notice("error", f"the project's folder {self._state.root} was removed; devloop ends", "")
                self._end()
                return
            self._missing = self._missing + 1 if self._state.lost or not self._state.socket.is_socket() else 0
            if self._missing >= 2 and not await self._mend():
                return

    async def _mend(self) -> bool:
        """Put things right. False if this engine is to end."""
        state = self._state
        if not state.root.is_dir():
            hint = "`devloop down` in its new place ends it, `devloop up` starts it there"
            self._say("warning", f"the project's folder {state.root} was moved; its services stay as they are", hint)
            return True
        lost = state.lost
        try:
            if lost:
                state.make_again(self._file)
            await self._server.listen_again()
        except EngineError as error:
            if not lost:
                self._say("warning", f"clients can't connect any more: {error.what}", error.hint or "")
                return True
            self._notice("error", f"another engine has taken the project over, as {state.path} was removed", "")
            self._end()
            return False
        except DevloopError as error:
            self._say("warning", f"{error.what}; clients can't connect until it can be made", error.hint or "")
            return True
        self._missing, self._told = 0, ""
        if lost:
            self._again()
            self._notice("warning", f"{state.path} was removed; it was made anew, without its history and logs", "")
        return True

    def _say(self, level: str, text: str, hint: str) -> None:
        if text != self._told:
            self._told = text
            self._notice(level, text, hint)

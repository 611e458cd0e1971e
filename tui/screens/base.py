"""What all screens that show the engine have in common."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from textual.binding import BindingsMap
from textual.message import Message
from textual.screen import Screen

from devloop.errors import DevloopError
from tui.session import PAINT_INTERVAL, Session


class Copy(Message):
    """A text is to be copied."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class StartEngine(Message):
    """The engine has ended, and another one is wanted."""


class SessionScreen(Screen[None]):
    """Draws the session's board when it has changed, but not more often than is of use.

    Subclasses say how in `paint`.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self._scheduled = False

    def board_changed(self) -> None:
        """Something has changed: paint soon."""
        if not self._scheduled and self.is_current:
            self._scheduled = True
            self.set_timer(PAINT_INTERVAL, self._paint_now)

    def paint(self) -> None:
        """Draw the board as it is."""

    def on_screen_resume(self) -> None:
        """The board may have changed while another screen covered this one."""
        if self.is_mounted:
            self.call_after_refresh(self._paint_now)

    def _paint_now(self) -> None:
        self._scheduled = False
        if self.is_current and self.is_attached and self.display:  # not while it is being taken down
            self.paint()

    def why(self, action: str) -> str:
        """Why a key of this screen can do nothing now, for a person; empty if that goes without saying."""
        return ""

    def refusal(self, key: str) -> str:
        """Why a key does nothing here; empty if it does something, or means nothing."""
        reasons = []
        for binding in BindingsMap(self.BINDINGS).key_to_bindings.get(key, ()):
            action = binding.action.partition("(")[0]
            if self.check_action(action, ()):
                return ""
            reasons.append(self.why(action))
        return next((reason for reason in reasons if reason), "")

    def request(self, method: str, **params: Any) -> None:
        """Ask the engine for something; what it refuses comes as a toast."""
        self.attempt(self.session.call(method, **params))

    def attempt(self, work: Coroutine[Any, Any, object]) -> None:
        """Run something that asks the engine, and show what it refuses."""

        async def run() -> None:
            try:
                await work
            except DevloopError as error:
                self.complain(error)

        self.run_worker(run(), group="requests")

    def copy(self, text: str) -> None:
        """Copy a text, and say so."""
        self.post_message(Copy(text))

    def complain(self, error: DevloopError) -> None:
        """Show an error as a toast."""
        text = f"{error.what}\n{error.hint}" if error.hint else error.what
        self.app.notify(text, title=error.where or "", severity="error", markup=False)

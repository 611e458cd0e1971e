"""How to leave: what happens to the services is asked, never guessed."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.screen import ModalScreen
from textual.widgets import Static

from tui.formats import count
from tui.screens.base import SessionScreen
from tui.session import Session
from tui.states import running


class Leaving(StrEnum):
    """What the user chose."""

    STOP = "stop"
    """All services, and the engine."""
    DETACH = "detach"
    """The screen alone closes."""
    STAY = "stay"


CHOICES = (Leaving.STOP, Leaving.DETACH, Leaving.STAY)
HEAD = 2
"""Lines above the first choice."""


class QuitScreen(SessionScreen, ModalScreen[None]):
    """Asks once. Posts `Chosen`; who opened it closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s,y", "choose('stop')", "stop"),
        Binding("d", "choose('detach')", "leave running"),
        Binding("escape,n,q", "choose('stay')", "stay"),
        Binding("enter", "take", "choose"),
        Binding("j,down,tab", "move(1)", "down", show=False),
        Binding("k,up,shift+tab", "move(-1)", "up", show=False),
    ]

    cursor: reactive[int] = reactive(0)

    class Chosen(Message):
        """A choice was made."""

        def __init__(self, choice: Leaving) -> None:
            super().__init__()
            self.choice = choice

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._text = Static(id="quit")

    def compose(self) -> ComposeResult:
        """A text in a frame."""
        yield self._text

    def on_mount(self) -> None:
        """Ask."""
        self.paint()

    def watch_cursor(self) -> None:
        """Another choice."""
        if self.is_mounted:
            self.paint()

    def paint(self) -> None:
        """Draw the question, with how many services there are now."""
        board = self.session.board
        number = sum(map(running, board.services.values()))
        them, are = ("them", "they are") if number != 1 else ("it", "it is")
        words = {
            Leaving.STOP: ("s", f"stop {count(number, 'service')} and the engine" if number else "stop the engine"),
            Leaving.DETACH: ("d", f"leave {them} running" if number else "leave the engine running"),
            Leaving.STAY: ("esc", "stay here"),
        }
        lines = [Content.assemble(("Leave ", "bold"), (board.project or "devloop", "bold $primary"), ("?", "bold"))]
        lines.append(Content())
        for n, choice in enumerate(CHOICES):
            key, text = words[choice]
            chosen = n == self.cursor
            mark = ("▌ ", "$primary") if chosen else ("  ", "")
            lines.append(Content.assemble(mark, (f"{key:<5}", "bold $text-accent"), (text, "bold" if chosen else "")))
        end = f"stops {them}" if number else "stops it"
        lines += [Content(), Content.styled(f"Ctrl+C once more {end} and quits.", "$text-muted")]
        if self.session.silent:
            late = f"The engine does not answer: {are} stopped once it does." if number else "It does not answer."
            lines.append(Content.styled(late, "$text-error"))
        self._text.update(Content("\n").join(lines))

    def action_choose(self, choice: str) -> None:
        """By its key."""
        self.post_message(self.Chosen(Leaving(choice)))

    def action_take(self) -> None:
        """The one under the cursor."""
        self.post_message(self.Chosen(CHOICES[self.cursor]))

    def action_move(self, step: int) -> None:
        """Another one."""
        self.cursor = (self.cursor + step) % len(CHOICES)

    def on_click(self, event: events.Click) -> None:
        """A click on a choice chooses it."""
        line = event.screen_y - self._text.content_region.y - HEAD
        if self._text.region.contains(event.screen_x, event.screen_y) and 0 <= line < len(CHOICES):
            self.post_message(self.Chosen(CHOICES[line]))

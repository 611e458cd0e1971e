"""The top line: which project, how its services fare, what the engine has to say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from devloop.protocol import RemoteStatus, State
from tui.board import Board
from tui.connection import NOTED, summary
from tui.connection import look as phase_look
from tui.formats import age, count
from tui.states import COLOURS, CUT_OFF, LOOKS, ORDER

NEEDY = ("tone--bad", "tone--warn")
"""Tones of states that need a person."""


class Header(Widget):
    """Draws a summary of the board; `update` when the board has changed."""

    ALLOW_SELECT = False
    DEFAULT_CLASSES: ClassVar[str] = ""

    line: reactive[Content] = reactive(Content())

    def update(self, board: Board, now: int, *, connected: bool, silence: float = 0.0) -> None:
        """Draw the board as it is; `silence`: seconds for which the engine has not answered."""
        self.line = self._compose_line(board, now, self.size.width, connected, silence)

    def render(self) -> Content:
        """The line."""
        return self.line

    @staticmethod
    def _compose_line(board: Board, now: int, width: int, connected: bool, silence: float) -> Content:
        left = Content.assemble((" devloop ", "bold $primary"), (board.project, "bold"))
        looks = {**LOOKS, State.REMOTE: CUT_OFF} if board.cut_off else LOOKS
        counts = Counter(status.state for status in board.services.values())
        # What needs a person comes first: `ORDER`, and what is cut off.
        states = sorted((state for state in ORDER if counts[state]), key=lambda state: looks[state].tone not in NEEDY)
        needy = [state for state in states if looks[state].tone in NEEDY]
        right = Content()
        endings = _endings(board, now, width, connected, silence)
        for n, part in enumerate(endings):
            longer = Content.assemble(part, "  " if right and part else "", right) if part else right
            # Nothing takes the room of what needs a person, and the last not that of any count.
            kept = _bare(states if n == len(endings) - 1 else needy, counts)
            if left.cell_length + kept + longer.cell_length + 3 <= width:
                right = longer
        room = width - right.cell_length - 3
        for n, state in enumerate(states):
            look, number = looks[state], counts[state]
            named = f" {number} {'cut off' if look is CUT_OFF else state}"
            for word, rest in ((named, _bare(states[n + 1 :], counts)), (f" {number}", 0)):
                part = Content.assemble("  ", (look.glyph + word, COLOURS[look.tone]))
                if left.cell_length + part.cell_length + rest <= room:
                    left += part
                    break
        gap = width - left.cell_length - right.cell_length - 1
        return Content.assemble(left, " " * max(0, gap), right)


def _endings(board: Board, now: int, width: int, connected: bool, silence: float) -> list[Content]:
    """What stands at the right, from the right; what comes first is kept longest."""
    loud = sum(notice.level != "info" for notice in board.notices)
    since = f"up {age(now - board.started_at)}" if connected else "disconnected" if board.project else "connecting"
    if silence:
        return [Content.styled(f"engine does not answer ({silence:.0f} s)", "$text-error")]
    return [
        _remote(board.remote, now, width * 2 // 5) if board.remote and connected else Content(),
        Content.assemble((f"{count(loud, 'notice')} ", "$text-warning"), ("!", "bold $text-warning"))
        if loud
        else Content(),
        Content.styled(since, "$text-muted"),
    ]


def _bare(states: Sequence[State], counts: Mapping[State, int]) -> int:
    """Cells that these counts take without their words."""
    return sum(len(f"  ● {counts[state]}") for state in states)


def _remote(remote: RemoteStatus, now: int, width: int) -> Content:
    """Glyph in colour; the words too, where they are to be noticed."""
    text = summary(remote, now, width)
    colour = COLOURS[phase_look(remote).tone]
    if remote.phase != "connected":
        return Content.styled(text, colour)
    words, marked, _ = text[1:].partition(NOTED)
    return Content.assemble((text[0], colour), words, (NOTED if marked else "", "$text-warning"))

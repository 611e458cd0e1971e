"""The top line: which project, how its services fare, what the engine has to say."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from tui.board import Board
from tui.formats import age, count
from tui.states import COLOURS, LOOKS, ORDER


class Header(Widget):
    """Draws a summary of the board; `update` when the board has changed."""

    ALLOW_SELECT = False
    DEFAULT_CLASSES: ClassVar[str] = ""

    line: reactive[Content] = reactive(Content())

    def update(self, board: Board, now: int, *, connected: bool) -> None:
        """Draw the board as it is."""
        self.line = self._compose_line(board, now, self.size.width, connected)

    def render(self) -> Content:
        """The line."""
        return self.line

    @staticmethod
    def _compose_line(board: Board, now: int, width: int, connected: bool) -> Content:
        left = Content.assemble((" devloop ", "bold $primary"), (board.project, "bold"))
        loud = [notice for notice in board.notices if notice.level != "info"]
        reserved = len(count(len(loud), "notice")) + 5 if loud else 9
        counts = Counter(status.state for status in board.services.values())
        for state in ORDER:
            if not counts[state]:
                continue
            look = LOOKS[state]
            for word in (f" {counts[state]} {state}", f" {counts[state]}"):
                part = Content.assemble("  ", (look.glyph + word, COLOURS[look.tone]))
                if left.cell_length + part.cell_length <= width - reserved:
                    left += part
                    break
        endings = [
            Content.assemble((count(len(loud), "notice"), "$text-warning"), (" !", "bold $text-warning"))
            if loud
            else Content(),
            Content.from_text(board.remote, markup=False).stylize("$text-muted") if board.remote else Content(),
            Content.from_text(f"up {age(now - board.started_at)}", markup=False).stylize("$text-muted")
            if connected
            else Content.styled("disconnected" if board.project else "connecting", "$text-muted"),
        ]
        right = Content()
        for part in endings:
            longer = Content.assemble(part, "  " if right and part else "", right) if part else right
            if left.cell_length + longer.cell_length + 3 <= width:
                right = longer
        gap = width - left.cell_length - right.cell_length - 1
        return Content.assemble(left, " " * max(0, gap), right)

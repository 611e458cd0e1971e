"""What a double and a triple click select: a word, and its line. Textual's own would be all that a widget holds."""

from __future__ import annotations

from collections.abc import Callable

from textual import events
from textual.content import Content
from textual.geometry import Offset
from textual.selection import Selection
from textual.widget import Widget
from textual.widgets import Static

from tui.wrapping import word_at


def select_clicked(widget: Widget, event: events.Click, line: Callable[[int], str | None]) -> None:
    """Select the word (double click) or the line (triple) under the pointer; `line` is asked for it by its number."""
    if event.chain < 2:
        return
    event.prevent_default()
    _, offset = widget.screen.get_widget_and_offset_at(event.screen_x, event.screen_y)
    text = line(offset.y) if offset is not None else None
    if offset is None or text is None:
        return
    left, right = word_at(text, offset.x) if event.chain == 2 else (0, len(text))
    if left < right:
        widget.screen.selections = {widget: Selection(Offset(left, offset.y), Offset(right, offset.y))}


class Words(Static):
    """A text in which a double click selects a word."""

    def on_click(self, event: events.Click) -> None:
        """Select a word, or a line."""
        shown = self.visual
        lines = shown.plain.split("\n") if isinstance(shown, Content) else []
        select_clicked(self, event, lambda number: lines[number] if number < len(lines) else None)

"""A table of facts with a cursor: columns as wide as their content, one of them taking what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from tui.formats import shorten
from tui.states import TONES

FLEX_MINIMUM = 16
"""Cells that the flexible column gets before an optional one is shown."""


@dataclass(frozen=True, slots=True)
class Field:
    """A column: its title, and whether it holds numbers, may be left out, takes what is left."""

    title: str
    number: bool = False
    optional: bool = False
    flex: bool = False
    most: int = 32
    """Widest that it gets, in cells, if it is not the flexible one."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Text and the component class that styles it."""

    text: str
    tone: str = "listing--plain"


class Listing(ScrollView, can_focus=True):
    """Shows rows under fixed titles. Posts `Moved` when the cursor does."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        *TONES,
        "listing--plain",
        "listing--strong",
        "listing--header",
        "listing--cursor",
        "listing--mark",
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", "down", show=False),
        Binding("up,k", "move(-1)", "up", show=False),
        Binding("pagedown,space", "page(1)", "a page down", show=False),
        Binding("pageup", "page(-1)", "a page up", show=False),
        Binding("home,g", "edge(0)", "first", show=False),
        Binding("end,G", "edge(-1)", "last", show=False),
    ]
    ALLOW_SELECT = False

    cursor: reactive[int] = reactive(0)

    class Moved(Message):
        """The cursor stands on another row."""

    def __init__(self) -> None:
        super().__init__()
        self._fields: Sequence[Field] = ()
        self._rows: Sequence[Sequence[Cell]] = ()
        self._shown: list[tuple[int, int]] = []
        self._fitted = -1

    def fill(self, fields: Sequence[Field], rows: Sequence[Sequence[Cell]], cursor: int | None = None) -> None:
        """Show these rows; the cursor goes to `cursor`, or stays."""
        self._fields, self._rows = fields, rows
        self._fitted = -1
        self.virtual_size = Size(0, len(rows) + 1)
        self.cursor = max(0, min(self.cursor if cursor is None else cursor, len(rows) - 1))
        self.refresh()

    def watch_cursor(self, line: int) -> None:
        """Keep it in view, and tell."""
        self._keep_in_view()
        self.refresh()
        if self.is_mounted:
            self.post_message(self.Moved())

    def on_resize(self) -> None:
        """It stays in view."""
        self._keep_in_view()

    def _keep_in_view(self) -> None:
        top, line, height = self.scroll_offset.y, self.cursor, self.size.height - 1
        if height > 0 and not top <= line < top + height:
            # By force: where rows have just been added, the scrollbar is yet to come.
            self.scroll_to(y=line if line < top else line - height + 1, animate=False, force=True)

    def action_move(self, step: int) -> None:
        """Move the cursor by so many rows."""
        self.cursor = max(0, min(self.cursor + step, len(self._rows) - 1))

    def action_page(self, direction: int) -> None:
        """Move the cursor by a page."""
        self.action_move(direction * max(1, self.size.height - 2))

    def action_edge(self, index: int) -> None:
        """Move the cursor to the first (0) or last (-1) row."""
        self.action_move(-len(self._rows) if index == 0 else len(self._rows))

    def on_click(self, event: events.Click) -> None:
        """Choose a row."""
        row = self.scroll_offset.y + event.y - 1
        if event.y >= 1 and row < len(self._rows):
            self.cursor = row

    def render_line(self, y: int) -> Strip:
        """One line of what is on screen; the titles stay at the top."""
        width = self.scrollable_content_region.width
        self._fit(width)
        if y == 0:
            titles = [Cell(field.title, "listing--header") for field in self._fields]
            return self._strip(" ", titles, Style.null(), width)
        index = self.scroll_offset.y + y - 1
        if index >= len(self._rows):
            return Strip.blank(width, self.rich_style)
        chosen = index == self.cursor
        cursor = self.get_component_rich_style("listing--cursor").bgcolor if chosen else None
        return self._strip("▌" if chosen else " ", self._rows[index], Style(bgcolor=cursor), width)

    def _strip(self, mark: str, cells: Sequence[Cell], over: Style, width: int) -> Strip:
        segments = [Segment(mark, self.get_component_rich_style("listing--mark") + over)]
        for n, size in self._shown:
            text = shorten(cells[n].text, size)
            if self._fields[n].number:
                text = " " * (size - cell_len(text)) + text
            style = self.get_component_rich_style(cells[n].tone) + over
            segments.append(Segment(set_cell_size(text, size) + "  ", style))
        return Strip(segments).extend_cell_length(width, self.rich_style + over).crop(0, width)

    def _fit(self, width: int) -> None:
        if width == self._fitted:
            return
        self._fitted = width
        sizes = [
            min(field.most, max([cell_len(field.title), *(cell_len(row[n].text) for row in self._rows)]))
            for n, field in enumerate(self._fields)
        ]
        chosen = [n for n, field in enumerate(self._fields) if not field.optional and not field.flex]
        room = width - 1 - sum(sizes[n] + 2 for n in chosen)
        optional = [n for n, field in enumerate(self._fields) if field.optional]
        if sum(sizes[n] + 2 for n in optional) <= room - FLEX_MINIMUM:  # all or none: gaps would mislead
            chosen += optional
            room -= sum(sizes[n] + 2 for n in optional)
        for n, field in enumerate(self._fields):
            if field.flex:
                chosen.append(n)
                sizes[n] = max(4, room)
        self._shown = [(n, sizes[n]) for n in sorted(chosen)]

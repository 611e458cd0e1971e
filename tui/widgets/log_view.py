"""A pane of log lines that keeps up with twelve thousand a second.

Only the lines on screen are parsed and drawn (Textual's line API), each once: they are cached by their
number, which a line keeps for life. A batch costs one extension of a list and one repaint, however long
it is.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.cache import LRUCache
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from devloop.protocol import LogBatch, LogLine
from tui.ansi import plain, runs
from tui.logbuffer import GAP, LogBuffer
from tui.rowmap import RowMap
from tui.states import TONES
from tui.structured import pieces, shown
from tui.widgets.words import select_clicked
from tui.wrapping import height, indent_of, index_at, spans

SIDE_STEP = 16
"""Cells that one press of an arrow key moves sideways."""
HUES = 6
"""Colours for service names, `log-view--name-0` and so on."""


class LogView(ScrollView, can_focus=True):
    """Shows the rows of a `LogBuffer`. Posts `Moved` when what its title says may have changed."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        *TONES,
        *(f"log-view--name-{n}" for n in range(HUES)),
        "log-view--match",
        "log-view--current",
        "log-view--selected",
        "log-view--engine",
        "log-view--time",
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "line(1)", "scroll down", show=False),
        Binding("up,k", "line(-1)", "scroll up", show=False),
        Binding("pagedown,space", "page(1)", "a page down", show=False),
        Binding("pageup", "page(-1)", "a page up", show=False),
        Binding("home,g", "top", "oldest line", show=False),
        Binding("end,G", "bottom", "newest line, and follow", show=False),
        Binding("right", "side(1)", "scroll right", show=False),
        Binding("left", "side(-1)", "scroll left", show=False),
    ]

    follow: reactive[bool] = reactive(True)
    """Whether new lines scroll the view."""
    offset_x: reactive[int] = reactive(0)
    """Cells scrolled sideways."""
    named: reactive[bool] = reactive(False, init=False)
    """Whether each line begins with its service's name."""
    names: reactive[tuple[str, ...]] = reactive((), init=False)
    """All services, for the width and the colours of their names."""
    wrap: reactive[bool] = reactive(False, init=False)
    """Whether long lines take several rows."""
    timed: reactive[bool] = reactive(False, init=False)
    """Whether each line begins with its time."""

    readable: reactive[bool] = reactive(True, init=False)
    """Whether JSON lines are taken apart, or shown as they are."""

    empty: reactive[str] = reactive("")
    """What to say while there is no line."""

    class Moved(Message):
        """Following, scrolling or the number of lines has changed."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.buffer = LogBuffer()
        self._map = RowMap()
        self.search: re.Pattern[str] | None = None
        self.unseen = 0
        """Rows that came while not following."""
        self.position = (0, 0)
        """Which of the matches is the current one, and how many there were when it was chosen."""
        self._current: int | None = None
        self._cache: LRUCache[int, Strip] = LRUCache(1024)
        self._pending: list[LogBatch] = []
        self._scrolling = False
        self._name_width = 8
        self._hues: dict[str, int] = {}

    # Lines

    def append(self, batch: LogBatch) -> None:
        """Take in lines; they are drawn by the next `flush`."""
        self._pending.append(batch)

    def flush(self) -> None:
        """Draw what has come since the last time."""
        if not self._pending:
            return
        added = removed = replaced = 0
        for batch in self._pending:
            end = self.buffer.first + len(self.buffer)
            change = self.buffer.extend(batch.lines, batch.dropped)
            for number in range(end - change.replaced, end):  # a bar has moved
                self._cache.discard(number)
            self._map.drop(change.replaced)
            replaced += change.replaced
            kept = min(change.added, len(self.buffer))
            removed += self._map.prune(change.removed - (change.added - kept))
            self._map.extend(self._heights(len(self.buffer) - kept), kept)
            added += change.added
        self._pending.clear()
        if not added and not removed and not replaced:
            return
        if not self.follow:
            self.unseen = min(self.unseen + max(0, added - replaced), len(self.buffer))
        self._resized(removed)
        self.post_message(self.Moved())

    def clear(self) -> None:
        """Forget all lines, as when another service is chosen. Follows again."""
        self._pending.clear()
        self.buffer.clear()
        self._current = None
        self.unseen = 0
        self.set_reactive(LogView.follow, True)
        self.set_reactive(LogView.offset_x, 0)
        self._changed()

    def set_filter(self, pattern: re.Pattern[str] | None) -> None:
        """Show only lines that match."""
        self.buffer.set_filter(pattern)
        self._current = None
        self._changed()

    def set_level(self, level: str) -> None:
        """Show only lines of this level and above, or all."""
        self.buffer.set_level(level)
        self._current = None
        self._changed()

    def set_search(self, pattern: re.Pattern[str] | None) -> None:
        """Mark what matches, and go to the newest match at or above the end of the view."""
        self.search = pattern
        self._current = None
        self._cache.clear()
        if pattern is not None:
            last = self.scroll_offset.y + self.size.height - 1
            self.next_match(-1, start=self._map.locate(min(last, self._map.rows - 1))[0])
        self._count_matches()
        self.refresh()
        self.post_message(self.Moved())

    def next_match(self, step: int, start: int | None = None) -> bool:
        """Go to the next match below (1) or above (-1), around the ends. False if there is none."""
        if self.search is None or not len(self.buffer):
            return False
        if start is None:
            here = self._current - self.buffer.first if self._current is not None else None
            top = self._map.locate(self.scroll_offset.y)[0]
            start = (here if here is not None and here >= 0 else top) + step
        index = self.buffer.find(self.search, min(start, len(self.buffer) - 1), step)
        if index is None:
            return False
        before, self._current = self._current, self.buffer.first + index
        for number in (before, self._current):
            if number is not None:
                self._cache.discard(number)
        self.follow = False
        row, height = self._map.row_of(index), self.size.height
        if not self.scroll_offset.y <= row < self.scroll_offset.y + height:
            self._scroll(row - height // 2)
        self._count_matches()
        self.refresh()
        self.post_message(self.Moved())
        return True

    def _count_matches(self) -> None:
        # Only when a key asks: to count anew with each batch of a flood would take all the time there is.
        found = self.buffer.matches(self.search) if self.search else []
        here = self._current - self.buffer.first if self._current is not None else -1
        self.position = (found.index(here) + 1 if here in found else 0), len(found)

    # Scrolling

    def action_line(self, step: int) -> None:
        """Scroll by a line."""
        self._scroll(self.scroll_offset.y + step)

    def action_page(self, direction: int) -> None:
        """Scroll by a page, less a line."""
        self._scroll(self.scroll_offset.y + direction * max(1, self.size.height - 1))

    def action_top(self) -> None:
        """To the oldest line."""
        self._scroll(0)

    def action_bottom(self) -> None:
        """To the newest line, and follow."""
        self.follow = True

    def action_side(self, direction: int) -> None:
        """Sideways, as far as there is text on screen."""
        top = self.scroll_offset.y
        rows = range(top, min(top + self.size.height, self._map.rows)) if not self.wrap else ()
        longest = max((self._line(row).cell_length for row in rows), default=0)
        limit = max(0, longest - self.scrollable_content_region.width)
        self.offset_x = max(0, min(limit, self.offset_x + direction * SIDE_STEP))

    def watch_follow(self, follow: bool) -> None:
        """Following begins at the end."""
        if follow:
            self.unseen = 0
            self._scroll_to_end()
        if self.is_mounted:
            self.post_message(self.Moved())

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Scrolling up ends following; scrolling to the end begins it."""
        super().watch_scroll_y(old_value, new_value)
        if not self._scrolling and round(old_value) != round(new_value):
            self.follow = new_value >= self.max_scroll_y

    def on_resize(self, _: events.Resize) -> None:
        """The end stays the end."""
        if self.wrap:
            self._rewrap()
        self._resized(0)

    def _scroll(self, y: float) -> None:
        self.scroll_to(y=max(0, y), animate=False)

    def _scroll_to_end(self) -> None:
        self._scrolling = True
        try:
            self.scroll_to(y=self.max_scroll_y, animate=False)
        finally:
            self._scrolling = False

    def _resized(self, removed: int) -> None:
        self._scrolling = True
        try:
            if self._map.rows != self.virtual_size.height:
                self.virtual_size = Size(0, self._map.rows)
            if self.follow:
                self.scroll_to(y=self.max_scroll_y, animate=False)
            elif removed:
                # The lines on view stay where they are though older ones are gone.
                self.scroll_to(y=max(0, self.scroll_offset.y - removed), animate=False)
        finally:
            self._scrolling = False
        self.refresh()

    def _changed(self, *, same_text: bool = False) -> None:
        self._cache.clear()
        if not same_text and self.is_attached and self.text_selection is not None:
            self.screen.clear_selection()  # its lines have other numbers now, or other columns
        self._rewrap()
        self._resized(0)
        if self.is_mounted:
            self.post_message(self.Moved())

    # Drawing

    def notify_style_update(self) -> None:
        """Another theme: draw anew."""
        super().notify_style_update()
        self._cache.clear()

    def watch_wrap(self) -> None:
        """The line at the top stays at the top."""
        index = self._map.locate(self.scroll_offset.y)[0]
        self.offset_x = 0
        self._changed(same_text=True)
        if not self.follow:
            self._scroll(self._map.row_of(index))

    def watch_named(self) -> None:
        """Draw anew."""
        self._changed()

    watch_timed = watch_named
    watch_readable = watch_named

    def watch_names(self, names: tuple[str, ...]) -> None:
        """Other widths and colours of names."""
        self._name_width = min(16, max(map(cell_len, names), default=8))
        self._hues = {name: n % HUES for n, name in enumerate(names)}
        if self.named:
            self._changed()

    @property
    def _width(self) -> int:
        return max(1, self.scrollable_content_region.width)

    def _rewrap(self) -> None:
        self._map.reset(self.wrap, self._heights(0), len(self.buffer))

    def _heights(self, start: int) -> Iterable[int]:
        width = self._width
        for line in (self.buffer[index] for index in range(start, len(self.buffer))):
            text = self._text(line)
            yield height(text, width, indent_of(text, self._lead(line), width))

    # What is selected: lines by their numbers, so that it stays with its text while lines come and go.

    def selection_updated(self, selection: Selection | None) -> None:
        """Text was selected with the mouse."""
        self.refresh()

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The selected text, without colours."""
        first, last = self.buffer.first, self.buffer.first + len(self.buffer) - 1
        begin = first if selection.start is None else max(first, selection.start.y)
        end = last if selection.end is None else min(last, selection.end.y)
        lines = []
        for number in range(begin, end + 1):
            left, right = selection.get_span(number) or (0, 0)
            lines.append(self._text(self.buffer[number - first])[left : None if right == -1 else right])
        return "\n".join(lines), "\n"

    def on_click(self, event: events.Click) -> None:
        """A double click selects a word, a triple one its line."""
        select_clicked(self, event, self._numbered)

    def _numbered(self, number: int) -> str | None:
        index = number - self.buffer.first
        return self._text(self.buffer[index]) if 0 <= index < len(self.buffer) else None

    @property
    def _nothing(self) -> str:
        total = self.buffer.total
        return f"0 of {total:,} lines match · esc clears" if total else self.empty

    @property
    def line_to_copy(self) -> str | None:
        """The current match if it is on screen, else the last line that is; None if there is none."""
        top = self.scroll_offset.y
        rows = range(top, min(top + self.size.height, self._map.rows))
        if not rows:
            return None
        shown = range(self._map.locate(rows[0])[0], self._map.locate(rows[-1])[0] + 1)
        match = self._current - self.buffer.first if self._current is not None else -1
        return self._text(self.buffer[match if match in shown else shown[-1]])

    # Lines as they are drawn

    def render_line(self, y: int) -> Strip:
        """One line of what is on screen."""
        width, row = self.scrollable_content_region.width, self.scroll_offset.y + y
        style = self.rich_style
        if row >= self._map.rows:
            said = self._nothing if y == 0 and not len(self.buffer) else ""
            return Strip([Segment(said, self.get_component_rich_style("tone--quiet"))]).crop_extend(0, width, style)
        index, part = self._map.locate(row)
        line, number = self._line(index), self.buffer.first + index
        text = self._text(self.buffer[index])
        if self._map.wrapped:
            return self._part(index, line, text, part).extend_cell_length(width, style)
        left = self.offset_x
        strip = line.crop_extend(left, left + width, style)
        begin = index_at(text, left)
        if line.cell_length > left + width and width > 1:
            strip = strip.crop(0, width - 1).apply_offsets(begin, number)
            end = index_at(text, left + width - 1)
            mark = Segment("…", self.get_component_rich_style("tone--quiet") + _at(end, number))
            return Strip([*strip, mark], width)
        return strip.apply_offsets(begin, number)

    def _part(self, index: int, line: Strip, text: str, part: int) -> Strip:
        """One row of a line that takes several."""
        number, lead = self.buffer.first + index, self._lead(self.buffer[index])
        indent = indent_of(text, lead, self._width)
        begin, end = spans(text, self._width, indent)[part]
        strip = line.crop(cell_len(text[:begin]), cell_len(text[:end])).apply_offsets(begin, number)
        if not part:
            return strip
        # Each cell by itself: wherever it is clicked, the text of this row begins there.
        quiet = self.get_component_rich_style("tone--quiet") + _at(begin, number)
        rule = cell_len(text[: text.rfind("│", 0, lead)]) if "│" in text[:lead] else -1
        return Strip([*(Segment("│" if cell == rule else " ", quiet) for cell in range(indent)), *strip])

    def _line(self, index: int) -> Strip:
        number = self.buffer.first + index
        selection = self.text_selection
        span = selection.get_span(number) if selection is not None else None
        if span is None and number in self._cache:
            return self._cache[number]
        segments = self._segments(self.buffer[index], number)
        if span is not None:
            start, end = span
            text = Text.assemble(*((s.text, s.style or "") for s in segments), end="")
            # A colour of its own for the text too: whatever it was printed in, it can be read when it is selected.
            style = self.get_component_rich_style("log-view--selected") + Style(reverse=False, dim=False)
            text.stylize(style, start, len(text) if end == -1 else end)
            return Strip(text.render(self.app.console))
        strip = Strip(segments)
        self._cache[number] = strip
        return strip

    def _segments(self, line: LogLine, number: int) -> list[Segment]:
        base = self.rich_style
        if line.stream == GAP:
            return [Segment(f"⋯ {line.text}", self.get_component_rich_style("tone--warn"))]
        segments = [Segment(text, self.get_component_rich_style(name)) for text, name in self._prefix(line) if text]
        if line.stream == "devloop":
            own = self.get_component_rich_style("log-view--engine")
            body = [Segment(f"» {plain(line.text)}", own)]
        elif self.readable and (parts := pieces(line.text)):
            body = [Segment(text, self.get_component_rich_style(name) if name else base) for text, name in parts]
        else:
            body = [Segment(text, base + self._allowed(style)) for text, style in runs(line.text)]
        pattern = self.search or self.buffer.filter
        if pattern is not None:
            body = self._marked(body, pattern, number == self._current)
        return segments + body

    def _allowed(self, style: Style) -> Style:
        # Textual turns colours into greys for NO_COLOR, and red into one that is too dark to read.
        return style.without_color if self.app.no_color else style

    def _marked(self, body: list[Segment], pattern: re.Pattern[str], current: bool) -> list[Segment]:
        text = Text.assemble(*((s.text, s.style or "") for s in body), end="")
        style = self.get_component_rich_style("log-view--current" if current else "log-view--match")
        for match in pattern.finditer(text.plain):
            text.stylize(style, *match.span())
        return list(text.render(self.app.console))

    def _prefix(self, line: LogLine) -> list[tuple[str, str]]:
        moment = time.strftime("%H:%M:%S ", time.localtime(line.at / 1e9)) if self.timed else ""
        name = ""
        if self.named:
            name = set_cell_size(line.service, self._name_width) + " │ "
        build = "build │ " if line.stream == "build" else ""
        hue = self._hues.get(line.service, 0)
        return [(moment, "log-view--time"), (name, f"log-view--name-{hue}"), (build, "tone--quiet")]

    def _lead(self, line: LogLine) -> int:
        """Characters before the text that the service printed."""
        own = 2 if line.stream in ("devloop", GAP) else 0
        return own + sum(len(text) for text, _ in self._prefix(line) if line.stream != GAP)

    def _text(self, line: LogLine) -> str:
        if line.stream == GAP:
            return f"⋯ {line.text}"
        body = f"» {plain(line.text)}" if line.stream == "devloop" else shown(line.text, readable=self.readable)
        return "".join(text for text, _ in self._prefix(line)) + body


def _at(x: int, number: int) -> Style:
    """What Textual asks a cell for: which character of which line it is."""
    return Style.from_meta({"offset": (x, number)})

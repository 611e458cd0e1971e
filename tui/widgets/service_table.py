"""The table of services: one line each, drawn only where it is on screen.

Which columns there are depends on the width and on the project file alone, never on what the services do: a
table that changes its shape while services restart can't be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from devloop.protocol import Outcome, ServiceStatus, State
from tui import attachments
from tui.formats import age, duration, shorten, sparkline
from tui.states import MODES, TONES, service_look, state_text

Cell = tuple[str, str]
"""Text and the component class that styles it."""

PLAIN, QUIET = "service-table--plain", "tone--quiet"
UPTIME = frozenset({State.READY, State.STARTING, State.REMOTE})


@dataclass(frozen=True, slots=True)
class Column:
    """A title, a width in cells, and whether it is a number."""

    key: str
    title: str
    width: int
    number: bool = False


PORTS = Column("ports", "ports", 6)
TRAFFIC = Column("traffic", "traffic", 13)
"""Wide enough for the longest phase and its glyph."""


def ports_text(status: ServiceStatus, width: int) -> str:
    """The ports that localhost has now, with their names if that fits, else the first and how many more."""
    return _ports_text(status.published, width)


def _ports_text(ports: Mapping[str, int], width: int) -> str:
    named = " ".join(str(port) if name.isdigit() else f"{name}:{port}" for name, port in ports.items())
    if len(named) <= width:
        return named
    numbers = [str(port) for port in ports.values()]
    bare = " ".join(numbers)
    if len(bare) <= width:
        return bare
    if len(numbers) < 2:
        return shorten(bare, width)
    more = f"{numbers[0]}+{len(numbers) - 1}"
    return more if len(more) <= width else shorten(f"{numbers[0]}+", width)


def fit_columns(width: int, services: Sequence[ServiceStatus], *, traffic: bool = False) -> list[Column]:
    """The columns that fit into so many cells, the most telling ones first to be kept.

    `traffic`: the project has a remote whose traffic can be attached to.
    """
    longest = max((cell_len(s.name) for s in services), default=0)
    name = Column("name", "service", max(7, min(longest, 24 if width >= 100 else 16, width // 3)))
    # Those that are only declared count too: a process that listens, or does so no more, changes no column.
    ports = max((len(_ports_text({**s.ports, **s.published}, 99)) for s in services), default=0)
    state = 10 if width < 60 else 16 if traffic else 18
    room = width - 3 - name.width - 1 - state
    # By importance; the table's own order is below.
    last, mode, p50 = Column("last", "last", 6, True), Column("mode", "mode", 6), Column("p50", "p50", 6, True)
    p95, up = Column("p95", "p95", 6, True), Column("up", "up", 4, True)
    history, restarts, local = Column("history", "history", 8), Column("restarts", "↻", 3, True), PORTS
    optional = [last, mode, p50, history, restarts, p95, local, up]
    if traffic:
        optional = [last, mode, TRAFFIC, p50, local, history, restarts, p95, up]
    chosen = {"name": name}
    for column in optional:
        if column.width + 1 > room:
            break
        chosen[column.key] = column
        room -= column.width + 1
    # What is left goes to phases in words, the reason, the ports' names, more of the reason, a longer history.
    if "traffic" in chosen:
        more = min(room, 17 - TRAFFIC.width)
        chosen["traffic"], room = Column("traffic", "traffic", TRAFFIC.width + more), room - more
    more = min(room, (34 if traffic else 40) - state)
    state, room = state + more, room - more
    if "ports" in chosen:
        more = min(room, max(0, min(ports, 28) - 6))
        chosen["ports"], room = Column("ports", "ports", 6 + more), room - more
    more = min(room, 40 - state)
    state, room = state + more, room - more
    if "history" in chosen:
        more = min(room, 24)
        chosen["history"], room = Column("history", "history", 8 + more), room - more
    chosen["state"] = Column("state", "state", state + room)
    order = ("name", "state", "mode", "traffic", "last", "p50", "p95", "history", "restarts", "ports", "up")
    return [chosen[key] for key in order if key in chosen]


class ServiceTable(ScrollView, can_focus=True):
    """Shows `services` and which one is selected. Posts `Selected` when that changes."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        *TONES,
        PLAIN,
        "service-table--header",
        "service-table--cursor",
        "service-table--mark",
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", "next service", show=False),
        Binding("up,k", "move(-1)", "previous service", show=False),
        Binding("pagedown", "page(1)", "a page down", show=False),
        Binding("pageup", "page(-1)", "a page up", show=False),
        Binding("home,g", "edge(0)", "first service", show=False),
        Binding("end,G", "edge(-1)", "last service", show=False),
    ]
    ALLOW_SELECT = False

    selected: reactive[str] = reactive("", init=False)
    """Name of the service under the cursor; empty if there are none."""

    class Selected(Message):
        """The cursor stands on another service."""

        def __init__(self, service: str) -> None:
            super().__init__()
            self.service = service

    class Opened(Message):
        """A service was double-clicked."""

    def __init__(self, clock: Callable[[], int], *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._clock = clock
        self._services: list[ServiceStatus] = []
        self._cut_off = False
        self._traffic = False
        self._columns: list[Column] = []
        self._shape: tuple[object, ...] = ()
        """What the widths of columns depend on."""
        self._fitted: tuple[object, ...] = ()

    def update(self, services: Sequence[ServiceStatus], *, cut_off: bool = False, traffic: bool = False) -> None:
        """Show these services, those that are remote as `cut_off`, and what `traffic` they hold.

        The cursor stays on its service, or its line.
        """
        self._cut_off, self._traffic = cut_off, traffic
        names = [status.name for status in services]
        before = self.cursor
        changed = names != [status.name for status in self._services]
        self._services = list(services)
        self._shape = tuple((s.name, tuple(s.ports.items()), tuple(s.published.items())) for s in services)
        if changed:
            self.virtual_size = Size(0, len(names) + 1)
        if self.selected not in names:
            self.selected = names[min(before, len(names) - 1)] if names else ""
        self.refresh()

    def refresh_opened(self) -> None:
        """Draw anew the lines of services whose loop is under way."""
        top, height = self.scroll_offset.y, self.size.height - 1
        for n, status in enumerate(self._services):
            if status.opened_at is not None and top <= n < top + height:
                self.refresh(Region(0, n - top + 1, self.size.width, 1))

    @property
    def cursor(self) -> int:
        """The index of the selected service."""
        return next((n for n, s in enumerate(self._services) if s.name == self.selected), 0)

    def action_move(self, step: int) -> None:
        """Move the cursor by so many lines."""
        self._select(self.cursor + step)

    def action_page(self, direction: int) -> None:
        """Move the cursor by a page."""
        self._select(self.cursor + direction * max(1, self.size.height - 2))

    def action_edge(self, index: int) -> None:
        """Move the cursor to the first (0) or last (-1) line."""
        self._select(0 if index == 0 else len(self._services) - 1)

    def watch_selected(self, name: str) -> None:
        """Keep the cursor in view, and tell."""
        top, line, height = self.scroll_offset.y, self.cursor, self.size.height - 1
        if height > 0 and not top <= line < top + height:
            self.scroll_to(y=line if line < top else line - height + 1, animate=False)
        self.post_message(self.Selected(name))

    def on_resize(self) -> None:
        """The cursor stays in view."""
        self.watch_selected(self.selected)

    def on_click(self, event: events.Click) -> None:
        """Select a line; a double click opens it."""
        row = self.scroll_offset.y + event.y - 1
        if event.y >= 1 and row < len(self._services):
            self._select(row)
            if event.chain == 2:
                self.post_message(self.Opened())

    def render_line(self, y: int) -> Strip:
        """One line of what is on screen; the header stays at the top."""
        width = self.scrollable_content_region.width
        self._fit(width)
        if y == 0:
            cells = [(column.title, "service-table--header") for column in self._columns]
            return self._strip("   ", "service-table--header", cells, None, width)
        index = self.scroll_offset.y + y - 1
        if index >= len(self._services):
            return Strip.blank(width, self.rich_style)
        status = self._services[index]
        now = self._clock()
        cells = [self._cell(column, status, now) for column in self._columns]
        look = service_look(status, cut_off=self._cut_off)
        chosen = status.name == self.selected
        cursor = self.get_component_rich_style("service-table--cursor") if chosen else None
        return self._strip(f"{'▌' if chosen else ' '}{look.glyph} ", look.tone, cells, cursor, width)

    def _strip(self, lead: str, tone: str, cells: list[Cell], cursor: Style | None, width: int) -> Strip:
        over = Style(bgcolor=cursor.bgcolor, bold=cursor.bold) if cursor else Style.null()
        mark = self.get_component_rich_style("service-table--mark") + over
        segments = [Segment(lead[0], mark), Segment(lead[1:], self.get_component_rich_style(tone) + over)]
        for n, ((text, name), column) in enumerate(zip(cells, self._columns, strict=True)):
            if column.number:
                text = " " * (column.width - cell_len(text)) + text
            padded = set_cell_size(text, column.width) + ("" if n == len(cells) - 1 else " ")
            segments.append(Segment(padded, self.get_component_rich_style(name) + over))
        return Strip(segments).extend_cell_length(width, self.rich_style + over).crop(0, width)

    def _cell(self, column: Column, status: ServiceStatus, now: int) -> Cell:
        match column.key:
            case "name":
                return shorten(status.name, column.width), MODES.get(status.mode, PLAIN)
            case "state":
                # The mode's column says that it is remote; what of the remote it is, is said here alone.
                text = state_text(status, cut_off=self._cut_off).removeprefix("remote: ")
                return shorten(text, column.width), service_look(status, cut_off=self._cut_off).tone
            case "mode":
                return status.mode, MODES.get(status.mode, PLAIN)
            case "traffic":
                found = attachments.telling(status)
                tone = attachments.look(found.phase).tone if found else QUIET
                return attachments.mark(status, column.width), tone
            case "last":
                if status.opened_at is not None:
                    return f"…{max(0, now - status.opened_at) / 1e9:.1f}s"[:6], "tone--busy"
                if status.last_loop is None:
                    return "", QUIET
                if status.last_loop.outcome is Outcome.FAILED:
                    return "failed", "tone--bad"
                return duration(status.last_loop.waited), PLAIN
            case "p50":
                return duration(status.p50), PLAIN
            case "p95":
                return duration(status.p95), QUIET
            case "history":
                return sparkline(status.history, column.width), "tone--away"
            case "restarts":
                return str(min(status.restarts, 999)) if status.restarts else "·", QUIET
            case "ports":
                return ports_text(status, column.width), PLAIN
        return age(now - status.since_at) if status.state in UPTIME else "", QUIET

    def _fit(self, width: int) -> None:
        # Here and not on a resize, because a scrollbar that comes or goes changes the width too.
        fitted = (width, self._traffic, self._shape)
        if fitted != self._fitted:
            self._fitted = fitted
            self._columns = fit_columns(width, self._services, traffic=self._traffic)

    def _select(self, index: int) -> None:
        if self._services:
            self.selected = self._services[max(0, min(index, len(self._services) - 1))].name
            self.refresh()

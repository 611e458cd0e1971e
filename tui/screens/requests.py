"""The requests that went through a service's attachments: who asked for what, who answered, and how long it took."""

from __future__ import annotations

import re
import time
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Static

from devloop.errors import DevloopError
from devloop.protocol import RequestRecord, ServiceStatus
from tui import attachments, refusals
from tui.formats import duration, printable
from tui.screens.base import SessionScreen
from tui.session import Session
from tui.states import COLOURS
from tui.widgets.attachment_lines import AttachmentLines
from tui.widgets.keybar import KeyBar
from tui.widgets.listing import Cell, Field, Listing
from tui.widgets.pane_title import PaneTitle
from tui.widgets.prompt import Prompt
from tui.widgets.words import Words

REQUESTS_KEYS: list[BindingType] = [
    Binding("f", "follow", "follow", tooltip="stay with the newest, or the chosen one"),
    Binding("slash", "filter", "filter", key_display="/", tooltip="show only what matches"),
    Binding("y", "copy", "copy", show=False, tooltip="copy the chosen line"),
    Binding("i", "attach", "attach", tooltip="take the cluster's traffic"),
    Binding("i", "leave", "leave", tooltip="give its traffic back"),
    Binding("escape", "back", "back", tooltip="back: filter, services"),
    Binding("x,q", "close", "services", show=False, tooltip="back to the services"),
]
FIELDS = (
    *(Field("time"), Field("method", most=7), Field("path", flex=True), Field("status", number=True)),
    *(Field("took", number=True), Field("answered", most=10), Field("protocol", optional=True, most=10)),
)
NARROW = 64
"""Columns below which the list has just the glyph of who answered; the line below it has the words."""
SHORT = 20
"""Rows below which what is attached takes a single line."""

Row = tuple[RequestRecord, list[Cell], str]
"""A request, its cells, and what a filter looks at."""


class RequestsScreen(SessionScreen):
    """The newest at the bottom; follows while the cursor stands on it."""

    BINDINGS: ClassVar[list[BindingType]] = REQUESTS_KEYS
    AUTO_FOCUS = "Listing"

    def __init__(self, session: Session, service: str) -> None:
        super().__init__(session)
        self.service = service
        self.follow = True
        self._rows: list[Row] = []
        self._shown: list[Row] = []
        self._chosen: RequestRecord | None = None
        self._trouble = ""
        self._answered = False
        """The engine has said which there were before."""
        self._pattern: re.Pattern[str] | None = None
        self._kept: re.Pattern[str] | None = None
        self._offered: tuple[bool, bool] | None = None

    def compose(self) -> ComposeResult:
        """What is attached, the requests, and the chosen one in full."""
        yield PaneTitle()
        yield AttachmentLines()
        yield Listing()
        yield Words(id="whole")
        yield Prompt()
        yield KeyBar()

    def on_mount(self) -> None:
        """Ask for what was before this screen."""
        self.query_one(KeyBar).order = ("back", "filter", "follow", "attach", "leave")
        self.query_one(Prompt).close()
        self.set_interval(1.0, self.board_changed)
        self.attempt(self._ask())

    def on_resize(self, event: events.Resize) -> None:
        """Less room, fewer words."""
        self.query_one(AttachmentLines).most = 1 if event.size.height < SHORT else 6
        self._fill()

    async def _ask(self) -> None:
        try:
            await self.session.requests(self.service)
        except DevloopError as error:
            self._trouble = error.what
            raise
        self._answered = True
        self.board_changed()

    @property
    def _status(self) -> ServiceStatus | None:
        return self.session.board.services.get(self.service)

    # Keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """One key attaches what is not attached, and leaves what is."""
        status, board = self._status, self.session.board
        match action:
            case "attach":
                return (
                    status is not None
                    and self.session.connected
                    and attachments.attachable(status, board.remote)
                    and not attachments.holds(status)
                )
            case "leave":
                return status is not None and self.session.connected and attachments.holds(status)
        return True

    def why(self, action: str) -> str:
        """Why a key can do nothing now."""
        return refusals.why(action, self._status, self.session.board.remote) if action == "attach" else ""

    def action_attach(self) -> None:
        """Take the traffic that devloop.toml says."""
        self.attempt(self.session.attach(self.service))

    def action_leave(self) -> None:
        """Give the service's traffic back."""
        self.request("leave", service=self.service)

    def action_follow(self) -> None:
        """Stay with the newest, or with the chosen one."""
        self.follow = not self.follow
        self.paint()

    def action_copy(self) -> None:
        """Copy the chosen request."""
        if self._chosen is not None:
            self.copy(_whole(self._chosen).plain)

    def action_filter(self) -> None:
        """Show only what matches."""
        self._kept = self._pattern
        self.query_one(Prompt).ask("filter", self._pattern.pattern if self._pattern else "")

    def action_back(self) -> None:
        """A step back: filter, services."""
        if self._pattern is None:
            self.dismiss()
            return
        self._pattern = None
        self.paint()

    def action_close(self) -> None:
        """Back to the services."""
        self.dismiss()

    @on(Prompt.Changed)
    def _typed(self, message: Prompt.Changed) -> None:
        self._pattern = message.pattern
        if message.final:
            self._close_prompt()
        self.paint()

    @on(Prompt.Cancelled)
    def _cancelled(self) -> None:
        self._pattern = self._kept
        self._close_prompt()
        self.paint()

    def _close_prompt(self) -> None:
        self.query_one(Prompt).close()
        self.query_one(Listing).focus()

    @on(Listing.Moved)
    def _moved(self) -> None:
        row = self.query_one(Listing).cursor
        chosen = self._shown[row][0] if row < len(self._shown) else None
        if chosen is not self._chosen:  # by a key: what `paint` does is known
            self._chosen = chosen
            self.follow = row == len(self._shown) - 1
            self._describe()
            self._show_whole()

    # What is shown

    def paint(self) -> None:
        """Draw what is known; the cursor stays with the newest, or with its request."""
        self._moved()  # a key may have come just before
        known = self.session.board.requests_of(self.service)
        rows = {id(row[0]): row for row in self._rows}
        self._rows = [rows.get(id(each)) or _row(each) for each in known]
        shown = [row for row in self._rows if self._pattern is None or self._pattern.search(row[2])]
        if not self.follow and self._chosen is not None:
            cursor = next((n for n, row in enumerate(shown) if row[0] is self._chosen), None)
            cursor = min(self.query_one(Listing).cursor, len(shown) - 1) if cursor is None else cursor
        else:
            cursor = len(shown) - 1
        self._chosen = shown[cursor][0] if shown else None
        if [row[0] for row in shown] != [row[0] for row in self._shown] or cursor != self.query_one(Listing).cursor:
            self._shown = shown
            self._fill(cursor)
        self._describe()
        self._show_whole()
        self.query_one(AttachmentLines).show(self._status, self.session.clock())
        offered = (bool(self.check_action("attach", ())), bool(self.check_action("leave", ())))
        if offered != self._offered:
            self._offered = offered
            self.refresh_bindings()

    def _fill(self, cursor: int | None = None) -> None:
        if self.size.width >= NARROW:
            self.query_one(Listing).fill(FIELDS, [row[1] for row in self._shown], cursor)
            return
        cells = [[*row[1][:5], Cell(row[1][5].text[0], row[1][5].tone)] for row in self._shown]
        self.query_one(Listing).fill((*FIELDS[:5], Field("by")), cells, cursor)

    def _describe(self) -> None:
        title = self.query_one(PaneTitle)
        parts: list[Content | str | tuple[str, str]] = ["requests ", (self.service, "bold")]
        if self._pattern is not None:
            parts.append((f"  /{self._pattern.pattern}/", "$text-accent"))
            parts.append((f"  {len(self._shown)} of {len(self._rows)}", "$text-muted"))
        elif self._rows:
            parts.append((f"  the last {len(self._rows)}", "$text-muted"))
        title.left = Content.assemble(*parts)
        after = len(self._shown) - 1 - self.query_one(Listing).cursor
        paused = f"‖ paused, {after} after it" if after > 0 else "‖ paused"
        title.right = (
            Content.styled("▼ follow", "$text-muted") if self.follow else Content.styled(paused, "$text-warning")
        )

    def _show_whole(self) -> None:
        """The chosen request in full, where the table has cut it."""
        if self._chosen is None:
            self.query_one("#whole", Static).update(Content.styled(self._empty, "$text-muted"))
            return
        self.query_one("#whole", Static).update(_whole(self._chosen))

    @property
    def _empty(self) -> str:
        if self._rows:
            return "nothing matches"
        if not self._answered:
            return self._trouble or "loading…"
        status = self._status
        if status is not None and attachments.holds(status):
            return "no request has gone through yet"
        if status is not None and attachments.attachable(status, self.session.board.remote):
            return "nothing of the cluster's traffic comes here; i attaches it"
        mode = status.mode if status is not None else "gone"
        return f"it is {mode}: only what runs here, and stands for a workload there, can be attached"


def _row(request: RequestRecord) -> Row:
    shown = attachments.answered_by(request)
    cells = [
        Cell(_moment(request), "tone--quiet"),
        Cell(printable(request.method), "listing--strong"),
        Cell(printable(request.path)),
        Cell(printable(request.outcome) or "none", _status_tone(request)),
        Cell(duration(request.duration)),
        Cell(f"{shown.glyph} {request.answered}", shown.tone),
        Cell(request.protocol, "tone--quiet"),
    ]
    text = f"{request.method} {request.path} {request.outcome} {request.answered} {request.protocol} {request.by}"
    return request, cells, text


def _status_tone(request: RequestRecord) -> str:
    if request.blame:
        return "tone--bad" if request.blame == "server" else "tone--warn"
    return "tone--ok" if request.status >= 200 else "tone--quiet"


def _moment(request: RequestRecord) -> str:
    return time.strftime("%H:%M:%S", time.localtime(request.at / 1e9))


def _whole(request: RequestRecord) -> Content:
    shown = attachments.answered_by(request)
    words = {
        "local": "answered here",
        "original": "taken, but the original answered" if request.failed_over else "by the original pods",
        "other": f"by {printable(request.by) or 'another holder'}",
        "nobody": "answered by nobody",
    }.get(request.answered, request.answered)
    moment = f"{_moment(request)}.{request.at // 1_000_000 % 1000:03}"
    status = printable(request.outcome) or "ended without an answer"
    return Content.assemble(
        (printable(request.method), "bold"),
        f" {printable(request.path)}\n",
        (f"{moment}  {request.protocol or 'TCP'}  {status}  {duration(request.duration)}  ", "$text-muted"),
        (f"{shown.glyph} {words}", COLOURS[shown.tone]),
    )

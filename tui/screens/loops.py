"""A service's loops: where the time goes, and whether it gets better."""

from __future__ import annotations

import time
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content

from devloop.protocol import PHASES, Loop, Outcome
from tui.formats import age, duration, path_list, sparkline
from tui.screens.base import SessionScreen
from tui.session import Session
from tui.states import OUTCOMES
from tui.widgets.keybar import KeyBar
from tui.widgets.listing import Cell, Field, Listing
from tui.widgets.loop_pane import loop_summary
from tui.widgets.pane_title import PaneTitle
from tui.widgets.timeline import Timeline

LOOPS_KEYS: list[BindingType] = [
    Binding("escape,m,q", "leave", "back", tooltip="back to the services"),
]
SHORT = 22
"""Rows below which the timeline is a bar instead of a waterfall."""


class LoopsScreen(SessionScreen):
    """Every loop that the engine knows of, newest first; the chosen one's timeline above."""

    BINDINGS: ClassVar[list[BindingType]] = LOOPS_KEYS
    AUTO_FOCUS = "Listing"

    def __init__(self, session: Session, service: str) -> None:
        super().__init__(session)
        self.service = service
        self._loops: list[Loop] = []

    def compose(self) -> ComposeResult:
        """Figures, a timeline, a table."""
        yield PaneTitle(id="figures")
        yield Timeline()
        yield PaneTitle(id="chosen")
        yield Listing()
        yield KeyBar()

    def on_mount(self) -> None:
        """Ask for what was before this screen."""
        self.query_one(KeyBar).order = ("leave",)
        self.query_one(Timeline).empty = "loading…"
        self.attempt(self._ask())

    def on_resize(self, event: events.Resize) -> None:
        """A waterfall takes room."""
        self.set_class(event.size.height < SHORT, "-short")

    async def _ask(self) -> None:
        await self.session.history(self.service)
        self.query_one(Timeline).empty = "no loop yet; save a file"
        self.board_changed()

    def paint(self) -> None:
        """Draw what is known, and keep the cursor on its loop."""
        self._paint_figures()
        loops = self.session.board.loops_of(self.service)[::-1]
        if loops == self._loops:
            return
        chosen, cursor = self._chosen, self.query_one(Listing).cursor
        self._loops = loops
        ids = [loop.id for loop in loops]
        # On the newest loop the cursor stays with the newest; elsewhere with its loop.
        self._fill(ids.index(chosen.id) if cursor and chosen and chosen.id in ids else 0)
        self._show_chosen()

    @on(Listing.Moved)
    def _show_chosen(self) -> None:
        chosen = self._chosen
        self.query_one(Timeline).loop = chosen
        title = self.query_one("#chosen", PaneTitle)
        if chosen is not None:
            title.left = Content.styled(f"loop {chosen.id}", "bold")
            title.right = loop_summary(chosen, self.session.clock())

    def action_leave(self) -> None:
        """Back to the services."""
        self.dismiss()

    @property
    def _chosen(self) -> Loop | None:
        row = self.query_one(Listing).cursor
        return self._loops[row] if 0 <= row < len(self._loops) else None

    def _paint_figures(self) -> None:
        title = self.query_one("#figures", PaneTitle)
        status = self.session.board.services.get(self.service)
        title.left = Content.assemble("loops ", (self.service, "bold"))
        if status is not None and status.loops:
            title.left = Content.assemble(
                *("loops ", (self.service, "bold"), (f"  {status.loops} ok", "$text-muted")),
                *(("  p50 ", "$text-muted"), duration(status.p50)),
                *(("  p95 ", "$text-muted"), duration(status.p95)),
            )
            title.right = Content.styled(sparkline(status.history, 32), "$text-primary")

    def _fill(self, cursor: int) -> None:
        now = self.session.clock()
        seen = {phase for loop in self._loops for phase, *_ in loop.spans()}
        phases = [phase for phase in PHASES if phase in seen]
        fields = [
            *(Field("when", number=True), Field("cause"), Field("outcome"), Field("total", number=True)),
            *(Field(phase, number=True, optional=True) for phase in phases),
            Field("what", flex=True),
        ]
        self.query_one(Listing).fill(fields, [_row(loop, phases, now) for loop in self._loops], cursor)


def _row(loop: Loop, phases: list[str], now: int) -> list[Cell]:
    took = {phase: end - begin for phase, begin, end in loop.spans()}
    look = OUTCOMES[loop.outcome]
    failed = loop.outcome is Outcome.FAILED and loop.detail
    return [
        Cell(_moment(loop.started_at, now), "tone--quiet"),
        Cell(str(loop.cause)),
        Cell(f"{look.glyph} {loop.outcome}", look.tone),
        Cell(duration(loop.waited), "listing--strong"),
        *(Cell(duration(took.get(phase))) for phase in phases),
        Cell(loop.detail, "tone--bad") if failed else Cell(path_list(loop.files, 60), "tone--quiet"),
    ]


def _moment(at: int, now: int) -> str:
    """Within a day how long ago, else the date."""
    if now - at < 86_400_000_000_000:
        return f"{age(now - at)} ago"
    return time.strftime("%d %b %H:%M", time.localtime(at / 1e9))

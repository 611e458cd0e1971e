"""What the engine has said outside any service's log, newest first."""

from __future__ import annotations

import time
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from devloop.protocol import Notice
from tui.paragraphs import hanging
from tui.screens.base import SessionScreen
from tui.widgets.keybar import KeyBar
from tui.widgets.pane_title import PaneTitle
from tui.widgets.words import Words

NOTICES_KEYS: list[BindingType] = [
    Binding("escape,exclamation_mark,q", "leave", "back", tooltip="back to the services"),
    Binding("j", "down", "down", show=False),
    Binding("k", "up", "up", show=False),
]
LOOKS = {
    "error": ("✗", "$text-error"),
    "warning": ("▲", "$text-warning"),
    "info": ("·", "$text-muted"),
}


class NoticesScreen(SessionScreen):
    """All notices that are kept."""

    BINDINGS: ClassVar[list[BindingType]] = NOTICES_KEYS
    AUTO_FOCUS = "VerticalScroll"

    def compose(self) -> ComposeResult:
        """A text that scrolls."""
        yield PaneTitle()
        with VerticalScroll():
            yield Words(id="notices")
        yield KeyBar()

    def on_mount(self) -> None:
        """Draw."""
        self.query_one(KeyBar).order = ("leave",)

    def on_resize(self) -> None:
        """Other rows."""
        self.call_after_refresh(self._paint_now)

    def paint(self) -> None:
        """Draw the notices."""
        notices = list(self.session.board.notices)[::-1]
        self.query_one(PaneTitle).left = Content.assemble(
            ("notices", "bold"), (f"  {len(notices)}, newest first", "$text-muted")
        )
        width = self.size.width - 1  # and the scrollbar's
        text = Content("\n").join([line for notice in notices for line in _lines(notice, width)])
        self.query_one("#notices", Static).update(text if notices else "nothing so far")

    def action_leave(self) -> None:
        """Back to the services."""
        self.dismiss()

    def action_down(self) -> None:
        """Scroll down."""
        self.query_one(VerticalScroll).scroll_down(animate=False)

    def action_up(self) -> None:
        """Scroll up."""
        self.query_one(VerticalScroll).scroll_up(animate=False)


def _lines(notice: Notice, width: int) -> list[Content]:
    glyph, style = LOOKS.get(notice.level, LOOKS["info"])
    moment = time.strftime("%H:%M:%S", time.localtime(notice.at / 1e9))
    head = Content.assemble((f" {moment}  ", "$text-muted"), (f"{glyph} {notice.level:<8}", style))
    text = Content.assemble((f"{notice.service}: " if notice.service else "", "bold"), notice.text)
    lines = hanging(head, text, width)
    if notice.hint:
        lines += hanging(Content(" " * head.cell_length), Content.styled(notice.hint, "$text-muted"), width)
    return lines

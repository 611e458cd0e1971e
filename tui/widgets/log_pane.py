"""Logs of one service or of all: title, lines, and the prompt for filter and search."""

from __future__ import annotations

import asyncio
import re

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content

from devloop.errors import DevloopError
from tui.session import PAINT_INTERVAL, Session
from tui.widgets.log_view import LogView
from tui.widgets.pane_title import PaneTitle
from tui.widgets.prompt import Prompt
from tui.widgets.terminal_view import TerminalView

RETRY = 1.0
"""Seconds after which a log that could not be read is asked for again."""
LOADING = 0.5
"""Seconds after which it is said that the engine has not answered."""
SETTLE = 0.06
"""Seconds that the cursor must rest on a service before its log is asked for."""


class LogPane(Vertical):
    """Reads and shows the log of what `choose` says."""

    def __init__(self, session: Session, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.session = session
        self.view = LogView()
        self.service: str | None = ""
        """On view: a service, None for all, empty for none."""
        self.terminal = TerminalView(session)
        self._title = PaneTitle()
        self._prompt = Prompt()
        self.away = ""
        """Why there is nothing of it here, if it does not run here."""
        self._state = ""
        """Why there is no line, for all that is known of the connection."""
        self._kept: re.Pattern[str] | None = None
        self._scheduled = False

    def compose(self) -> ComposeResult:
        """Title, lines, prompt."""
        yield self._title
        yield self.view
        yield self.terminal
        yield self._prompt

    def on_mount(self) -> None:
        """Say what is on view."""
        self.terminal.display = False
        self._prompt.close()
        self._describe()

    def on_descendant_focus(self) -> None:
        """The title shows who has the focus."""
        self._title.active = True

    def on_descendant_blur(self) -> None:
        """And who has it no more."""
        self._title.active = self.has_focus_within

    def choose(self, service: str | None) -> None:
        """Show the log of a service, or of all (None)."""
        if service == self.service:
            return
        delay = SETTLE if self.service else 0.0
        self.service = service
        self._state = ""
        self.view.clear()
        self.view.named = service is None
        self._describe()
        self.run_worker(self._read(service, delay), group="logs", exclusive=True)

    async def _read(self, service: str | None, delay: float) -> None:
        if service == "":
            return
        # A cursor that runs down the table asks for one log, not for forty.
        await asyncio.sleep(delay)
        while True:
            fresh = True
            waiting = self.set_timer(LOADING, lambda: self._say("loading…"))
            try:
                async for batch in self.session.logs(None if service is None else [service]):
                    waiting.stop()
                    if fresh:
                        self._begin()
                        fresh = False
                    self.view.append(batch)
                    if not self._scheduled:
                        self._scheduled = True
                        self.set_timer(PAINT_INTERVAL, self._flush)
            except DevloopError as error:
                self._say(f"the log can't be read: {error.what}")
            waiting.stop()
            # The state's connection may be there still, as when the socket was removed; or there is another engine.
            await asyncio.sleep(RETRY)

    def _begin(self) -> None:
        """The log comes, from its last lines on."""
        if self.view.buffer.total:
            self.view.clear()  # of another connection, which had the same lines
        self._say("no output yet")

    def _say(self, state: str) -> None:
        self._state = state
        self.explain(self.away)

    def explain(self, away: str) -> None:
        """What stands there while there is no line: why it is not here, or how far its log is."""
        self.away = away
        self.view.empty = away or self._state
        if not self.view.buffer.total:
            self.view.refresh()

    def _flush(self) -> None:
        self._scheduled = False
        self.view.flush()

    @on(LogView.Moved)
    def _describe(self) -> None:
        view = self.view
        if self.terminal.display:
            return
        parts: list[Content | str | tuple[str, str]] = [
            "logs ",
            ("all services" if self.service is None else self.service, "bold"),
        ]
        if view.buffer.level:
            parts.append((f"  {view.buffer.level} and above", "$text-accent"))
        if view.buffer.filter is not None:
            parts.append((f"  /{view.buffer.filter.pattern}/", "$text-accent"))
        if view.buffer.narrowed:
            parts.append((f" {len(view.buffer):,} of {view.buffer.total:,}", "$text-muted"))
        if view.search is not None:
            here, count = view.position
            parts.append((f"  search {view.search.pattern}", "$text-primary"))
            parts.append((f" {here} of {count}" if count else " not found", "$text-muted"))
        self._title.left = Content.assemble(*parts)
        if view.follow:
            self._title.right = Content.styled("▼ follow", "$text-muted")
        else:
            new = f", {view.unseen:,} new" if view.unseen else ""
            self._title.right = Content.styled(f"‖ paused{new}", "$text-warning")

    def type_into(self, service: str, *, tty: bool) -> None:
        """Show a service's terminal in place of its log, and give it the keyboard."""
        self.view.display = False
        self.terminal.display = True
        self._title.left = Content.assemble("terminal ", (service, "bold"))
        self._title.right = Content() if tty else Content.styled("a line at a time", "$text-muted")
        # Its size is known when it is laid out.
        self.call_after_refresh(self.terminal.open, service, tty=tty)

    def type_no_more(self) -> None:
        """Show the log again."""
        self.terminal.close()
        self.terminal.display = False
        self.view.display = True
        self._describe()

    def ask(self, kind: str) -> None:
        """Open the prompt for a filter or a search."""
        self._kept = self.view.buffer.filter
        present = self._kept if kind == "filter" else self.view.search
        self._prompt.ask(kind, present.pattern if present else "")

    def step(self, step: int) -> None:
        """To the next match (1) or the previous (-1); asks what to search for the first time."""
        if self.view.search is None:
            self.ask("search")
        elif not self.view.next_match(step):
            self.app.notify(f"nothing matches {self.view.search.pattern}", timeout=3, markup=False)

    def next_level(self) -> None:
        """Warnings and above, then errors, then all lines."""
        order = ("", "warning", "error")
        self.view.set_level(order[(order.index(self.view.buffer.level) + 1) % len(order)])

    def undo(self) -> bool:
        """Take back the search, or else the filter, or else the level. False if there is none."""
        if self.view.search is not None:
            self.view.set_search(None)
        elif self.view.buffer.filter is not None:
            self.view.set_filter(None)
        elif self.view.buffer.level:
            self.view.set_level("")
        else:
            return False
        return True

    @on(Prompt.Changed)
    def _pattern(self, message: Prompt.Changed) -> None:
        if message.kind == "filter":
            self.view.set_filter(message.pattern)
        elif message.final:
            self.view.set_search(message.pattern)
        if message.final:
            self._close_prompt()

    @on(Prompt.Cancelled)
    def _cancelled(self, message: Prompt.Cancelled) -> None:
        if message.kind == "filter":
            self.view.set_filter(self._kept)
        self._close_prompt()

    def _close_prompt(self) -> None:
        self._prompt.close()
        self.view.focus()

"""The loops before the last one, a line each: what the wide layout has room for."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from devloop.protocol import Loop, Outcome
from tui.formats import age, duration, path_list
from tui.states import COLOURS, OUTCOMES


class RecentLoops(Widget):
    """Draws `loops`, newest first, as many as fit."""

    ALLOW_SELECT = False

    loops: reactive[tuple[Loop, ...]] = reactive(())
    now: reactive[int] = reactive(0)

    def show(self, loops: Sequence[Loop], now: int) -> None:
        """Show these loops, given oldest first."""
        self.loops, self.now = tuple(loops[::-1][: self.size.height]), now

    def render(self) -> Content:
        """The lines."""
        longest = max((loop.waited for loop in self.loops), default=1) or 1
        room = max(4, self.size.width // 4)
        return Content("\n").join([self._line(loop, longest, room) for loop in self.loops])

    def _line(self, loop: Loop, longest: int, room: int) -> Content:
        look = OUTCOMES[loop.outcome]
        failed = loop.outcome is Outcome.FAILED
        bar = "▬" * max(1, loop.waited * room // longest)
        head = Content.assemble(
            (f" {age(self.now - loop.started_at):>4} ago  ", "$text-muted"),
            (look.glyph, COLOURS[look.tone]),
            f" {duration(loop.waited):>6} ",
            (f"{bar:<{room}} ", "$error" if failed else "$primary"),
            (f" {loop.cause:<7}", "$text-muted"),
        )
        width = self.size.width - head.cell_length - 1
        what = loop.detail if failed and loop.detail else path_list(loop.files, width)
        line = Content.assemble(head, (what, "$text-error" if failed else ""))
        return line.truncate(self.size.width, ellipsis=True)

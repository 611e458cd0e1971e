"""The chosen service in a line, and its last loop below it."""

from __future__ import annotations

from collections.abc import Mapping

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content

from devloop.protocol import Loop, Outcome, ServiceStatus
from tui.formats import age, duration
from tui.states import COLOURS, LOOKS, OUTCOMES, state_text
from tui.widgets.pane_title import PaneTitle
from tui.widgets.timeline import Timeline

EMPTY: Mapping[str, str] = {
    "remote": "runs in the cluster; t brings it here",
    "off": "off; t brings it here",
}
"""What to say of a service without a loop, by its mode."""


def loop_summary(loop: Loop, now: int) -> Content:
    """Its cause, its outcome and how long ago it was."""
    look = OUTCOMES[loop.outcome]
    verb = "in" if loop.outcome is Outcome.OK else "after"
    return Content.assemble(
        f"{loop.cause}  ",
        (f"{look.glyph} {loop.outcome} {verb} {duration(loop.total)}", COLOURS[look.tone]),
        (f"  {age(now - loop.started_at)} ago", "$text-muted"),
    )


class LoopPane(Vertical):
    """Shows what `show` is given."""

    def compose(self) -> ComposeResult:
        """A title and a timeline."""
        yield PaneTitle()
        yield Timeline()

    def show(self, status: ServiceStatus | None, loop: Loop | None, now: int) -> None:
        """Show a service with its state and reason, and a loop of it."""
        title, timeline = self.query_one(PaneTitle), self.query_one(Timeline)
        timeline.loop = loop
        if status is None:
            title.left, title.right = Content("no services"), Content()
            timeline.empty = ""
            return
        timeline.empty = EMPTY.get(status.mode, "no loop yet; save a file")
        look = LOOKS[status.state]
        title.yields = bool(status.reason)
        state = f"{look.glyph} {state_text(status)}"
        title.left = Content.assemble((status.name, "bold"), "  ", (state, COLOURS[look.tone]))
        if status.opened_at is not None:
            took = duration(now - status.opened_at)
            title.right = Content.styled(f"loop under way, {took}", "$text-accent")
        else:
            title.right = loop_summary(loop, now) if loop else Content()

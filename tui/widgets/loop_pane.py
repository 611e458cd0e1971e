"""The chosen service in a line, and below it where it stands, what it holds and its last loop."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content

from devloop.protocol import Loop, Outcome, RemoteStatus, ServiceStatus
from tui.formats import age, duration
from tui.states import COLOURS, OUTCOMES, service_look, state_text
from tui.widgets.attachment_lines import AttachmentLines
from tui.widgets.pane_title import PaneTitle
from tui.widgets.place_lines import PlaceLines
from tui.widgets.timeline import Timeline


def loop_summary(loop: Loop, now: int) -> Content:
    """Its cause, its outcome and how long ago it was."""
    look = OUTCOMES[loop.outcome]
    verb = "in" if loop.outcome is Outcome.OK else "after"
    return Content.assemble(
        f"{loop.cause}  ",
        (f"{look.glyph} {loop.outcome} {verb} {duration(loop.waited)}", COLOURS[look.tone]),
        (f"  {age(now - loop.started_at)} ago", "$text-muted"),
    )


class LoopPane(Vertical):
    """Shows what `show` is given."""

    def compose(self) -> ComposeResult:
        """A title, where the service stands, what traffic it holds, and a timeline for what runs here."""
        yield PaneTitle()
        yield PlaceLines()
        yield AttachmentLines()
        yield Timeline()

    def show(self, status: ServiceStatus | None, loop: Loop | None, now: int, remote: RemoteStatus | None) -> None:
        """Show a service with its state and reason, and a loop of it; or, if it does not run here, where it does."""
        title, timeline = self.query_one(PaneTitle), self.query_one(Timeline)
        away = status is not None and status.mode != "local"
        self.set_class(away, "-away")
        self.set_class(not away, "-here")
        timeline.loop = loop
        self.query_one(AttachmentLines).show(status, now)
        if status is None:
            title.left, title.right = Content("no services"), Content()
            timeline.empty = ""
            return
        timeline.empty = "no loop yet; save a file"
        self.query_one(PlaceLines).show(status, remote)
        cut_off = remote is not None and remote.phase != "connected"
        look = service_look(status, cut_off=cut_off)
        title.yields = bool(status.reason)
        state = f"{look.glyph} {state_text(status, cut_off=cut_off)}"
        title.left = Content.assemble((status.name, "bold"), "  ", (state, COLOURS[look.tone]))
        if status.opened_at is not None:
            took = duration(now - status.opened_at)
            title.right = Content.styled(f"loop under way, {took}", "$text-accent")
        elif away:
            title.right = Content.styled(f"for {age(now - status.since_at)}", "$text-muted")
        else:
            title.right = loop_summary(loop, now) if loop else Content()

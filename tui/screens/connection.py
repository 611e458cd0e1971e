"""How the remote is reached: where it is, what carries it, and what people should know of it."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from devloop.protocol import RemoteStatus
from tui.connection import NOTED, look, progress
from tui.formats import age, count
from tui.paragraphs import hanging
from tui.screens.base import SessionScreen
from tui.states import COLOURS
from tui.widgets.keybar import KeyBar
from tui.widgets.pane_title import PaneTitle
from tui.widgets.words import Words

CONNECTION_KEYS: list[BindingType] = [
    Binding("escape,c,q", "leave", "back", tooltip="back to the services"),
    Binding("C,r", "reconnect", "reconnect", key_display="C", tooltip="look at once whether it lives; try again"),
    Binding("j", "down", "down", show=False),
    Binding("k", "up", "up", show=False),
]
KINDS = {
    "kubernetes": "a Kubernetes cluster",
    "ssh": "a host with an SSH server",
    "sandbox": "a small cluster inside of devloop",
}
LINKS = {
    "agent": "SSH to devloop's agent pod, through one port-forward",
    "portforward": "plain port-forwards; nothing is installed in the cluster",
    "ssh": "SSH",
    "sandbox": "SSH to this machine",
}
NETWORKS = {
    "namespace": "a network namespace for each local service",
    "ports": "a port of this machine's localhost for each Service",
    "hosts": "loopback addresses and the hosts file",
}


class ConnectionScreen(SessionScreen):
    """Facts on the connection; they change as it does."""

    BINDINGS: ClassVar[list[BindingType]] = CONNECTION_KEYS
    AUTO_FOCUS = "VerticalScroll"

    def compose(self) -> ComposeResult:
        """A text that scrolls."""
        yield PaneTitle()
        with VerticalScroll():
            yield Words(id="connection")
        yield KeyBar()

    def on_mount(self) -> None:
        """Seconds pass."""
        self.query_one(KeyBar).order = ("leave", "reconnect")
        self.set_interval(0.25, self.board_changed)

    def paint(self) -> None:
        """Draw what the engine said last."""
        remote, now = self.session.board.remote, self.session.clock()
        title = self.query_one(PaneTitle)
        if remote is None:
            title.left = Content.assemble(("connection", "bold"), "  this project has no remote")
            self.query_one("#connection", Static).update("")
            return
        shown = look(remote)
        title.left = Content.assemble(
            "connection ",
            (remote.where, "bold"),
            (f"  {shown.glyph} {progress(remote, now)}", COLOURS[shown.tone]),
        )
        title.right = Content.styled(f"for {age(now - remote.since_at)}", "$text-muted")
        away = sum(status.mode == "remote" for status in self.session.board.services.values())
        self.query_one("#connection", Static).update(Content("\n").join(_lines(remote, away, self.size.width)))

    def action_leave(self) -> None:
        """Back to the services."""
        self.dismiss()

    def action_reconnect(self) -> None:
        """Look at once whether it lives."""
        self.request("reconnect")

    def action_down(self) -> None:
        """Scroll down."""
        self.query_one(VerticalScroll).scroll_down(animate=False)

    def action_up(self) -> None:
        """Scroll up."""
        self.query_one(VerticalScroll).scroll_up(animate=False)


def _lines(remote: RemoteStatus, away: int, width: int) -> list[Content]:
    facts = [
        ("remote", KINDS.get(remote.kind, remote.kind)),
        # Before the first connection it may not be known what will carry it.
        ("link", _link(remote)),
        ("network", NETWORKS.get(remote.network, remote.network)),
        ("services", f"{count(away, 'service')} of this project there"),
    ]
    lines = [Content.assemble((f" {name:<10}", "$text-muted"), text) for name, text in facts if text]
    if remote.phase != "connected":
        failed = f"{count(remote.attempt, 'attempt')} failed" if remote.attempt else ""
        shown = look(remote)
        colour = COLOURS[shown.tone]
        reason = Content.styled(remote.reason or remote.phase, colour)
        lines += [Content(), *hanging(Content.styled(f" {shown.glyph} ", colour), reason, width - 2)]
        lines += [Content.styled(f"   {failed}", "$text-muted")] if failed else []
        lines.append(Content.styled(f"   {_meaning(remote)}", "$text-muted"))
    if remote.notes:
        lines += [Content(), Content.styled(" good to know", "bold $text-primary")]
        for note in remote.notes:
            lines += hanging(Content.styled(f" {NOTED} ", "$text-warning"), Content(note), width - 2)
    return lines


def _link(remote: RemoteStatus) -> str:
    if remote.direct:
        return f"SSH straight to devloop's agent, at {remote.direct}"
    return LINKS.get(remote.link, "" if remote.link == remote.kind else remote.link)


def _meaning(remote: RemoteStatus) -> str:
    if remote.phase == "failed":
        return "trying again by itself would change nothing; C tries again once it is mended"
    if remote.phase == "reconnecting":
        return "services here go on; connections to there wait, and work once it is back"
    return "services here start meanwhile"

"""The engine ends the services: who is still alive, for how long, and what would not die."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Static

from tui.formats import count
from tui.screens.base import SessionScreen
from tui.session import Session
from tui.states import COLOURS, LOOKS, state_text
from tui.widgets.keybar import KeyBar
from tui.widgets.words import Words


class ShutdownScreen(SessionScreen, ModalScreen[None]):
    """Follows a shutdown. Posts `Left` when a key leaves the rest to the engine, or when all is read."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "leave", "leave it to the engine", tooltip="close this; the engine goes on stopping"),
        Binding("enter,escape,q", "close", "close"),
    ]

    class Left(Message):
        """The view may close."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.began_at = session.clock()
        self.hung_up = False

    def compose(self) -> ComposeResult:
        """A text in the middle, and the keys."""
        with Vertical(id="shutdown"):
            yield Static(id="shutdown-title")
            with VerticalScroll(id="shutdown-list"):
                yield Words(id="shutdown-text")
        yield KeyBar()

    def on_mount(self) -> None:
        """Seconds pass."""
        self.set_interval(0.25, self.board_changed)
        self.paint()

    def on_resize(self) -> None:
        """Draw anew."""
        self.board_changed()

    @property
    def finished(self) -> bool:
        """Whether there is nothing to wait for any more."""
        progress = self.session.board.progress
        return self.hung_up or (progress is not None and progress.done)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Before the end it can be left to the engine; after the end it is closed."""
        if action == "leave":
            return not self.finished
        if action == "close":
            return self.finished
        return True

    def end(self, *, hung_up: bool) -> None:
        """There is no more to come: show how it ended."""
        self.hung_up = hung_up
        self.refresh_bindings()
        self.paint()

    def paint(self) -> None:
        """Draw who is alive."""
        board = self.session.board
        progress = board.progress
        seconds = (self.session.clock() - self.began_at) // 1_000_000_000
        alive = progress.alive if progress else ()
        survivors = dict(progress.survivors) if progress else {}
        if progress is not None and progress.done and survivors:
            number = sum(len(processes) for processes in survivors.values())
            title = Content.styled(f"✗ {count(number, 'process', 'processes')} would not die", "bold $text-error")
        elif self.hung_up and not (progress and progress.done):
            title = Content.styled("✗ the engine hung up before it had said that all ended", "bold $text-error")
        elif self.finished:
            title = Content.styled("✓ all ended", "bold $text-success")
        else:
            title = Content.assemble(
                ("stopping ", "bold"), (board.project, "bold $primary"), (f"  {seconds} s", "$text-muted")
            )
        self.query_one("#shutdown-title", Static).update(title)
        lines: list[Content] = []
        longest = max((len(name) for name in alive), default=0)
        for name in alive:
            status = board.services.get(name)
            glyph = LOOKS[status.state].glyph if status else "◑"
            what = state_text(status) if status else "stopping"
            pid = f"  pid {status.pid}" if status and status.pid else ""
            lines.append(
                Content.assemble(
                    (f"{glyph} ", COLOURS["tone--warn"]),
                    (f"{name:<{longest}}", "bold"),
                    f"  {what}",
                    (pid, "$text-muted"),
                )
            )
        for name, processes in survivors.items():
            lines += [
                Content.assemble(("✗ ", "$text-error"), (name, "bold"), f"  survived SIGKILL: {process}")
                for process in processes
            ]
        if not self.finished:
            still = f"{count(len(alive), 'service')} still alive" if alive else "asking the engine"
            lines += [Content(), Content.styled(still, "$text-muted")]
        elif survivors:
            pids = " ".join(process.split()[0] for processes in survivors.values() for process in processes)
            lines += [
                Content(),
                Content.styled(f"look at them with: ps -o pid,stat,wchan,args -p {pids}", "$text-muted"),
            ]
        self.query_one("#shutdown-text", Static).update(Content("\n").join(lines))

    def action_leave(self) -> None:
        """The engine goes on alone."""
        self.post_message(self.Left())

    def action_close(self) -> None:
        """All is read."""
        self.post_message(self.Left())

"""A service's environment: what each variable is and where it comes from."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Static

from devloop.protocol import Variable
from tui.formats import count
from tui.screens.base import SessionScreen
from tui.session import Session
from tui.widgets.keybar import KeyBar
from tui.widgets.listing import Cell, Field, Listing
from tui.widgets.pane_title import PaneTitle

ENVIRONMENT_KEYS: list[BindingType] = [
    Binding("v", "reveal", "reveal", tooltip="show secret values"),
    Binding("v", "mask", "mask", tooltip="mask secret values"),
    Binding("escape,e", "leave", "back", tooltip="back to the services"),
]
FIELDS = (Field("name"), Field("value", flex=True), Field("from", most=24))


class EnvironmentScreen(SessionScreen):
    """Asks the engine each time: a value that is masked has never left it."""

    BINDINGS: ClassVar[list[BindingType]] = ENVIRONMENT_KEYS
    AUTO_FOCUS = "Listing"

    def __init__(self, session: Session, service: str) -> None:
        super().__init__(session)
        self.service = service
        self.revealed = False
        self._variables: list[Variable] = []

    def compose(self) -> ComposeResult:
        """A table under a title."""
        yield PaneTitle()
        yield Listing()
        yield Static(id="whole")
        yield KeyBar()

    def on_mount(self) -> None:
        """Ask."""
        self.query_one(KeyBar).order = ("leave", "reveal", "mask")
        self.query_one(PaneTitle).left = Content.assemble("environment ", (self.service, "bold"))
        self.attempt(self._ask(reveal=False))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """One key masks what is revealed, and reveals what is masked."""
        if action == "reveal":
            return not self.revealed
        return action != "mask" or self.revealed

    def action_reveal(self) -> None:
        """Show secret values."""
        self.attempt(self._ask(reveal=True))

    def action_mask(self) -> None:
        """Mask secret values."""
        self.attempt(self._ask(reveal=False))

    def action_leave(self) -> None:
        """Back to the services."""
        self.dismiss()

    async def _ask(self, *, reveal: bool) -> None:
        variables = await self.session.environment(self.service, reveal=reveal)
        self.revealed = reveal
        self.refresh_bindings()
        # What the project sets comes first: the host's own are many, and seldom what one looks for.
        self._show(sorted(variables, key=lambda variable: (variable.origin == "host", variable.name)))

    @on(Listing.Moved)
    def _show_whole(self) -> None:
        """The chosen value in full, where the table has cut it."""
        row = self.query_one(Listing).cursor
        if row < len(self._variables):
            chosen = self._variables[row]
            text = Content.assemble((f"{chosen.name}=", "bold"), chosen.value)
            self.query_one("#whole", Static).update(text)

    def _show(self, variables: list[Variable]) -> None:
        secrets = sum(variable.secret for variable in variables)
        title = self.query_one(PaneTitle)
        title.left = Content.assemble(
            "environment ",
            (self.service, "bold"),
            (f"  {count(len(variables), 'variable')}", "$text-muted"),
        )
        title.right = Content.styled(
            f"{count(secrets, 'secret')} {'shown' if self.revealed else 'masked'}" if secrets else "",
            "$text-warning" if self.revealed else "$text-muted",
        )
        tone = "tone--warn" if self.revealed else "tone--quiet"
        rows = [
            (
                Cell(variable.name, "listing--strong"),
                Cell(variable.value.replace("\n", "⏎"), tone if variable.secret else "listing--plain"),
                Cell(variable.origin, "tone--quiet"),
            )
            for variable in variables
        ]
        self._variables = variables
        self.query_one(Listing).fill(FIELDS, rows)
        self._show_whole()

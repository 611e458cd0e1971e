"""A service's environment: each variable and file, where it comes from, and what is not as in its pod."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Static

from devloop.errors import DevloopError
from devloop.protocol import Mounted, Variable
from tui import origins
from tui.formats import count, one_line, printable
from tui.screens.base import SessionScreen
from tui.session import Session, World
from tui.widgets.keybar import KeyBar
from tui.widgets.listing import Cell, Field, Listing
from tui.widgets.pane_title import PaneTitle
from tui.widgets.prompt import Prompt
from tui.widgets.tabs import Tab, TabLine
from tui.widgets.words import Words

ENVIRONMENT_KEYS: list[BindingType] = [
    Binding("v", "reveal", "reveal", tooltip="show secret values"),
    Binding("v", "mask", "mask", tooltip="mask secret values"),
    Binding("o", "origin(1)", "origin", tooltip="only the next origin's"),
    Binding("O", "origin(-1)", "origin back", show=False, tooltip="only the previous origin's"),
    Binding("slash", "filter", "filter", key_display="/", tooltip="show only what matches"),
    Binding("y", "copy", "copy", show=False, tooltip="copy the chosen line"),
    Binding("tab,right", "turn(1)", "files", tooltip="variables, files, differences"),
    Binding("shift+tab,left", "turn(-1)", "back", show=False, tooltip="the other way round"),
    Binding("escape", "back", "back", tooltip="back: filter, origin, services"),
    Binding("e,q", "leave", "services", show=False, tooltip="back to the services"),
]
VARIABLES = (Field("name"), Field("value", flex=True), Field("from", most=34))
FILES = (
    *(Field("path", flex=True), Field("from", most=30), Field("access"), Field("updates")),
    Field("on this machine", optional=True, most=60),
)
DIFFERENCES = (Field("what", most=36), Field("difference", flex=True))
KINDS = {"persistentVolumeClaim": "PVC", "configMap": "configmap"}
"""Kinds of volumes as people write them."""
VIEWS = ("variables", "files", "differences")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table, what is searched by a filter, and what the line below the table says of it, and what
    `y` copies."""

    cells: list[Cell]
    text: str
    whole: Content
    copied: str


class EnvironmentScreen(SessionScreen):
    """Asks the engine each time: a value that is masked has never left it."""

    BINDINGS: ClassVar[list[BindingType]] = ENVIRONMENT_KEYS
    AUTO_FOCUS = "Listing"

    def __init__(self, session: Session, service: str) -> None:
        super().__init__(session)
        self.service = service
        self.revealed = False
        self.origin = ""
        """The only group of origins that is shown; empty for all."""
        self.view = 0
        """Of `VIEWS`."""
        self._variables: list[Variable] = []
        self._trouble = ""
        self._answered = False
        """The engine has said what the variables are."""
        self._world: World | None = None
        self._refused = ""
        self._pattern: re.Pattern[str] | None = None
        self._kept: re.Pattern[str] | None = None
        self._rows: list[Row] = []
        self._cursors = [0] * len(VIEWS)

    @property
    def remote(self) -> bool:
        """Whether there is more than variables to show."""
        return self.session.board.remote is not None

    def compose(self) -> ComposeResult:
        """A table under a title, and its chosen line in full."""
        yield PaneTitle()
        yield TabLine()
        yield Listing()
        yield Words(id="whole")
        yield Prompt()
        yield KeyBar()

    def on_mount(self) -> None:
        """Ask."""
        self.query_one(KeyBar).order = ("back", "reveal", "mask", "origin", "filter", "turn")
        self.query_one(TabLine).display = self.remote
        self.query_one(Prompt).close()
        self._fill()
        self.attempt(self._ask(reveal=False))
        if self.remote:
            self.run_worker(self._ask_world(), group="requests")

    async def _ask(self, *, reveal: bool) -> None:
        try:
            found = await self.session.environment(self.service, reveal=reveal)
        except DevloopError as error:
            self._trouble = error.what
            self._fill()
            raise
        self._variables = origins.ordered(found)
        self.revealed = reveal
        self._answered = True
        self._fill()

    async def _ask_world(self) -> None:
        try:
            self._world = await self.session.world(self.service)
        except DevloopError as error:
            # Not a toast: it is asked for whichever view is open.
            self._refused = f"{error.what}  {error.hint or ''}"
        self._fill()

    # Keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """One key masks what is revealed, and reveals what is masked."""
        match action:
            case "reveal":
                return self.view == 0 and not self.revealed
            case "mask":
                return self.view == 0 and self.revealed
            case "origin":
                return self.view == 0
            case "turn":
                return self.remote
        return True

    def why(self, action: str) -> str:
        """Why a key can do nothing now."""
        match action:
            case "reveal" | "mask":
                return "" if self.view == 0 else f"{VIEWS[self.view]} have no secret values to show"
            case "origin":
                return f"{VIEWS[self.view]} are not sorted by origin"
            case "turn":
                return "this project has no remote: there are variables alone"
        return ""

    def action_reveal(self) -> None:
        """Show secret values."""
        self.attempt(self._ask(reveal=True))

    def action_mask(self) -> None:
        """Mask secret values."""
        self.attempt(self._ask(reveal=False))

    def action_origin(self, step: int) -> None:
        """Only what comes from the next origin, then from all again."""
        names = ["", *origins.grouped(self._variables)]
        now = names.index(self.origin) if self.origin in names else 0
        self.origin = names[(now + step) % len(names)]
        self._cursors[0] = 0
        self._fill()

    def action_turn(self, step: int) -> None:
        """Variables, files, differences."""
        self._turn((self.view + step) % len(VIEWS))

    def action_filter(self) -> None:
        """Show only what matches."""
        self._kept = self._pattern
        self.query_one(Prompt).ask("filter", self._pattern.pattern if self._pattern else "")

    def action_back(self) -> None:
        """A step back: filter, origin, services."""
        if self._pattern is not None:
            self._pattern = None
        elif self.view == 0 and self.origin:
            self.origin = ""
        else:
            self.dismiss()
            return
        self._fill()

    def action_copy(self) -> None:
        """Copy the chosen line, as it is shown: a masked value stays masked."""
        row = self.query_one(Listing).cursor
        if row < len(self._rows):
            self.copy(self._rows[row].copied)

    def action_leave(self) -> None:
        """Back to the services."""
        self.dismiss()

    @on(TabLine.Chosen)
    def _clicked(self, message: TabLine.Chosen) -> None:
        self._turn(message.index)

    def _turn(self, view: int) -> None:
        self._cursors[self.view] = self.query_one(Listing).cursor
        self.view = view
        self._fill()

    @on(Prompt.Changed)
    def _typed(self, message: Prompt.Changed) -> None:
        self._pattern = message.pattern
        if message.final:
            self._close_prompt()
        self._fill()

    @on(Prompt.Cancelled)
    def _cancelled(self) -> None:
        self._pattern = self._kept
        self._close_prompt()
        self._fill()

    def _close_prompt(self) -> None:
        self.query_one(Prompt).close()
        self.query_one(Listing).focus()

    # What is shown

    @on(Listing.Moved)
    def _show_whole(self) -> None:
        """The chosen line in full, where the table has cut it."""
        row = self.query_one(Listing).cursor
        whole = self._rows[row].whole if row < len(self._rows) else Content.styled(self._empty, "$text-muted")
        self.query_one("#whole", Static).update(whole)

    @property
    def _empty(self) -> str:
        if self.view and self._world is None:
            return self._refused or "loading…"
        if not self.view and not self._answered:
            return self._trouble or "loading…"
        return "nothing matches" if self._pattern or self.origin else f"no {VIEWS[self.view]}"

    def _fill(self) -> None:
        everything = self._all_rows()
        self._rows = [row for row in everything if self._pattern is None or self._pattern.search(row.text)]
        cursor = self.query_one(Listing).cursor if self.query_one(TabLine).active == self.view else None
        self._describe(len(everything))
        fields = (VARIABLES, FILES, DIFFERENCES)[self.view]
        cells = [row.cells for row in self._rows]
        self.query_one(Listing).fill(fields, cells, self._cursors[self.view] if cursor is None else cursor)
        self._show_whole()
        self.query_one(KeyBar).labels = {"turn": VIEWS[(self.view + 1) % len(VIEWS)]}
        self.refresh_bindings()

    def _all_rows(self) -> list[Row]:
        if self.view == 0:
            tone = "tone--warn" if self.revealed else "tone--quiet"
            chosen = [each for each in self._variables if self.origin in ("", origins.group(each))]
            return [_variable_row(variable, tone) for variable in chosen]
        if self._world is None:
            return []
        if self.view == 1:
            return [_file_row(mount) for mount in self._world.mounts]
        return [_difference_row(note) for note in self._world.notes]

    def _describe(self, number: int) -> None:
        title, tabs = self.query_one(PaneTitle), self.query_one(TabLine)
        parts: list[Content | str | tuple[str, str]] = ["environment ", (self.service, "bold")]
        narrowed = self._pattern is not None or (self.view == 0 and bool(self.origin))
        if self._world is not None and self._world.workload and not narrowed:
            parts.append((f"  as {self._world.workload}", "$text-muted"))
        if not self.remote and self._answered:
            parts.append((f"  {count(len(self._variables), 'variable')}", "$text-muted"))
        if self.view == 0 and self.origin:
            parts += [("  from ", "$text-muted"), (self.origin, "$text-accent")]
        if self._pattern is not None:
            parts.append((f"  /{self._pattern.pattern}/", "$text-accent"))
        if narrowed:
            whole = len(self._variables) if self.view == 0 else number
            parts.append((f"  {len(self._rows)} of {whole}", "$text-muted"))
        title.left = Content.assemble(*parts)
        secrets = sum(variable.secret for variable in self._variables)
        title.right = Content.styled(
            f"{count(secrets, 'secret')} {'shown' if self.revealed else 'masked'}" if secrets else "",
            "$text-warning" if self.revealed else "$text-muted",
        )
        world = self._world
        known = len(self._variables) if self._answered else None
        numbers = (known, len(world.mounts) if world else None, len(world.notes) if world else None)
        tabs.tabs = tuple(Tab(name, amount) for name, amount in zip(VIEWS, numbers, strict=True))
        tabs.active = self.view


def _variable_row(variable: Variable, secret_tone: str) -> Row:
    whole = Content.assemble(
        (f"from {variable.origin}\n", "$text-muted"), (f"{variable.name}=", "bold"), printable(variable.value)
    )
    cells = [
        Cell(variable.name, "listing--strong"),
        Cell(one_line(variable.value), secret_tone if variable.secret else "listing--plain"),
        Cell(origins.short(variable), "tone--away" if origins.from_workload(variable) else "tone--quiet"),
    ]
    return Row(cells, f"{variable.name}={variable.value} {variable.origin}", whole, f"{variable.name}={variable.value}")


def _file_row(mount: Mounted) -> Row:
    access = "read-only" if mount.read_only else "writable"
    updates = "follows" if mount.follows else "fixed"
    kind = KINDS.get(mount.kind, mount.kind)
    cells = [
        Cell(mount.path, "listing--strong"),
        Cell(f"{kind} {mount.volume}", "tone--away"),
        Cell(access, "tone--quiet" if mount.read_only else "tone--warn"),
        Cell(updates, "tone--ok" if mount.follows else "tone--quiet"),
        Cell(mount.source, "tone--quiet"),
    ]
    meaning = "changes as the cluster's does" if mount.follows else "does not change when the cluster's does"
    whole = Content.assemble(
        (mount.path, "bold"),
        (f"  {mount.kind}, volume {mount.volume}: {access}, {meaning}\n", "$text-muted"),
        ("on this machine: ", "$text-muted"),
        mount.source,
    )
    return Row(
        cells, f"{mount.path} {mount.kind} {mount.volume} {access} {updates} {mount.source}", whole, mount.source
    )


def _difference_row(note: str) -> Row:
    subject, colon, text = note.partition(": ")
    if not colon:
        subject, text = "", note
    cells = [Cell(subject, "listing--strong"), Cell(text)]
    return Row(cells, note, Content.assemble((f"{subject}\n" if subject else "", "bold"), text), note)

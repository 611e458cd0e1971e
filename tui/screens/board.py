"""The main screen: services, the last loop of the chosen one, logs."""

from __future__ import annotations

from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical

from devloop.protocol import ServiceStatus, State
from tui import attachments, connection, refusals
from tui.engine_trouble import trouble
from tui.screens.base import SessionScreen, StartEngine
from tui.screens.connection import ConnectionScreen
from tui.screens.environment import EnvironmentScreen
from tui.screens.keys import HOLDING_ORDER, LOG_KEYS, LOG_ORDER, ON_SERVICE, REMOTE_KEYS, SERVICE_KEYS, TABLE_ORDER
from tui.screens.loops import LoopsScreen
from tui.screens.notices import NoticesScreen
from tui.screens.requests import RequestsScreen
from tui.session import Session
from tui.states import LIVE, next_mode, running
from tui.widgets.attachment_lines import AttachmentLines
from tui.widgets.banner import Banner
from tui.widgets.header import Header
from tui.widgets.keybar import KeyBar
from tui.widgets.log_pane import LogPane
from tui.widgets.loop_pane import LoopPane
from tui.widgets.recent_loops import RecentLoops
from tui.widgets.service_table import ServiceTable
from tui.widgets.terminal_view import TerminalView

WIDE = 150
"""Columns from which on the logs stand beside the table."""
SHORT, TINY = 20, 14
"""Rows below which the loop shrinks to its bar, and disappears."""
TALL = 30
"""Rows from which on more is said of what a service holds."""
TYPED_INTO = (State.STARTING, State.READY, State.STOPPING, State.BACKOFF)
"""States in which there is a process to type into, or will be in a moment."""
SCREENS = {"environment": EnvironmentScreen, "loops": LoopsScreen, "requests": RequestsScreen}


class BoardScreen(SessionScreen):
    """Shows the session's board, and sends what the keys ask for."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *SERVICE_KEYS,
        *LOG_KEYS,
        *REMOTE_KEYS,
        Binding("exclamation_mark", "notices", "notices", key_display="!", tooltip="what the engine has said"),
    ]
    AUTO_FOCUS = "ServiceTable"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.table = ServiceTable(session.clock)
        self.log_pane = LogPane(session, id="right")
        self._offered: tuple[object, ...] = ()
        self._lost = ""
        self._fetched: set[str] = set()
        self._typing = ""
        self._fitted: tuple[object, ...] = ()

    def compose(self) -> ComposeResult:
        """All of it."""
        yield Header()
        yield Banner()
        yield Banner(id="remote-banner")
        with Container(id="body"):
            with Vertical(id="left"):
                yield self.table
                yield LoopPane()
                yield RecentLoops()
            yield self.log_pane
        yield KeyBar()

    def on_mount(self) -> None:
        """Time passes even where nothing happens."""
        self.set_interval(1.0, self.board_changed)
        self.set_interval(0.1, self._tick)

    def _tick(self) -> None:
        # Only what counts up: all of the screen ten times a second would be a tenth of a core.
        if self.session.board.opened and self.is_current:
            self.table.refresh_opened()
            if self.chosen is not None and self.chosen.opened_at is not None:
                self._paint_loop()
        if self.session.board.cut_off and self.is_current:
            self._paint_remote()

    def paint(self) -> None:
        """Draw the board as it is."""
        board = self.session.board
        self.set_class(board.remote is not None, "-remote")
        self._paint_remote()
        traffic = attachments.possible(board.remote)
        self.table.update(list(board.services.values()), cut_off=board.cut_off, traffic=traffic)
        self._share_height()
        self._paint_loop()
        text, hint = trouble(self.session)
        if self._lost:
            self.query_one(Banner).say(self._lost)
        elif text:
            self.query_one(Banner).say(text, hint)
        else:
            self.query_one(Banner).say(board.config_error, "The last good one stays in force.")
        self.log_pane.view.names = tuple(board.services)
        self._offer_keys()
        self._follow_terminal()

    def _paint_remote(self) -> None:
        # What a countdown changes: the header, and the line that says why there is no connection.
        board, now = self.session.board, self.session.clock()
        self.query_one(Header).update(board, now, connected=self.session.connected, silence=self._silence)
        text, hint = connection.trouble(board.remote, now) if self.session.connected else ("", "")
        banner = self.query_one("#remote-banner", Banner)
        if board.remote is not None:
            banner.say(text, hint, connection.look(board.remote))
        else:
            banner.say("")

    @property
    def _silence(self) -> float:
        return self.session.silence if self.session.silent else 0.0

    def lost(self, text: str) -> None:
        """The engine has hung up: what is on screen is the last that it said. Empty: there is one again."""
        self._lost = text
        self.board_changed()

    def on_resize(self, event: events.Resize) -> None:
        """Choose the layout."""
        wide = event.size.width >= WIDE
        self.set_class(wide, "-wide")
        self.set_class(event.size.height < SHORT and not wide, "-short")
        self.set_class(event.size.height < TINY and not wide, "-tiny")
        lines = 1 if event.size.height < SHORT else 4 if event.size.height < TALL else 8
        self.query_one(AttachmentLines).most = lines
        self.call_after_refresh(self._paint_now)

    def _share_height(self) -> None:
        # Lines, not a maximum in the style sheet: the height of a column that adapts to its content does not
        # take account of its children's maxima.
        share = 0.5 if self.has_class("-wide") else 0.4
        height = min(len(self.session.board.services) + 1, max(3, int(self.size.height * share)))
        self.table.styles.height = height

    def _paint_loop(self) -> None:
        status = self.chosen
        known = self.session.board.loops_of(status.name) if status else []
        now = self.session.clock()
        if status and self.has_class("-wide") and status.name not in self._fetched:
            self._fetched.add(status.name)
            self.attempt(self._fetch(status.name))
        away = status is not None and status.mode != "local" and self.log_pane.service == status.name
        self.log_pane.explain(f"it is {status.mode}: nothing of it is logged here" if status and away else "")
        self.query_one(LoopPane).show(status, known[-1] if known else None, now, self.session.board.remote)
        self.query_one(RecentLoops).show(known[:-1] if status and status.mode == "local" else known, now)

    async def _fetch(self, service: str) -> None:
        await self.session.history(service)
        self.board_changed()

    # The chosen service

    @property
    def chosen(self) -> ServiceStatus | None:
        """The service under the cursor."""
        return self.session.board.services.get(self.table.selected)

    @on(ServiceTable.Selected)
    def _selected(self) -> None:
        self._paint_loop()
        self._offer_keys()
        if self._typing and self._typing != self.table.selected:
            self.take_back()
        self._follow_terminal()
        if self.log_pane.service is not None:
            self.log_pane.choose(self.table.selected)

    def select(self, service: str) -> None:
        """Move the cursor to a service."""
        if service in self.session.board.services:
            self.table.selected = service

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether a key has a meaning for the chosen service in its state, and for what has the focus."""
        if self._typing:
            return False
        if action in ON_SERVICE:
            return self.applies(action, self.chosen)
        if action == "back":
            return self.on_logs
        if action == "start_engine":
            return self.session.lost and self.session.start is not None
        if action == "unzoom":
            return self.has_class("-zoomed")
        if action in ("connection", "reconnect"):
            return self.session.connected and self.session.board.remote is not None
        if action == "restart_all":
            return self.session.connected and any(map(running, self.session.board.services.values()))
        return action != "focus_logs" or not self.on_logs

    def applies(self, action: str, status: ServiceStatus | None) -> bool:
        """Whether the engine could do this with a service now."""
        if status is None or not self.session.connected:
            return False
        here = status.mode == "local"
        match action:
            case "toggle" | "toggle_mode":
                return bool(next_mode(status))
            case "environment" | "loops":
                return True
            case "terminal":
                # A task without a terminal has an input that is at its end.
                return here and (status.tty or not status.task) and status.state in TYPED_INTO
            case "attach":
                return attachments.attachable(status, self.session.board.remote) and not attachments.holds(status)
            case "leave":
                return attachments.holds(status)
            case "requests":
                # Of what has left there may be some from before.
                known = bool(status.attachments or self.session.board.requests.get(status.name))
                return known or attachments.attachable(status, self.session.board.remote)
            case "build":
                return here and status.has_build
            case "start":
                return here and status.state not in LIVE and status.state is not State.STOPPING
            case "stop":
                return here and status.state in LIVE
        return here

    def why(self, action: str) -> str:
        """Why a key can do nothing now."""
        if self._typing:
            return ""  # the service has the keyboard
        if action in (*ON_SERVICE, "connection", "reconnect", "restart_all"):
            if self.session.lost:
                return f"the engine is gone{'; r starts it' if self.session.start is not None else ''}"
            if not self.session.connected:
                return "not connected to the engine yet"
        if action in ON_SERVICE:
            return refusals.why(action, self.chosen, self.session.board.remote)
        if action in ("connection", "reconnect"):
            return "this project has no remote"
        if action == "restart_all":
            return "nothing runs here"
        return ""

    @property
    def on_logs(self) -> bool:
        """Whether the logs have the focus."""
        return self.focused is self.log_pane.view

    def on_descendant_focus(self) -> None:
        """Other keys come first while the logs have the focus; whoever goes elsewhere takes the keyboard along."""
        if self._typing and self.focused not in (self.log_pane.terminal, None):
            self.take_back(focus=False)
        self._offer_keys()

    def _offer_keys(self) -> None:
        bar, board = self.query_one(KeyBar), self.session.board
        holds = self.chosen is not None and attachments.holds(self.chosen)
        order = LOG_ORDER if self.on_logs else HOLDING_ORDER if holds else TABLE_ORDER
        if self.chosen is not None and self.chosen.prompt:
            order = ("terminal", *(name for name in order if name != "terminal"))  # it waits for just that
        # Without a connection, what brings it back comes first.
        bar.order = ("reconnect", *order) if board.cut_off else order
        bar.labels = {"toggle_mode": next_mode(self.chosen) if self.chosen else ""}
        offered = (
            *(self.applies(action, self.chosen) for action in sorted(ON_SERVICE)),
            self.check_action("reconnect", ()),
            self.check_action("start_engine", ()),
        )
        if offered != self._offered:
            self._offered = offered
            self.refresh_bindings()

    def ask(self, verb: str, service: str) -> None:
        """Ask the engine to toggle, attach, restart, stop, start or build a service, or that it leaves."""
        if verb == "toggle":
            self.request("toggle", service=service, mode=None)
        elif verb == "attach":
            self.attempt(self.session.attach(service))
        elif verb == "leave":
            self.request("leave", service=service)
        else:
            self.request(verb, services=[service])

    def action_toggle_mode(self) -> None:
        """Move the service to its next mode."""
        self.ask("toggle", self.table.selected)

    def action_restart(self) -> None:
        """Restart the service."""
        self.ask("restart", self.table.selected)

    def action_start_engine(self) -> None:
        """Start the engine, after it has ended."""
        self.post_message(StartEngine())

    def action_stop(self) -> None:
        """Stop the service."""
        self.ask("stop", self.table.selected)

    def action_start(self) -> None:
        """Start the service."""
        self.ask("start", self.table.selected)

    def action_build(self) -> None:
        """Build the service."""
        self.ask("build", self.table.selected)

    def attach(self, service: str, kind: str | None, routes: str | None, take_over: bool) -> None:
        """Attach a service in this way; None is what devloop.toml says."""
        self.attempt(self.session.attach(service, kind, routes, take_over=take_over))

    def action_attach(self) -> None:
        """Take the traffic that devloop.toml says."""
        self.ask("attach", self.table.selected)

    def action_leave(self) -> None:
        """Give the service's traffic back."""
        self.ask("leave", self.table.selected)

    def action_restart_all(self) -> None:
        """Restart all that run here."""
        services = self.session.board.services.values()
        names = [s.name for s in services if s.mode == "local" and s.state in LIVE]
        if names:
            self.request("restart", services=names)

    def show(self, what: str, service: str) -> None:
        """Open a service's environment, loops or requests."""
        self.app.push_screen(SCREENS[what](self.session, service))

    def action_environment(self) -> None:
        """The service's environment."""
        self.show("environment", self.table.selected)

    def action_loops(self) -> None:
        """The service's loops."""
        self.show("loops", self.table.selected)

    def action_requests(self) -> None:
        """The requests that went through."""
        self.show("requests", self.table.selected)

    def action_connection(self) -> None:
        """How the remote is reached."""
        self.app.push_screen(ConnectionScreen(self.session))

    def action_reconnect(self) -> None:
        """Look at once whether the connection lives, and try again if not."""
        self.request("reconnect")

    def action_notices(self) -> None:
        """What the engine has said."""
        self.app.push_screen(NoticesScreen(self.session))

    # A service's terminal

    @property
    def typing(self) -> bool:
        """Whether a service has the keyboard."""
        return bool(self._typing)

    def action_terminal(self) -> None:
        """Give the keyboard to the service."""
        status = self.chosen
        if status is None or self._typing:
            return
        self._typing = status.name
        self.add_class("-typing")
        self.query_one(KeyBar).notice = f"keys go to {status.name} · ctrl+p ctrl+q takes them back"
        self.log_pane.type_into(status.name, tty=status.tty)
        self.refresh_bindings()

    @on(TerminalView.Left)
    def _given_back(self) -> None:
        self.take_back()

    def take_back(self, *, focus: bool = True) -> None:
        """The keyboard is this screen's again."""
        if not self._typing:
            return
        self._typing = ""
        self.remove_class("-typing")
        self.query_one(KeyBar).notice = ""
        self.log_pane.type_no_more()
        if focus:
            self.table.focus()
        self.refresh_bindings()
        self._offer_keys()

    @on(TerminalView.Refused)
    def _refused(self, message: TerminalView.Refused) -> None:
        self.complain(message.error)

    def _follow_terminal(self) -> None:
        """A service that has the keyboard may be gone; the one on view has a terminal as large as its pane."""
        if self._typing:
            status = self.session.board.services.get(self._typing)
            if status is None or not self.session.connected:
                self.take_back()
            else:
                self.log_pane.terminal.changed(tty=status.tty)
            return
        status = self.chosen
        size = self.log_pane.view.content_size
        if status is None or not status.tty or not self.session.connected or not size.width or not size.height:
            return
        fitted = (status.name, size.width, size.height)
        if fitted != self._fitted:
            self._fitted = fitted
            self.request("terminal_resize", service=status.name, columns=size.width, rows=size.height)

    # Logs

    @on(ServiceTable.Opened)
    def action_focus_logs(self) -> None:
        """To the logs."""
        self.log_pane.view.focus()

    def action_switch(self) -> None:
        """Between services and logs."""
        if self.on_logs:
            self._leave_logs()
        else:
            self.action_focus_logs()

    def action_zoom(self) -> None:
        """Logs on the whole screen, and back."""
        self.toggle_class("-zoomed")
        self.log_pane.view.focus()

    def action_unzoom(self) -> None:
        """Back from the whole screen."""
        self.remove_class("-zoomed")
        self.refresh_bindings()

    def action_copy(self) -> None:
        """What is selected, else the match or the last line on screen."""
        text = self.get_selected_text() or self.log_pane.view.line_to_copy
        if text:
            self.copy(text)

    def action_back(self) -> None:
        """A step back: selection, search, filter, zoom, services."""
        if self.get_selected_text():
            self.clear_selection()
            return
        if self.log_pane.undo():
            return
        if self.has_class("-zoomed"):
            self.remove_class("-zoomed")
        else:
            self._leave_logs()

    def _leave_logs(self) -> None:
        self.remove_class("-zoomed")
        self.table.focus()

    def action_all_logs(self) -> None:
        """Logs of all services, or of the chosen one."""
        self.log_pane.choose(None if self.log_pane.service is not None else self.table.selected)

    def show_logs(self, service: str) -> None:
        """Choose a service and go to its log."""
        self.select(service)
        self.log_pane.choose(service)
        self.action_focus_logs()

    def action_follow(self) -> None:
        """Scroll with new lines, or stay."""
        self.log_pane.view.follow = not self.log_pane.view.follow

    def action_wrap(self) -> None:
        """Long lines on several rows, or cut."""
        self.log_pane.view.wrap = not self.log_pane.view.wrap

    def action_times(self) -> None:
        """Show the time of each line."""
        self.log_pane.view.timed = not self.log_pane.view.timed

    def action_level(self) -> None:
        """Only warnings and errors, only errors, or all lines."""
        self.log_pane.next_level()

    def action_readable(self) -> None:
        """JSON lines taken apart, or as they are."""
        self.log_pane.view.readable = not self.log_pane.view.readable

    def action_filter(self) -> None:
        """Show only lines that match."""
        self.log_pane.ask("filter")

    def action_search(self) -> None:
        """Search for something else."""
        self.log_pane.ask("search")

    def action_next(self) -> None:
        """To the next match."""
        self.log_pane.step(1)

    def action_previous(self) -> None:
        """To the previous match."""
        self.log_pane.step(-1)

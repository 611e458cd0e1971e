"""The app: keys that work everywhere, what the engine says, and how it is left."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, TextIO

import platformdirs
from textual import events, on
from textual.app import App
from textual.binding import Binding, BindingType
from textual.driver import Driver
from textual.filter import LineFilter
from textual.notifications import SeverityLevel
from textual.theme import Theme

from devloop.control.client import ControlClient
from devloop.errors import DevloopError, EngineError, UsageError
from devloop.protocol import Notice, Snapshot, StopProgress
from tui.board import Event
from tui.commands import DevloopCommands
from tui.harmless import HARMLESS
from tui.preferences import Preferences
from tui.screens.base import SessionScreen
from tui.screens.board import BoardScreen
from tui.screens.help import HelpScreen
from tui.screens.shutdown import ShutdownScreen
from tui.screens.too_small import SMALLEST, TooSmallScreen
from tui.session import Session
from tui.terminal import TerminalDriver
from tui.theme import DARK, THEMES

TOASTS = 3
"""At most so many toasts in `TOAST_SPAN`: the rest are on the notices screen."""
TOAST_SPAN = 3_000_000_000

APP_KEYS: list[BindingType] = [
    Binding("colon,ctrl+p", "command_palette", "commands", key_display=":", tooltip="commands by name"),
    Binding("T", "change_theme", "theme", show=False, tooltip="choose how it looks"),
    Binding("d", "detach", "detach", tooltip="leave; the engine runs on"),
    Binding("question_mark", "help", "help", key_display="?", tooltip="this"),
    Binding("q", "quit", "quit", tooltip="stop all services and the engine"),
    Binding("ctrl+q", "quit", "quit", show=False, priority=True, tooltip="stop all services and the engine"),
    Binding("ctrl+c", "interrupt", "quit", show=False, priority=True, tooltip="copy what is selected; else quit"),
    Binding("ctrl+z", "suspend_process", "suspend", show=False, tooltip="to the shell; fg comes back"),
]


class Outcome(StrEnum):
    """How the user left."""

    DETACHED = "detached"
    """The engine goes on: running, or stopping if a shutdown had begun."""
    STOPPED = "stopped"
    """A shutdown was completed; what survived it has been shown."""
    LOST = "lost"
    """The engine hung up by itself."""
    HUNG_UP = "hung-up"
    """The terminal was closed; the engine goes on and has been told nothing."""


class DevloopApp(App[Outcome]):
    """Shows one engine. It owns no state of any service: what is on screen, the engine has said."""

    CSS_PATH = "devloop.tcss"
    TITLE = "devloop"
    BINDINGS: ClassVar[list[BindingType]] = APP_KEYS
    COMMANDS: ClassVar = {DevloopCommands}

    def get_line_filters(self) -> Sequence[LineFilter]:
        """See App; nothing that is shown is obeyed by the terminal."""
        return [HARMLESS, *super().get_line_filters()]

    def __init__(
        self,
        socket: Path,
        *,
        clock: Callable[[], int] = time.time_ns,
        preferences: Path | None = None,
        driver: type[Driver] | None = None,
    ) -> None:
        super().__init__(driver_class=driver)
        self.session = Session(socket, clock=clock)
        self.board_screen = BoardScreen(self.session)
        self._toasts: deque[int] = deque(maxlen=TOASTS)
        self._lost = False
        for ours in THEMES:
            self.register_theme(ours)
        self.preferences = Preferences(preferences)
        chosen = self.preferences.theme
        self.theme = chosen if chosen in self.available_themes else DARK.name

    async def on_mount(self) -> None:
        """Show the board and listen."""
        self.theme_changed_signal.subscribe(self, self._theme_changed)
        await self.push_screen(self.board_screen)
        self._check_size(self.size.width, self.size.height)
        self.run_worker(self._listen(), group="engine")

    def on_resize(self, event: events.Resize) -> None:
        """Cover the screen while there is no room for it."""
        if self.board_screen.is_attached:
            self._check_size(event.size.width, event.size.height)

    def _check_size(self, width: int, height: int) -> None:
        small = width < SMALLEST[0] or height < SMALLEST[1]
        if small and not isinstance(self.screen, TooSmallScreen):
            self.push_screen(TooSmallScreen())
        elif not small and isinstance(self.screen, TooSmallScreen):
            self.pop_screen()

    def _theme_changed(self, theme: Theme) -> None:
        self.preferences.theme = theme.name

    # The engine

    async def _listen(self) -> None:
        try:
            async for event in self.session.events():
                self._heard(event)
        except DevloopError as error:
            self._gone(f"{error.what}. {error.hint or ''}")
        else:
            pid = self.session.board.engine_pid
            self._gone(f"The engine (pid {pid}) has hung up. `devloop up` starts it again.")

    def _heard(self, event: Event) -> None:
        match event:
            case Notice():
                self._toast(event)
            case StopProgress() | Snapshot():
                if self.session.board.stopping:
                    self._follow_shutdown()
            case _:
                pass
        for screen in self.screen_stack:
            if isinstance(screen, SessionScreen):
                screen.board_changed()

    def _toast(self, notice: Notice) -> None:
        if notice.level not in ("warning", "error"):
            return
        now = self.session.clock()
        if len(self._toasts) == TOASTS and now - self._toasts[0] < TOAST_SPAN:
            return
        self._toasts.append(now)
        severity: SeverityLevel = "error" if notice.level == "error" else "warning"
        text = f"{notice.text}\n{notice.hint}" if notice.hint else notice.text
        self.notify(text, title=notice.service or "", severity=severity, markup=False)

    def _gone(self, text: str) -> None:
        self._lost = True
        progress = self.session.board.progress
        if progress is not None and progress.done:
            return  # a hang-up after the last word is how a shutdown ends
        shutdown = self._shutdown_view
        if shutdown is not None:
            shutdown.end(hung_up=True)
        self.board_screen.lost(text)

    # Leaving

    @property
    def _shutdown_view(self) -> ShutdownScreen | None:
        return next((s for s in self.screen_stack if isinstance(s, ShutdownScreen)), None)

    def _follow_shutdown(self) -> ShutdownScreen:
        screen = self._shutdown_view
        if screen is None:
            screen = ShutdownScreen(self.session)
            self.push_screen(screen)
        progress = self.session.board.progress
        if progress is not None and progress.done:
            if progress.survivors:
                screen.end(hung_up=False)
            else:
                self.exit(Outcome.STOPPED)
        return screen

    @on(ShutdownScreen.Left)
    def _left(self) -> None:
        progress = self.session.board.progress
        if progress is not None and progress.done:
            self.exit(Outcome.STOPPED)
        else:
            self.exit(Outcome.LOST if self._lost else Outcome.DETACHED)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Nothing here has a meaning while a service has the keyboard."""
        keyboard_away = self.board_screen.typing and self.screen is self.board_screen
        return not keyboard_away and super().check_action(action, parameters)

    async def action_quit(self) -> None:
        """Shut the engine down, and show how that goes."""
        if not self.session.connected:
            self._left()
        elif self._shutdown_view is None:
            self._follow_shutdown().attempt(self.session.call("shutdown"))

    async def action_interrupt(self) -> None:
        """Copy what is selected; else quit; else, if that is under way, leave it to the engine."""
        selected = self.screen.get_selected_text()
        if selected:
            self.copy_to_clipboard(selected)
            self.screen.clear_selection()
        elif self._shutdown_view is not None:
            self._left()
        else:
            await self.action_quit()

    def action_detach(self) -> None:
        """Leave; the engine runs on."""
        self._left()

    def hung_up(self) -> None:
        """The terminal is gone."""
        self.exit(Outcome.HUNG_UP)

    def action_help(self) -> None:
        """All keys."""
        self.push_screen(HelpScreen(APP_KEYS))


def run(socket: Path) -> Outcome:
    """Show the engine that listens on this socket until the user leaves.

    Raises UsageError if there is no terminal, EngineError if none listens or if the screen itself fails; the
    engine runs on then. SIGHUP is taken for a closed terminal, SIGTERM for a wish to detach, unless the
    caller has handlers of its own for them.
    """
    if not _is_terminal(sys.__stdin__) or not any(map(_is_terminal, (sys.__stdout__, sys.__stderr__))):
        raise UsageError("the screen needs a terminal", hint="`devloop up --headless` runs without one")
    return asyncio.run(_run(socket))


def _is_terminal(file: TextIO | None) -> bool:
    return file is not None and not file.closed and file.isatty()


async def _run(socket: Path) -> Outcome:
    await (await ControlClient.connect(socket)).close()
    preferences = platformdirs.user_config_path("devloop") / "tui.json"
    app = DevloopApp(socket, preferences=preferences, driver=TerminalDriver)
    with _left_by_signals(app):
        outcome = await app.run_async()
    if outcome is None:
        if app.return_code:
            raise EngineError("the screen failed; the engine runs on", hint="open it again with `devloop up`")
        return Outcome.DETACHED
    return outcome


@contextlib.contextmanager
def _left_by_signals(app: DevloopApp) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    meanings = {signal.SIGHUP: Outcome.HUNG_UP, signal.SIGTERM: Outcome.DETACHED}
    ours = [number for number in meanings if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        loop.add_signal_handler(number, app.exit, meanings[number])
    try:
        yield
    finally:
        for number in ours:
            loop.remove_signal_handler(number)

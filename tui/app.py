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
from tui.formats import count, shorten
from tui.harmless import HARMLESS
from tui.preferences import Preferences
from tui.screens.base import Copy, SessionScreen, StartEngine
from tui.screens.board import BoardScreen
from tui.screens.help import HelpScreen
from tui.screens.quit import Leaving, QuitScreen
from tui.screens.shutdown import ShutdownScreen
from tui.screens.too_small import SMALLEST, TooSmallScreen
from tui.session import HEARTBEAT, Session
from tui.terminal import TerminalDriver
from tui.theme import DARK, THEMES

TOASTS = 3
"""At most so many toasts in `TOAST_SPAN`: the rest are on the notices screen."""
TOAST_SPAN = 3_000_000_000

BEAT_INTERVAL = HEARTBEAT
"""Seconds between two heartbeats, and between two looks for an engine after one has ended."""
REFUSAL = 4.0
"""Seconds for which it is said why a key does nothing; pressed again meanwhile, it is not said twice."""

APP_KEYS: list[BindingType] = [
    Binding("colon,ctrl+p", "command_palette", "commands", key_display=":", tooltip="commands by name"),
    Binding("T", "change_theme", "theme", show=False, tooltip="choose how it looks"),
    Binding("d", "detach", "detach", tooltip="leave; the engine and its services run on"),
    Binding("question_mark", "help", "help", key_display="?", tooltip="this"),
    Binding("q", "quit", "quit", tooltip="leave: stop the services, or not, is asked; in a view: back"),
    Binding("ctrl+q", "quit", "quit", show=False, priority=True, tooltip="the same question, from anywhere"),
    Binding("ctrl+c", "interrupt", "quit", show=False, priority=True, tooltip="copy what is selected; else as ctrl+q"),
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
        start: Callable[[], None] | None = None,
    ) -> None:
        """`start` starts an engine, blocking, if one is wanted after the present one has ended."""
        super().__init__(driver_class=driver)
        self.session = Session(socket, clock=clock, start=start)
        self.board_screen = BoardScreen(self.session)
        self._toasts: deque[int] = deque(maxlen=TOASTS)
        self._lost = False
        self._look_again = asyncio.Event()
        """Somebody may listen now."""
        self._refused = ("", 0.0)
        """Why the last key did nothing, and when (monotonic seconds) that was said."""
        self._copied = ""
        """What Ctrl+C has copied of the selection that stands."""
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
        self.set_interval(BEAT_INTERVAL, self._beat)

    def on_resize(self, event: events.Resize) -> None:
        """Cover the screen while there is no room for it."""
        if self.board_screen.is_attached:
            self._check_size(event.size.width, event.size.height)

    def _check_size(self, width: int, height: int) -> None:
        small = width < SMALLEST[0] or height < SMALLEST[1]
        # A question has room everywhere, and is not to be answered unseen.
        if small and not isinstance(self.screen, (TooSmallScreen, QuitScreen)):
            self.push_screen(TooSmallScreen())
        elif not small and isinstance(self.screen, TooSmallScreen):
            self.pop_screen()

    def _theme_changed(self, theme: Theme) -> None:
        self.preferences.theme = theme.name

    # The engine

    async def _listen(self) -> None:
        while True:
            try:
                async for event in self.session.events():
                    if self._lost:
                        self._back()
                    self._heard(event)
            except DevloopError as error:
                text = "" if self._lost else f"{error.what}. {error.hint or ''}"
            else:
                pid = self.session.board.engine_pid
                text = f"The engine (pid {pid}) ended unexpectedly, and its services with it."
            if text:
                self._gone(text)
            if self._shutdown_view is not None:
                return
            self._look_again.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_INTERVAL):
                    await self._look_again.wait()

    def _beat(self) -> None:
        before = self.session.silent, self.session.hidden
        self.session.beat()
        if self.session.silent or before != (self.session.silent, self.session.hidden):
            self._changed()
        if self.session.silent != before[0] and self.screen is not self.board_screen:
            if self.session.silent:
                self.notify("The engine does not answer.", severity="error", markup=False)
            else:
                self.notify("The engine answers again.", timeout=3, markup=False)

    def _changed(self) -> None:
        for screen in self.screen_stack:
            if isinstance(screen, SessionScreen):
                screen.board_changed()

    def _heard(self, event: Event) -> None:
        match event:
            case Notice():
                self._toast(event)
            case StopProgress() | Snapshot():
                if self.session.board.stopping:
                    self._follow_shutdown()
            case _:
                pass
        self._changed()

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
        self._withdraw_question()
        progress = self.session.board.progress
        if progress is not None and progress.done:
            return  # a hang-up after the last word is how a shutdown ends
        shutdown = self._shutdown_view
        if shutdown is not None:
            shutdown.end(hung_up=True)
        how = "r starts it again." if self.session.start is not None else "`devloop up` starts it again."
        self.board_screen.lost(f"{text} {how}" if self.session.lost else text)

    def _back(self) -> None:
        """There is an engine again: the same socket, another process."""
        self._lost = False
        self.board_screen.lost("")
        self.notify("connected to the engine", timeout=3, markup=False)

    @on(StartEngine)
    def _asked_to_start(self) -> None:
        self.board_screen.attempt(self._start_engine())

    async def _start_engine(self) -> None:
        """Start an engine where the last one has ended. Raises DevloopError, with what prevents that."""
        start = self.session.start
        if start is not None and self._lost:
            self.board_screen.lost("Starting the engine…")
            try:
                await asyncio.to_thread(start)
            except DevloopError as error:
                self.board_screen.lost(f"{error.what}. r tries again.")
                raise
            self._look_again.set()

    # Leaving

    @property
    def _shutdown_view(self) -> ShutdownScreen | None:
        return next((s for s in self.screen_stack if isinstance(s, ShutdownScreen)), None)

    def _follow_shutdown(self) -> ShutdownScreen:
        screen = self._shutdown_view
        if screen is None:
            self._withdraw_question()
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
            self.exit(Outcome.LOST if self.session.lost else Outcome.DETACHED)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Nothing here has a meaning while a service has the keyboard."""
        keyboard_away = self.board_screen.typing and self.screen is self.board_screen
        return not keyboard_away and super().check_action(action, parameters)

    async def action_quit(self) -> None:
        """Ask how to leave; without an engine there is nothing to ask."""
        if not self.session.connected:
            self._left()
        elif self._shutdown_view is None and not isinstance(self.screen, QuitScreen):
            await self.push_screen(QuitScreen(self.session))

    @on(QuitScreen.Chosen)
    def _chosen(self, message: QuitScreen.Chosen) -> None:
        self._withdraw_question()
        match message.choice:
            case Leaving.STOP:
                self._stop()
            case Leaving.DETACH:
                self._left()
            case Leaving.STAY:
                self._check_size(self.size.width, self.size.height)

    def _withdraw_question(self) -> None:
        if isinstance(self.screen, QuitScreen):
            self.pop_screen()

    def _stop(self) -> None:
        """Shut the engine down, and show how that goes."""
        if not self.session.connected:
            self._left()
        elif self._shutdown_view is None:
            self._follow_shutdown().attempt(self.session.call("shutdown"))

    async def action_interrupt(self) -> None:
        """Copy what is selected, once; else ask how to leave; in the question, stop all; after it, leave it so."""
        selected = self.screen.get_selected_text()
        if selected and selected != self._copied:
            self._copied = selected
            self.copy(selected)
        elif self._shutdown_view is not None:
            self._left()
        elif isinstance(self.screen, QuitScreen):
            self._withdraw_question()
            self._stop()
        else:
            await self.action_quit()

    @on(events.TextSelected)
    def _selected_anew(self) -> None:
        self._copied = ""

    @on(Copy)
    def _asked_to_copy(self, message: Copy) -> None:
        self.copy(message.text)

    def copy(self, text: str) -> None:
        """Copy a text, by the terminal (OSC 52), and say what it was."""
        self.copy_to_clipboard(text)
        lines = text.count("\n") + 1
        said = f"copied {count(lines, 'line')}" if lines > 1 else f"copied: {shorten(text.strip(), 50)}"
        self.notify(said, timeout=3, markup=False)

    def on_key(self, event: events.Key) -> None:
        """A key that can do nothing here and now says why."""
        reason = self.screen.refusal(event.key) if isinstance(self.screen, SessionScreen) else ""
        now = time.monotonic()
        if reason and (reason != self._refused[0] or now - self._refused[1] > REFUSAL):
            self._refused = (reason, now)
            self.notify(reason, timeout=REFUSAL, markup=False)

    def action_detach(self) -> None:
        """Leave; the engine runs on."""
        self._left()

    def hung_up(self) -> None:
        """The terminal is gone."""
        self.exit(Outcome.HUNG_UP)

    def action_help(self) -> None:
        """All keys."""
        self.push_screen(HelpScreen(APP_KEYS))


def run(socket: Path, start: Callable[[], None] | None = None) -> Outcome:
    """Show the engine that listens on this socket until the user leaves.

    `start` is called, in a thread, if the user wants an engine after this one has ended.

    Raises UsageError if there is no terminal, EngineError if none listens or if the screen itself fails; the
    engine runs on then. SIGHUP is taken for a closed terminal, SIGTERM for a wish to detach, unless the
    caller has handlers of its own for them.
    """
    if not _is_terminal(sys.__stdin__) or not any(map(_is_terminal, (sys.__stdout__, sys.__stderr__))):
        raise UsageError("the screen needs a terminal", hint="`devloop up --headless` runs without one")
    return asyncio.run(_run(socket, start))


def _is_terminal(file: TextIO | None) -> bool:
    return file is not None and not file.closed and file.isatty()


async def _run(socket: Path, start: Callable[[], None] | None) -> Outcome:
    await (await ControlClient.connect(socket)).close()
    preferences = platformdirs.user_config_path("devloop") / "tui.json"
    app = DevloopApp(socket, preferences=preferences, driver=TerminalDriver, start=start)
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

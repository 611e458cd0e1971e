"""How it looks. `pytest tests/tui/test_snapshots.py --snapshot-update` accepts a new look, once seen."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from devloop.testing import shop
from tests.tui.conftest import ThreadedEngine, ready, until
from tui.app import DevloopApp
from tui.screens.environment import EnvironmentScreen
from tui.screens.help import HelpScreen
from tui.screens.loops import LoopsScreen
from tui.screens.requests import RequestsScreen
from tui.screens.shutdown import ShutdownScreen
from tui.screens.too_small import TooSmallScreen

pytestmark = pytest.mark.slow

Step = Callable[[Pilot[Any], DevloopApp], Awaitable[None]]
Look = Callable[..., None]

CONFIG_ERROR = "devloop.toml:12:3: unknown key 'comand' in [services.api]; did you mean 'command'?"


def lost(threaded: ThreadedEngine) -> None:
    """The connection to the remote is gone, for the third time."""
    threaded.do(
        threaded.fake.connection,
        "reconnecting",
        since_at=shop.fixed_clock() - 8 * shop.SECOND,
        reason="the API server 10.0.0.1:6443 can't be reached: Connection refused",
        attempt=3,
        next_at=shop.fixed_clock() + 2 * shop.SECOND,
    )


def name(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


@pytest.fixture
def look(snap_compare: Callable[..., bool], threaded: ThreadedEngine) -> Look:
    def compare(size: tuple[int, int], step: Step | None = None, *, on: str = "api", theme: str = "") -> None:
        app = DevloopApp(threaded.socket, clock=shop.fixed_clock)
        if theme:
            app.theme = theme

        async def before(pilot: Pilot[Any]) -> None:
            await ready(app, pilot, on)
            if step is not None:
                await step(pilot, app)
            await pilot.pause()

        assert snap_compare(app, terminal_size=size, run_before=before)

    return compare


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 50), (50, 15), (40, 10)], ids=name)
def test_board(look: Look, size: tuple[int, int]) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        if size[0] >= 150:
            await until(pilot, lambda: len(app.session.board.loops_of("api")) > 1)
            await until(pilot, lambda: "SyntaxError" in app.export_screenshot())

    look(size, step)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=name)
def test_remote_service(look: Look, size: tuple[int, int]) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        await until(pilot, lambda: all(word in app.export_screenshot() for word in ("answers", "logged")))

    look(size, step, on="db")


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=name)
def test_reconnecting(look: Look, threaded: ThreadedEngine, size: tuple[int, int]) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        lost(threaded)
        await until(pilot, lambda: all(word in app.export_screenshot() for word in ("refused", "reached&#160;now")))

    look(size, step, on="db")


def test_reconnecting_no_color(look: Look, threaded: ThreadedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        lost(threaded)
        await until(pilot, lambda: all(word in app.export_screenshot() for word in ("refused", "reached&#160;now")))

    look((80, 24), step, on="db")


def test_failed_connection(look: Look, threaded: ThreadedEngine) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        threaded.do(threaded.fake.connection, "failed", reason="the namespace shop does not exist")
        await until(pilot, lambda: all(word in app.export_screenshot() for word in ("exist", "&#160;reconnect&#160;")))

    look((80, 24), step, theme="devloop-light")


def test_connection(look: Look, threaded: ThreadedEngine) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        threaded.do(threaded.fake.connection, "connected", link="portforward", notes=(shop.NO_AGENT,))
        await pilot.press("c")
        await until(pilot, lambda: "installed" in app.export_screenshot())

    look((80, 24), step)


def test_failed_service(look: Look) -> None:
    look((80, 24), on="worker")


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (60, 16)], ids=name)
def test_attached(look: Look, size: tuple[int, int]) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        key = "leave" if size[0] > 60 else "detach"
        await until(pilot, lambda: f"&#160;{key}&#160;" in app.export_screenshot())

    look(size, step, on="web")


def test_refused_attachment(look: Look) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        await until(pilot, lambda: "bob@studio" in app.export_screenshot())

    look((80, 24), step, on="search")


@pytest.mark.parametrize("colour", [True, False], ids=["colour", "no_color"])
def test_phases(look: Look, threaded: ThreadedEngine, monkeypatch: pytest.MonkeyPatch, colour: bool) -> None:
    if not colour:
        monkeypatch.setenv("NO_COLOR", "1")
    engine = threaded.fake
    reason = "argocd has changed the Service again and again; devloop has given way"

    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        threaded.do(engine.attachment, "api", "contested", reason=reason, notes=("its Service has two more ports",))
        threaded.do(engine.attachment, "web", "failed open", reason="the link is lost")
        threaded.do(engine.attachment, "redis", "attaching")
        threaded.do(engine.attachment, "migrate", "leaving")
        threaded.do(engine.attachment, "mailer", "attached", kind="wiretap", original_rate=1240.0)
        await until(pilot, lambda: all(word in app.export_screenshot() for word in ("argocd", "leaving", "1.2k/s")))

    look((100, 30), step)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (50, 14)], ids=name)
def test_requests(look: Look, size: tuple[int, int]) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        await requests(pilot, app)
        await pilot.press("k", "k")
        await until(pilot, lambda: "taken," in app.export_screenshot())

    look(size, step, on="web", theme="devloop-light" if size[0] == 120 else "")


async def requests(pilot: Pilot[Any], app: DevloopApp) -> None:
    """Opens them, with all that the engine is asked for."""
    await pilot.press("x")
    await until(pilot, lambda: isinstance(app.screen, RequestsScreen) and "/search" in app.export_screenshot())


def test_filtered_requests(look: Look) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        await requests(pilot, app)
        await pilot.press("slash", *"local")
        await until(pilot, lambda: "of&#160;13" in app.export_screenshot())

    look((80, 24), step, on="web")


def test_no_requests(look: Look) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        await pilot.press("x")
        await until(pilot, lambda: "attaches" in app.export_screenshot())

    look((80, 24), step)


def test_light(look: Look) -> None:
    look((80, 24), theme="devloop-light")


def test_no_color(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    look((80, 24), on="worker")


def test_too_small(look: Look) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        await until(pilot, lambda: isinstance(app.screen, TooSmallScreen))

    look((36, 9), step)


@pytest.mark.parametrize("size", [(80, 24), (130, 40)], ids=name)
def test_help(look: Look, size: tuple[int, int]) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        await pilot.press("question_mark")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen))

    look(size, step)


@pytest.mark.parametrize("reveal", [False, True], ids=["masked", "revealed"])
def test_environment(look: Look, reveal: bool) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        await environment(pilot, app)
        if reveal:
            await pilot.press("v")
            await until(pilot, lambda: isinstance(app.screen, EnvironmentScreen) and app.screen.revealed)

    look((80, 24), step)


async def environment(pilot: Pilot[Any], app: DevloopApp) -> None:
    """Opens it, with all that the engine is asked for."""
    await pilot.press("e")
    await until(pilot, lambda: "DATABASE_URL" in app.export_screenshot())
    await until(pilot, lambda: "files&#160;5" in app.export_screenshot())


def test_environment_by_origin(look: Look) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        await environment(pilot, app)
        await pilot.press(*"ooooj")
        await until(pilot, lambda: "3&#160;of&#160;16" in app.export_screenshot())

    look((120, 40), step)


@pytest.mark.parametrize("size", [(80, 24), (160, 40)], ids=name)
def test_files(look: Look, size: tuple[int, int]) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        await environment(pilot, app)
        await pilot.press("tab", "j", "j")
        await until(pilot, lambda: "/etc/tls" in app.export_screenshot())

    look(size, step)


def test_differences(look: Look) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        await environment(pilot, app)
        await pilot.press("tab", "tab")
        await until(pilot, lambda: "scratch" in app.export_screenshot())

    look((80, 24), step)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=name)
def test_loops(look: Look, size: tuple[int, int]) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        await pilot.press("m")
        await until(pilot, lambda: isinstance(app.screen, LoopsScreen))
        await until(pilot, lambda: "SyntaxError" in app.export_screenshot())
        await pilot.press("j")
        await until(pilot, lambda: "loop\u00a032" in app.export_screenshot().replace("&#160;", "\u00a0"))

    look(size, step)


def test_filter(look: Look) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        await pilot.press("slash", *"INFO", "enter")
        await until(pilot, lambda: len(app.board_screen.log_pane.view.buffer) == 5)

    look((80, 24), step)


def test_bad_filter(look: Look) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        await pilot.press("slash", "left_parenthesis")
        await until(pilot, lambda: "missing" in app.export_screenshot())

    look((80, 24), step)


def test_search(look: Look) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        await pilot.press("n", *"orders", "enter")
        await until(pilot, lambda: app.board_screen.log_pane.view.position[1] == 4)

    look((80, 24), step)


def test_all_logs(look: Look) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        await pilot.press("a", "l", "z")
        await until(pilot, lambda: app.board_screen.log_pane.view.buffer.total == 16)

    look((80, 24), step)


def test_config_error(look: Look, threaded: ThreadedEngine) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        threaded.do(threaded.fake.configure, error=CONFIG_ERROR)
        await until(pilot, lambda: "comand" in app.export_screenshot())

    look((80, 24), step)


def test_notices(look: Look) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        await pilot.press("exclamation_mark")
        await until(pilot, lambda: "mailhog" in app.export_screenshot())

    look((80, 24), step)


@pytest.mark.parametrize("size", [(80, 24), (40, 10)], ids=name)
def test_leaving(look: Look, size: tuple[int, int]) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        await pilot.press("q")
        await until(pilot, lambda: "Leave" in app.export_screenshot())

    look(size, step)


def test_silent(look: Look, threaded: ThreadedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        threaded.do(threaded.fake.suspend)
        await pilot.press("r")
        app.session.silence = 4.0
        monkeypatch.setattr(app.session, "beat", lambda: None)
        app.board_screen.board_changed()
        await until(pilot, lambda: "restart&#160;api" in app.export_screenshot())

    try:
        look((80, 24), step)
    finally:
        threaded.do(threaded.fake.resume)


def test_selected(look: Look) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        view = app.board_screen.log_pane.view
        await pilot.mouse_down(view, offset=(11, 3))
        await pilot.hover(view, offset=(30, 5))
        await pilot.mouse_up(view, offset=(30, 5))
        await until(pilot, lambda: app.screen.get_selected_text())

    look((80, 24), step)


def test_shutdown(look: Look, threaded: ThreadedEngine) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        await pilot.press("q", "s")
        await until(pilot, lambda: isinstance(app.screen, ShutdownScreen))
        threaded.do(threaded.fake.progress, ["api", "redis"])
        await until(pilot, lambda: app.session.board.progress and len(app.session.board.progress.alive) == 2)
        await until(pilot, lambda: "2&#160;services" in app.export_screenshot())

    look((80, 24), step)


def test_survivors(look: Look, threaded: ThreadedEngine) -> None:
    survivors = {"redis": ("4242 redis-server", "4243 redis-bgsave")}

    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        await pilot.press("q", "s")
        await until(pilot, lambda: isinstance(app.screen, ShutdownScreen))
        threaded.do(threaded.fake.progress, [], survivors, done=True)
        await until(pilot, lambda: "would" in app.export_screenshot())

    look((80, 24), step)


def test_lost(look: Look, threaded: ThreadedEngine) -> None:
    async def step(pilot: Pilot[Any], app: DevloopApp) -> None:
        threaded.close()
        await until(pilot, lambda: "unexpectedly" in app.export_screenshot())

    look((80, 24), step)

"""The engine is stopped, hidden or gone: the screen says so, and claims no more than it knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from devloop.errors import ServiceError
from devloop.testing import shop
from tests.tui.conftest import Open
from tui import app as app_module
from tui.widgets import log_pane as log_pane_module

pytestmark = pytest.mark.slow

SECOND = 1_000_000_000


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A heartbeat counts as a second and takes a hundredth of one."""
    monkeypatch.setattr(app_module, "BEAT_INTERVAL", 0.01)
    monkeypatch.setattr(log_pane_module, "RETRY", 0.01)
    monkeypatch.setattr(log_pane_module, "LOADING", 0.01)
    yield


async def test_a_stopped_engine_is_noticed_and_so_is_that_it_goes_on(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        screen.engine.suspend()
        await screen.shows("engine does not answer (", "The engine (pid 4000) does not answer")
        await screen.press("r")
        await screen.shows("these wait: restart api")
        screen.engine.resume()
        await screen.hides("does not answer")
        await screen.asked("restart", services=["api"])
        await screen.until(lambda: not screen.app.session.waiting)


async def test_nothing_counts_while_the_engine_does_not_answer(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(size=(120, 40)) as screen:
        session = screen.app.session
        heard = session.clock()
        later = heard + 3600 * SECOND
        screen.engine.suspend()
        await screen.until(lambda: session.silent)
        monkeypatch.setattr(session, "_clock", lambda: later)
        assert session.clock() == heard
        screen.engine.resume()
        await screen.until(lambda: not session.silent)
        assert session.clock() == later
        await screen.engine.hang_up()
        await screen.shows("ended unexpectedly")
        monkeypatch.setattr(session, "_clock", lambda: later + 3600 * SECOND)
        assert session.clock() == later


async def test_a_view_of_a_stopped_engine_says_that_it_is_loading(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        screen.engine.suspend()
        await screen.until(lambda: screen.app.session.silent)
        await screen.press("e")
        await screen.shows("environment api", "loading…")
        assert "variables 0" not in screen.text
        screen.engine.resume()
        await screen.shows("LOG_LEVEL", "variables 1")


async def test_the_log_of_a_stopped_engine_says_that_it_is_loading(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        screen.engine.suspend()
        await screen.press("j")
        await screen.shows("logs worker", "loading…")
        screen.engine.resume()
        await screen.shows("ModuleNotFoundError")


async def test_an_empty_log_says_so(opened: Open) -> None:
    async with opened(size=(120, 40)) as screen:
        screen.engine.configure([shop.snapshot(shop.fixed_clock).services[5]])
        await screen.shows("logs migrate")
        await screen.until(lambda: "no output yet" in screen.text or screen.board.log_pane.view.buffer.total)


async def test_a_filter_that_hides_all_says_so(opened: Open) -> None:
    async with opened() as screen:
        await screen.press("slash")
        await screen.type("nowhere")
        await screen.press("enter")
        await screen.shows("0 of 8 lines match · esc clears")


async def test_a_question_says_that_the_engine_does_not_answer(opened: Open) -> None:
    async with opened() as screen:
        screen.engine.suspend()
        await screen.until(lambda: screen.app.session.silent)
        await screen.press("q")
        await screen.shows("The engine does not answer: they are stopped once it does.")


async def test_a_removed_state_folder_is_said(opened: Open, folder: Path) -> None:
    async with opened(size=(120, 40)) as screen:
        socket = folder / "control.sock"
        socket.rename(folder / "elsewhere")
        await screen.shows("control.sock is gone", "pid 4000")
        await screen.press("j")
        await screen.shows("the log can't be read")
        (folder / "elsewhere").rename(socket)
        await screen.hides("control.sock is gone")
        await screen.shows("ModuleNotFoundError")


async def test_another_engine_is_found(opened: Open, folder: Path) -> None:
    async with opened() as screen:
        await screen.engine.hang_up()
        await screen.shows("ended unexpectedly")
        async with shop.engine(shop.fixed_clock).serving(folder / "control.sock") as fresh:
            await screen.hides("ended unexpectedly")
            await screen.press("r")
            await screen.until(lambda: ("restart", {"services": ["api"]}) in fresh.calls)


async def test_r_starts_an_engine_after_the_last_has_ended(opened: Open, folder: Path) -> None:
    async with opened() as screen:
        started: list[None] = []
        screen.app.session.start = lambda: started.append(None)
        await screen.engine.hang_up()
        await screen.shows("ended unexpectedly", "r starts it again", "r start engine")
        await screen.press("r")
        await screen.until(lambda: started)


async def test_an_engine_that_does_not_start_is_said(opened: Open) -> None:
    async with opened() as screen:

        def start() -> None:
            raise ServiceError("devloop.toml is broken")

        screen.app.session.start = start
        await screen.engine.hang_up()
        await screen.shows("r start engine")
        await screen.press("r")
        await screen.shows("devloop.toml is broken. r tries again.")


async def test_a_key_for_an_engine_that_is_gone_says_so(opened: Open) -> None:
    async with opened() as screen:
        await screen.engine.hang_up()
        await screen.shows("ended unexpectedly")
        await screen.press("s")
        await screen.shows("the engine is gone")

"""A shop behind a real control socket, with a clock that stands still."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.pilot import Pilot

from devloop.testing import shop
from devloop.testing.fake_engine import FakeEngine
from tui.app import DevloopApp, Outcome
from tui.screens.board import BoardScreen

DEADLINE = 10.0

Open = Callable[..., AbstractAsyncContextManager["Screen"]]


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("NO_COLOR", raising=False)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: the path of a Unix socket has at most some hundred bytes."""
    path = Path(tempfile.mkdtemp(prefix="dl-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


async def until(pilot: Pilot[Any], condition: Callable[[], object]) -> None:
    """Let the app run until the condition holds."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.005)
    await pilot.pause()


class Screen:
    """An app under test, its pilot and its engine."""

    def __init__(self, app: DevloopApp, pilot: Pilot[Outcome], engine: FakeEngine) -> None:
        self.app = app
        self.pilot = pilot
        self.engine = engine

    @property
    def board(self) -> BoardScreen:
        return self.app.board_screen

    @property
    def text(self) -> str:
        """What is on screen, as lines of text."""
        lines = self.app.screen._compositor.render_strips(self.app.size)
        return "\n".join("".join(segment.text for segment in line) for line in lines)

    async def until(self, condition: Callable[[], object]) -> None:
        await until(self.pilot, condition)

    async def shows(self, *texts: str) -> None:
        """Wait until all of these are on screen."""
        try:
            await self.until(lambda: all(text in self.text for text in texts))
        except AssertionError:
            missing = [text for text in texts if text not in self.text]
            raise AssertionError(f"not on screen: {missing}\n{self.text}") from None

    async def hides(self, *texts: str) -> None:
        """Wait until none of these is on screen."""
        await self.until(lambda: not any(text in self.text for text in texts))

    async def press(self, *keys: str) -> None:
        """Keys one after the other; unlike the pilot's own, without a wait for an idle processor."""
        for key in keys:
            self.app.simulate_key(key)
            await self.pilot.pause(0)
            await self.pilot.pause(0)

    async def type(self, text: str) -> None:
        """Text all at once: a key at a time would wait for an idle app after each."""
        self.app.post_message(events.Paste(text))
        await self.pilot.pause()

    async def asked(self, method: str, **params: Any) -> None:
        """Wait until the engine was asked exactly this."""
        await self.until(lambda: (method, params) in self.engine.calls)

    async def left(self) -> Outcome | None:
        await self.until(lambda: self.app._exit)
        return self.app.return_value


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[FakeEngine]:
    async with shop.engine(shop.fixed_clock).serving(folder / "control.sock") as fake:
        yield fake


@pytest.fixture
def opened(folder: Path, engine: FakeEngine) -> Open:
    """Opens the app on the engine, on the api's line, with its log read."""

    @asynccontextmanager
    async def open_app(size: tuple[int, int] = (100, 30), on: str = "api") -> AsyncIterator[Screen]:
        app = DevloopApp(folder / "control.sock", clock=shop.fixed_clock, preferences=folder / "tui.json")
        async with app.run_test(size=size, notifications=True) as pilot:
            screen = Screen(app, pilot, engine)
            await ready(app, pilot, on)
            yield screen

    return open_app


async def ready(app: DevloopApp, pilot: Pilot[Any], on: str = "api") -> None:
    """The board is shown, a service is chosen and its log is read."""
    await until(pilot, lambda: on in app.session.board.services and app.board_screen.table.selected)
    app.board_screen.select(on)
    wanted = sum(line.service == on for line in shop.log_lines(shop.fixed_clock))
    await until(pilot, lambda: app.board_screen.log_pane.view.buffer.total == wanted)


class ThreadedEngine:
    """The shop in a thread with an event loop of its own, for tests that give theirs to the app."""

    def __init__(self, socket: Path, fake: FakeEngine) -> None:
        self.socket = socket
        self.fake = fake
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._started.wait(DEADLINE)

    def _run(self) -> None:
        async def serve() -> None:
            async with self.fake.serving(self.socket):
                self._started.set()
                await self._stop.wait()

        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(serve())

    def do(self, call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Call something of the engine in its own thread."""
        self._loop.call_soon_threadsafe(lambda: call(*args, **kwargs))

    def close(self) -> None:
        """Hang up; again does nothing."""
        if self._thread.is_alive():
            self.do(self._stop.set)
            self._thread.join(DEADLINE)


@pytest.fixture
def threaded(folder: Path) -> Iterator[ThreadedEngine]:
    engine = ThreadedEngine(folder / "control.sock", shop.engine(shop.fixed_clock))
    yield engine
    engine.close()

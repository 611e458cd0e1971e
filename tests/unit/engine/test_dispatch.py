"""The engine between the core and the outside: what can't be carried out is told and answered, and the rest goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from devloop.config.model import Project
from devloop.core import events as ev
from devloop.engine.engine import Engine
from devloop.errors import EngineError
from devloop.local.process import Holders
from devloop.metrics.store import LoopStore
from devloop.protocol import State
from devloop.state import StateFolder
from tests.unit.core.playbook import ROOT, service

Make: TypeAlias = Callable[..., Engine]


class Runner:
    """Carries commands out as a test says; tells of each start, as a real one does."""

    def __init__(self, engine: Engine, name: str, problem: Exception | None = None) -> None:
        self.engine, self.name, self.problem = engine, name, problem
        self.spec: Any = None
        self.started: list[int] = []

    def start_process(self, run: int) -> None:
        self.started.append(run)
        self.engine.dispatch(ev.ProcessStarted(self.name, run, 42))  # nested, as from a command's own call
        if self.problem is not None:
            raise self.problem

    def stop_process(self, run: int) -> None:
        if self.problem is not None:
            raise self.problem
        self.engine.dispatch(ev.ProcessEnded(self.name, run, 0))

    def start_probes(self, run: int) -> None:
        self.engine.dispatch(ev.BecameReady(self.name, run))

    def stop_probes(self) -> None:
        pass


class Server:
    def publish(self, event: object) -> None:
        pass

    publish_snapshot = publish


@pytest.fixture
def engine_of(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    with contextlib.ExitStack() as stack:
        yield lambda **problems: _engine(tmp_path, stack, problems)


def _engine(tmp_path: Path, stack: contextlib.ExitStack, problems: Mapping[str, Exception | None]) -> Engine:
    services = {name: service(name) for name in problems}
    made = Engine(Project("shop", ROOT / "devloop.toml", (), services), StateFolder(tmp_path), {}, Holders())
    made._server = Server()  # type: ignore[assignment]
    made._store = LoopStore(tmp_path / "loops.sqlite3", lambda _: None)
    stack.callback(made._store.close)
    made.logs = type("Logs", (), {"say": lambda *_: None})()
    for name, problem in problems.items():
        made._runners[name] = Runner(made, name, problem)  # type: ignore[assignment]
    return made


@pytest.fixture
async def faults() -> list[str]:
    found: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(repr(context["exception"])))
    return found


async def test_a_command_that_raises_after_a_nested_event_leaves_the_engine_hearing(
    engine_of: Make, faults: list[str]
) -> None:
    engine = engine_of(a=KeyError("x"), b=None)
    engine.dispatch(ev.StartRequested(("a", "b")))
    lives = engine.supervisor.services
    assert lives["b"].state is State.READY, "the commands after the one that failed are carried out"
    assert lives["a"].state is State.FAILED and "x" in lives["a"].reason
    assert faults == ["KeyError('x')"]
    engine._runners["a"].problem = None  # type: ignore[attr-defined]
    engine.dispatch(ev.RestartRequested("a"))
    assert lives["a"].state is State.READY, "and it hears what comes next"


async def test_what_devloop_can_explain_is_no_fault_of_its_own(engine_of: Make, faults: list[str]) -> None:
    engine = engine_of(a=EngineError("the holder is gone", hint="restart devloop"))
    engine.dispatch(ev.StartRequested(("a",)))
    life = engine.supervisor.services["a"]
    assert (life.state, life.reason, faults) == (State.FAILED, "the holder is gone", [])


async def test_a_stop_that_can_not_be_asked_for_does_not_hold_up_the_shutdown(
    engine_of: Make, faults: list[str]
) -> None:
    engine = engine_of(a=None)
    engine.dispatch(ev.StartRequested(("a",)))
    engine._runners["a"].problem = OSError("no holder")  # type: ignore[attr-defined]
    engine.dispatch(ev.ShutdownRequested())
    assert engine._finished.is_set()
    assert faults == ["OSError('no holder')"]


async def test_an_event_that_the_core_can_not_handle_is_told(
    engine_of: Make, faults: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(a=None)
    handle = engine.supervisor.handle

    def broken(event: ev.Event, now: int) -> Any:
        if isinstance(event, ev.FilesSettled):
            raise AssertionError("a wrong turn")
        return handle(event, now)

    monkeypatch.setattr(engine.supervisor, "handle", broken)
    engine.dispatch(ev.FilesSettled("a"))
    engine.dispatch(ev.StartRequested(("a",)))
    assert faults == ["AssertionError('a wrong turn')"]
    assert engine.supervisor.services["a"].state is State.READY

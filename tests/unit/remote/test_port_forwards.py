"""The link of plain port-forwards: which websocket is dead, which is spare, and which is only held up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from devloop.errors import RemoteError
from devloop.remote.kubernetes import portforward
from devloop.remote.kubernetes.portforward import PortForwardCarrier
from tests.waiting import until

SPARE = 0.05


class Api:
    """An API server that answers, or does not, or says that it can't."""

    def __init__(self) -> None:
        self.answers = True
        self.problem: RemoteError | None = None
        self.asked = 0

    async def get(self, path: str) -> None:
        assert path == "/version"
        self.asked += 1
        if self.problem is not None:
            raise self.problem
        if not self.answers:
            await asyncio.Event().wait()


class Websocket:
    """One to a pod, with what its carrier looks at."""

    def __init__(self, *, load: int = 1) -> None:
        self.load = load
        self.used = time.monotonic()
        self.stalled = False
        self.answers = True
        self.talks = False
        self.checks = 0
        self.ended = ""
        self._heard = 0.0

    @property
    def heard(self) -> float:
        return time.monotonic() if self.talks else self._heard

    async def check(self) -> None:
        self.checks += 1
        if not self.answers:
            await asyncio.Event().wait()

    def close(self) -> None:
        self.ended = self.ended or "closed"

    def abort(self, reason: str) -> None:
        self.ended = self.ended or reason


class Rig:
    """A carrier that watches at a hundred times its pace."""

    def __init__(self) -> None:
        self.api = Api()
        self.carrier = PortForwardCarrier(self.api)  # type: ignore[arg-type]
        self.task = asyncio.create_task(self.carrier._watch())

    def add(self, **kwargs: Any) -> Websocket:
        made = Websocket(**kwargs)
        self.carrier._sockets.setdefault(("shop", "web"), []).append(made)  # type: ignore[arg-type]
        return made

    async def rounds(self, count: int) -> None:
        """So many more looks, each to its end."""
        before = self.api.asked
        await until(lambda: self.api.asked > before + count or self.task.done())

    @property
    def over(self) -> bool:
        return self.carrier._ended.done()


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    for name, value in (("CHECK_SECONDS", 0.01), ("DEAD_SECONDS", 0.03), ("SPARE_SECONDS", SPARE)):
        monkeypatch.setattr(portforward, name, value)
    made = Rig()
    yield made
    made.task.cancel()
    await asyncio.gather(made.task, return_exceptions=True)


async def test_one_that_nobody_uses_is_kept_for_a_while(rig: Rig) -> None:
    spare = rig.add(load=0)
    began = spare.used
    await until(lambda: bool(spare.ended))
    assert spare.ended == "closed"
    assert time.monotonic() - began > SPARE
    assert not spare.checks, "nobody would miss it"


async def test_one_that_is_held_up_is_neither_dead_nor_spare(rig: Rig) -> None:
    """Its client does not read: nothing comes, no ping is answered, and nobody has opened a connection for long."""
    held = rig.add()
    held.answers, held.stalled, held.used = False, True, 0.0
    began = time.monotonic()
    await until(lambda: time.monotonic() - began > SPARE)
    await rig.rounds(3)
    assert (held.ended, held.checks) == ("", 0)


async def test_one_that_becomes_held_up_while_it_is_asked(rig: Rig) -> None:
    held = rig.add()
    held.answers = False
    await until(lambda: held.checks > 0)
    held.stalled = True
    await rig.rounds(2)
    assert held.ended == ""


async def test_one_that_does_not_answer_ends_and_no_other(rig: Rig) -> None:
    dead, alive = rig.add(), rig.add()
    dead.answers = False
    await until(lambda: bool(dead.ended))
    assert dead.ended == "the node does not answer"
    assert not alive.ended and not rig.over


async def test_much_that_comes_before_an_answer_is_a_sign_of_life(rig: Rig) -> None:
    busy = rig.add()
    busy.answers, busy.talks = False, True
    await rig.rounds(2)
    assert busy.checks > 1
    assert not busy.ended


async def test_an_api_server_that_does_not_answer_ends_the_link(rig: Rig) -> None:
    one = rig.add()
    rig.api.answers = False
    assert "does not answer" in await rig.carrier.lost()
    assert "does not answer" in one.ended


async def test_an_answer_behind_much_that_comes_ends_nothing(rig: Rig) -> None:
    busy = rig.add()
    busy.talks = True
    rig.api.answers = False
    await rig.rounds(3)
    assert not rig.over and not busy.ended


async def test_an_api_server_that_can_not_be_reached_ends_it_whatever_comes(rig: Rig) -> None:
    rig.add().talks = True
    rig.api.problem = RemoteError("connection refused", where="there")
    assert "connection refused" in await rig.carrier.lost()

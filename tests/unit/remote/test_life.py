"""A link's life, with carriers that are told what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from devloop.errors import RemoteError
from devloop.remote.life import Backoff, LiveLink
from devloop.remote.link import (
    CarrierLostError,
    LinkState,
    OpenError,
    PermanentError,
    Phase,
    Refusal,
    Resolver,
)
from devloop.remote.wake import WakeWatch
from tests.waiting import until

QUICK = Backoff(first=0.001, longest=0.002)


class FakeCarrier:
    kind = "agent"
    notes: tuple[str, ...] = ()
    direct = ""

    def __init__(self) -> None:
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.opened: list[tuple[str, int]] = []
        self.answers = True
        self.closed = False

    async def connect(self, factory: Callable[[], Any], host: str, port: int) -> tuple[Any, Any]:
        if self.ended.done():
            raise CarrierLostError("gone")
        self.opened.append((host, port))
        return "transport", factory()

    async def check(self) -> None:
        if not self.answers:
            raise ConnectionError("no answer")

    async def lost(self) -> str:
        return await self.ended

    def abort(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)

    async def close(self) -> None:
        self.closed = True

    async def resolver(self) -> Resolver:
        return Resolver(("10.96.0.10",))


class Dialer:
    """Gives what it is told to, one after the other; the last for ever."""

    def __init__(self, *results: Any) -> None:
        self.results = list(results)
        self.carriers: list[FakeCarrier] = []

    async def __call__(self, tell: Callable[[str], None]) -> Any:
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        if isinstance(result, Exception):
            raise result
        self.carriers.append(FakeCarrier())
        return self.carriers[-1]


def made(dial: Any, **more: Any) -> tuple[LiveLink, list[LinkState]]:
    link = LiveLink("agent", "here", dial, backoff=QUICK, **more)
    states: list[LinkState] = []
    link.subscribe(states.append)
    link.start()
    return link, states


async def test_it_tries_again_until_it_is_connected_and_says_why_it_is_not() -> None:
    link, states = made(Dialer(OSError("no route"), RemoteError("busy"), "ok"))
    await link.ready(5)
    reasons = [(each.phase, each.reason) for each in states if each.next_attempt is not None]
    assert reasons == [(Phase.CONNECTING, "no route"), (Phase.CONNECTING, "busy")]
    assert (link.state.phase, link.state.reason, link.state.attempt) == (Phase.CONNECTED, "", 0)
    await link.close()
    assert states[-1].phase is Phase.CLOSED


async def test_what_opens_in_a_gap_waits_and_then_works() -> None:
    dialer = Dialer("ok")
    link, states = made(dialer)
    await link.ready(5)
    dialer.carriers[0].abort("the network is gone")
    _, protocol = await link.connect(asyncio.Protocol, "web", 80)
    assert isinstance(protocol, asyncio.Protocol)
    assert dialer.carriers[1].opened == [("web", 80)]
    assert "the network is gone" in {each.reason for each in states if each.phase is Phase.RECONNECTING}
    await link.close()
    assert dialer.carriers[1].closed


async def test_a_gap_that_is_too_long_is_an_error_with_its_reason() -> None:
    link, _ = made(Dialer(OSError("no route")), hold=0.01)
    with pytest.raises(OpenError, match="no route") as late:
        await link.connect(asyncio.Protocol, "web", 80)
    assert late.value.refusal is Refusal.LINK_DOWN
    assert late.value.exit_code == 3
    await link.close()


async def test_what_can_not_be_mended_is_not_tried_again_until_it_is_woken() -> None:
    dialer = Dialer(PermanentError("no right", hint="ask"), "ok")
    link, _ = made(dialer)
    with pytest.raises(PermanentError, match="no right"):
        await link.ready(5)
    assert link.state.phase is Phase.FAILED
    # A change of the network does not mend a right.
    link._woke("the network has changed")
    await asyncio.sleep(0)
    assert link.state.phase is Phase.FAILED
    link.wake()
    await link.ready(5)
    await link.close()


async def test_a_fault_of_its_own_fails_it_at_once_and_is_told() -> None:
    """Nobody waits for a link whose task is dead, and its exception is not kept until it is collected."""
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(repr(context["exception"])))

    async def dial(_: Any) -> Any:
        raise NameError("link")

    link, states = made(dial)
    link.start()
    with pytest.raises(RemoteError, match="a fault in devloop itself"):
        await link.ready(10)
    assert states[-1].phase is Phase.FAILED
    await until(lambda: told)
    assert told == ["NameError('link')"]
    await link.close()


async def test_waking_finds_a_connection_that_is_dead() -> None:
    dialer = Dialer("ok")
    link, states = made(dialer)
    await link.ready(5)
    link.wake()
    await asyncio.sleep(0.01)
    assert len(dialer.carriers) == 1  # it answered
    dialer.carriers[0].answers = False
    link.wake()
    while len(dialer.carriers) == 1:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert "no answer" in {each.reason for each in states}
    await link.close()


async def test_a_listener_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    link = LiveLink("agent", "here", Dialer("ok"), backoff=QUICK)

    def fails(state: LinkState) -> None:
        raise ValueError("a bug")

    link.subscribe(fails)
    link.start()
    await link.ready(5)
    assert "a bug" in caplog.text
    await link.close()


def test_the_backoff_doubles_up_to_its_longest_and_is_jittered() -> None:
    backoff = Backoff(first=0.1, longest=5, jitter=0.5)
    assert [round(backoff.delay(n, lambda: 0.0), 2) for n in (1, 2, 3, 7, 1000)] == [0.1, 0.2, 0.4, 5, 5]
    assert backoff.delay(7, lambda: 1.0) == 2.5


async def test_a_sleep_is_told_by_two_clocks_and_a_busy_machine_is_none() -> None:
    running, passed = [0.0], [100.0]
    woken: list[str] = []
    watch = WakeWatch(woken.append, running=lambda: running[0], passed=lambda: passed[0])
    watch.start()
    for step in (1.0, 30.0):  # late, but both clocks went on
        running[0] += step
        passed[0] += step
        watch.tick()
    assert woken == []
    running[0] += 1
    passed[0] += 601
    watch.tick()
    assert woken == ["this machine has slept for 600 s"]
    watch.close()


def test_resolv_conf_is_read_as_glibc_does() -> None:
    found = Resolver.parse(
        "# made by kubelet\nnameserver 10.96.0.10\nsearch first.example\n"
        "search shop.svc.cluster.local. svc.cluster.local cluster.local\noptions ndots:5 timeout:2\n"
    )
    assert found.nameservers == ("10.96.0.10",)
    assert found.search == ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local")
    assert (found.ndots, found.options) == (5, ("ndots:5", "timeout:2"))
    assert Resolver.parse("") == Resolver(())

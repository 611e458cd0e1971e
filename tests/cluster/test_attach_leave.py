"""Each way of leaving at a real cluster: the traffic during it, and the objects after it, field by field."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devloop.attach import Header, Match, Phase, Route

from . import kit
from .attaching import Here, Load, ask, client_pod, engine, objects_of, run_service
from .conftest import Namespace
from .kit import ApiClient, client
from .kube.gate import Gate

AGENT = "devloop-agent"
LEASE = 6
"""Seconds: these tests wait for it to be over."""


@dataclass
class Rig:
    space: Namespace
    before: dict[str, Any]
    admin: ApiClient

    async def restored(self, seconds: float) -> None:
        """All objects are as they were, within so many seconds."""

        async def difference() -> list[str]:
            now = await objects_of(self.admin, self.space.name)
            return sorted(key for key in now.keys() | self.before.keys() if now.get(key) != self.before.get(key))

        await kit.eventually(difference, [], seconds)


@pytest.fixture
async def rig(admin: ApiClient, namespace: Namespace) -> AsyncIterator[Rig]:
    await asyncio.gather(run_service(admin, namespace.name), client_pod(admin, namespace.name))
    yield Rig(namespace, await objects_of(admin, namespace.name), admin)


def last(result: dict[str, Any], who: str) -> float:
    """Until when `who` was answering, at the latest: the start of the first answer of somebody else after it."""
    changes = result["changes"]
    until = 0.0
    for index, (when, name) in enumerate(changes):
        if name == who:
            until = changes[index + 1][0] if index + 1 < len(changes) else time.time()
            until = max(until, when)
    return until


async def test_a_killed_engine(rig: Rig, tmp_path: Path) -> None:
    async with engine(rig.space.developer, tmp_path, lease_seconds=LEASE) as ada, Here() as here:
        await ada.attachments.attach(ada.wanted(here), here)
        load = Load(rig.space, rate=200, connections=8)
        await kit.eventually(lambda: ask(rig.space), "here", 5)
        await asyncio.sleep(1)
        began = time.time()
        ada.crash()
        assert (await ask(rig.space)).startswith("api-")
        assert time.time() - began < 3
        await rig.restored(LEASE + 4)
        assert (await ask(rig.space)).startswith("api-")
        result = await load.stop()
        assert result["failed"] == 0, str(result)
        assert last(result, "here") - began < 3


async def test_an_engine_that_was_killed_and_comes_again_finds_its_own(rig: Rig, tmp_path: Path) -> None:
    async with engine(rig.space.developer, tmp_path) as first, Here() as here:
        await first.attachments.attach(first.wanted(here), here)
        first.crash()
        async with engine(rig.space.developer, tmp_path) as again:
            found = await again.attachments.attach(again.wanted(here), here)
            await kit.eventually(lambda: ask(rig.space), "here", 10)
            [held] = await again.attachments.holdings()
            assert held.mine
            await again.attachments.leave(found)
            await rig.restored(5)


@pytest.mark.parametrize("back", ["before its lease is over", "after"])
async def test_a_pulled_cable(
    rig: Rig, gate: Gate, behind_gate: Callable[[Path], Path], tmp_path: Path, back: str
) -> None:
    lease = 30 if back.startswith("before") else LEASE
    async with (
        engine(behind_gate(rig.space.developer), tmp_path, lease_seconds=lease) as ada,
        Here() as here,
    ):
        await ada.attachments.attach(ada.wanted(here), here)
        load = Load(rig.space, rate=200, connections=8)
        await kit.eventually(lambda: ask(rig.space), "here", 5)
        began = time.time()
        with gate.closed(25, "silent"):
            assert (await ask(rig.space)).startswith("api-")
            assert time.time() - began < 3.5
            if back == "after":
                await rig.restored(LEASE + 6)  # by the agent: nobody else can
            else:
                await asyncio.sleep(5)
            gate.open()
        await kit.eventually(lambda: ask(rig.space), "here", 30)
        result = await load.stop()
        assert result["failed"] == 0, str(result)
        assert ada.attachments.held[0].state.phase is Phase.ATTACHED
        assert any(each.startswith(Phase.OPEN) for each in ada.states)
    await rig.restored(5)


@pytest.mark.parametrize("how", ["evicted", "killed"])
async def test_an_agent_that_goes_in_the_middle(
    rig: Rig, kill_pod: Callable[[str, str], Awaitable[None]], tmp_path: Path, how: str
) -> None:
    async with engine(rig.space.developer, tmp_path) as ada, Here() as here:
        await ada.attachments.attach(ada.wanted(here), here)
        load = Load(rig.space, rate=200, connections=8, timeout=2)
        await kit.eventually(lambda: ask(rig.space), "here", 5)
        gone, before = time.time(), len(ada.states)
        if how == "evicted":
            eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name=AGENT))
            await client.CoreV1Api(rig.admin).create_namespaced_pod_eviction(AGENT, rig.space.name, eviction)
        else:
            await kill_pod(rig.space.name, AGENT)

        async def attached() -> bool:
            lost = any(not each.startswith(Phase.ATTACHED) for each in ada.states[before:])
            return lost and ada.attachments.held[0].state.phase is Phase.ATTACHED

        await kit.eventually(attached, True, 40)
        await kit.eventually(lambda: ask(rig.space), "here", 5)
        await asyncio.sleep(1)
        result = await load.stop()
        late = [each for each in result["failures"] if each[0] > gone + 3]
        assert not late, str(result)
        if how == "evicted":
            assert result["failed"] == 0, str(result)
    await rig.restored(5)


async def test_an_envoy_that_crashes_is_back_with_all_it_knew(rig: Rig, tmp_path: Path) -> None:
    async with engine(rig.space.developer, tmp_path) as ada, Here() as here:
        await ada.attachments.attach(ada.wanted(here), here)
        await kit.eventually(lambda: ask(rig.space), "here", 5)
        ran = await kit.execute(rig.space.developer, rig.space.name, AGENT, "pkill", "-9", "envoy", container="envoy")
        assert ran.code == 0, ran
        began = time.monotonic()
        await kit.eventually(lambda: ask(rig.space), "here", 3)
        assert time.monotonic() - began < 3


async def test_of_two_developers_one_dies(rig: Rig, tmp_path: Path) -> None:
    def route(user: str) -> Any:
        return (Route((Header("x-user", Match("exact", user)),)),)

    async with engine(rig.space.other_developer, tmp_path, "ben") as ben, Here("ben") as there:  # noqa: SIM117
        async with engine(rig.space.developer, tmp_path, "ada", lease_seconds=LEASE) as ada, Here("ada") as here:
            await ada.attachments.attach(ada.wanted(here, routes=route("ada")), here)
            await ben.attachments.attach(ben.wanted(there, routes=route("ben")), there)
            await kit.eventually(lambda: ask(rig.space, "-H", "x-user: ada"), "ada", 10)
            await kit.eventually(lambda: ask(rig.space, "-H", "x-user: ben"), "ben", 10)
            assert (await ask(rig.space)).startswith("api-")
            load = Load(rig.space, rate=100, connections=4, headers={"x-user": "ben"})
            ada.crash()
            assert (await ask(rig.space, "-H", "x-user: ada")).startswith("api-")
            await kit.eventually(lambda: ask(rig.space, "-H", "x-user: ben"), "ben", 10)

            async def holders() -> list[str]:
                return sorted(each.spec.user for each in await ben.attachments.holdings())

            assert await holders() == ["ada", "ben"]
            await kit.eventually(holders, ["ben"], LEASE + 6)
            result = await load.stop()
            assert result["failed"] == 0 and set(result["counts"]) == {"ben"}, str(result)
    await rig.restored(5)


async def test_a_local_service_that_is_down_reloads_or_does_not_come_back(rig: Rig, tmp_path: Path) -> None:
    async with engine(rig.space.developer, tmp_path) as ada, Here() as here:
        here.running = False  # never started
        found = await ada.attachments.attach(ada.wanted(here, hold=1.0), here)
        assert found.state.phase is Phase.OPEN
        assert (await ask(rig.space)).startswith("api-")
        here.set_running(True)
        await kit.eventually(lambda: ask(rig.space), "here", 5)
        assert found.state.phase is Phase.ATTACHED
        # It reloads, and is not back within `hold`.
        here.reloading.clear()
        here.end()
        began = time.monotonic()
        assert (await ask(rig.space)).startswith("api-")
        assert 0.9 < time.monotonic() - began < 3
        await here.begin()
        here.reloading.set()
        await kit.eventually(lambda: ask(rig.space), "here", 10)
        # It crashes: the original answers at once.
        here.end()
        here.set_running(False)
        assert (await ask(rig.space)).startswith("api-")


async def test_fail_closed_is_nobody_elses(rig: Rig, tmp_path: Path) -> None:
    async with engine(rig.space.developer, tmp_path) as ada, Here() as here:
        await ada.attachments.attach(ada.wanted(here, fail="closed"), here)
        await kit.eventually(lambda: ask(rig.space), "here", 10)
        here.set_running(False)

        async def says() -> bool:
            return "ada@laptop holds this" in await ask(rig.space)

        await kit.eventually(says, True, 5)


async def test_no_request_fails_while_it_is_edited_under_load(rig: Rig, tmp_path: Path) -> None:
    async with engine(rig.space.developer, tmp_path) as ada, Here() as here:
        await ada.attachments.attach(ada.wanted(here), here)
        load = Load(rig.space, rate=300, connections=16, seconds=120)
        await kit.eventually(lambda: ask(rig.space), "here", 5)
        served: list[int] = []
        ada.attachments.subscribe_served(lambda _, when: served.append(when))
        for _ in range(20):
            await asyncio.sleep(2.5)
            here.reloading.clear()
            here.end()
            await asyncio.sleep(0.5)  # the time that a process takes to start
            await here.begin()
            ready = time.monotonic_ns()
            here.reloading.set()

            async def answers() -> bool:
                return any(each >= ready for each in served)  # noqa: B023

            await kit.eventually(answers, True, 10)
        result = await load.stop()
        assert result["failed"] == 0, str(result)
        assert result["counts"]["here"] > 0.99 * result["answered"] - 300, str(result)


@pytest.mark.parametrize(("ends", "goes_on"), [("envoy", "agent"), ("agent", "envoy")])
async def test_a_container_of_the_agents_pod_that_ends_does_not_take_the_other_one_with_it(
    rig: Rig, kill_container: Callable[[str, str, str], Awaitable[None]], tmp_path: Path, ends: str, goes_on: str
) -> None:
    """As the kernel ends what is over its limit of memory. Nobody is told meanwhile that they are attached."""
    core = client.CoreV1Api(rig.admin)

    async def restarts() -> dict[str, int]:
        pod = await core.read_namespaced_pod(AGENT, rig.space.name)
        return {each.name: each.restart_count for each in pod.status.container_statuses}

    async with engine(rig.space.developer, tmp_path) as ada, Here() as here:
        await ada.attachments.attach(ada.wanted(here), here)
        await kit.eventually(lambda: ask(rig.space), "here", 5)
        carrier, before = await ada.link.best(), len(ada.states)
        load = Load(rig.space, rate=50, connections=4, seconds=60)
        await asyncio.sleep(1)
        began = time.time()
        await kill_container(rig.space.name, AGENT, ends)

        async def ended() -> int:
            return (await restarts())[ends]

        await kit.eventually(ended, 1, 30)

        async def attached() -> bool:
            lost = any(not each.startswith(Phase.ATTACHED) for each in ada.states[before:])
            return lost and ada.attachments.held[0].state.phase is Phase.ATTACHED

        await kit.eventually(attached, True, 40)
        await kit.eventually(lambda: ask(rig.space), "here", 10)
        took = time.time() - began
        result = await load.stop()
        late = [each for each in result["failures"] if each[0] > began + 6]
        print(f"\n{ends} ended: attached again after {took:.1f} s; {result['failed']} of {result['answered']} failed")
        assert not late, str(result)
        assert (await restarts())[goes_on] == 0
        if ends == "envoy":
            assert await ada.link.best() is carrier, "the SSH connection has gone on"
    await rig.restored(5)

"""Two developers at one agent, of whom the other speaks to it without devloop: nothing of the first one's is theirs.

Both keys are known to the agent. Eve may read everything that the cluster has, and write nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncssh
import pytest

from devloop.agent.member import Target
from devloop.agent.objects import OWNER_KEY, lease, lease_name, marker, marker_name, swapped
from devloop.agent.paths import COMMAND, leases, services
from devloop.agent.spec import Header, Match, Route, Spec
from tests.waiting import until

from .envoy_here import HERE, NAME, Local, Rig, a_rig, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

Document = dict[str, Any]


async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, who: bytes) -> None:
    while await reader.readuntil(b"\r\n\r\n"):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(who), who))


@asynccontextmanager
async def server_of(who: bytes) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answering(reader, writer, who)
        except (asyncio.IncompleteReadError, ConnectionError):
            return

    async with serving(serve) as port:
        yield port


class Eve:
    """A developer whose key the agent knows, with an SSH client and nothing else."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.key = ""
        self._numbers = itertools.count(1)
        self.heard: list[Document] = []

    async def open(self) -> None:
        self._process = await self.connection.create_process(COMMAND)
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for line in self._process.stdout:
            self.heard.append(json.loads(line))

    async def say(self, **message: Any) -> Document:
        number = next(self._numbers)
        self._process.stdin.write(json.dumps({"n": number, **message}) + "\n")
        await until(lambda: any(each.get("answer") == number for each in self.heard))
        return next(each for each in self.heard if each.get("answer") == number)

    async def close(self) -> None:
        self._reading.cancel()
        self._process.close()


async def ask(rig: Rig, header: str = "") -> bytes:
    reader, writer = await asyncio.open_connection(HERE, rig.proxy.port)
    writer.write(f"GET / HTTP/1.1\r\nhost: x\r\n{header}connection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.rpartition(b"\r\n\r\n")[2]


@asynccontextmanager
async def two(patch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Rig, Eve]]:
    """Ada's rig, and Eve beside her."""
    eve_key = asyncssh.generate_private_key("ssh-ed25519")
    async with server_of(b"original") as original, a_rig(patch, original, "http") as rig:
        assert rig.admitted is not None
        rig.admitted.keys.add(eve_key.public_data)
        options = {**rig.options, "client_keys": [eve_key], "username": "ada"}  # the name decides nothing
        async with asyncssh.connect(HERE, **options) as connection:
            eve = Eve(connection)
            eve.key = eve_key.get_fingerprint()
            await eve.open()
            try:
                yield rig, eve
            finally:
                await eve.close()


def of(rig: Rig, **changes: Any) -> Spec:
    """What Eve reads in Ada's lease, or something of her own."""
    assert rig.spec is not None
    return replace(rig.spec, **changes)


async def test_nobody_detaches_changes_or_takes_what_is_somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    async with server_of(b"ada") as here, two(monkeypatch) as (rig, eve):
        await rig.attach(Local(here))
        assert await ask(rig) == b"ada"
        mine = of(rig).id
        for message in (
            {"do": "detach", "id": mine},
            {"do": "local", "id": mine, "up": False},
            {"do": "led", "id": mine},
            {"do": "doors", "id": mine, "pods": []},
            {"do": "attach", "spec": of(rig).document()},
        ):
            answer = await eve.say(**message)
            assert "belongs to another key" in answer["error"], message
        assert await ask(rig) == b"ada"


@pytest.mark.parametrize("kind", ["intercept", "wiretap"])
async def test_a_spec_of_ones_own_takes_and_copies_nothing_without_a_lease(
    monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    async with server_of(b"ada") as here, two(monkeypatch) as (rig, eve):
        await rig.attach(Local(here))
        for routes in ((Route((Header("x-eve", Match("exact", "1")),)),), (Route(),)):
            spec = of(rig, id="eve", kind=kind, routes=routes, since="a")
            answer = await eve.say(do="attach", spec=spec.document())
            assert "no lease stands for it" in answer["error"]
        assert await ask(rig, "x-eve: 1\r\n") == b"ada"
        assert not any("requests" in each for each in eve.heard), "nor is anything told of Ada's requests"


async def test_a_lease_is_good_for_its_own_key_and_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    async with server_of(b"ada") as here, two(monkeypatch) as (rig, eve):
        await rig.attach(Local(here))
        held = rig.api.objects[f"{leases('space')}/{lease_name(of(rig))}"]
        assert held["metadata"]["annotations"][OWNER_KEY] == rig.key
        # Ada's laptop sleeps: her session ends, and her lease holds for a while.
        await rig.session.close()
        assert rig.agent is not None
        member = rig.agent._members[of(rig).id]
        await until(lambda: member.silent)
        answer = await eve.say(do="attach", spec=of(rig).document())
        assert "its lease belongs to another key" in answer["error"]
        # A lease of Eve's own, for less than she asks.
        own = of(rig, id="eve", routes=(Route((Header("x-eve", Match("exact", "1")),)),))
        rig.api.put(f"{leases('space')}/{lease_name(own)}", lease(own, key=eve.key))
        answer = await eve.say(do="attach", spec=replace(own, routes=(Route(),)).document())
        assert "its lease is for something else" in answer["error"]
        assert await ask(rig) == b"original"


async def test_who_may_write_leases_alone_gets_nothing_of_a_service_that_others_lead_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with server_of(b"ada") as here, two(monkeypatch) as (rig, eve):
        await rig.attach(Local(here), Route((Header("x-ada", Match("exact", "1")),)))
        own = of(rig, id="eve", fail="closed", routes=(Route((Header("x-eve", Match("exact", "1")),)),))
        rig.api.put(f"{leases('space')}/{lease_name(own)}", lease(own, key=eve.key))
        assert "listeners" in await eve.say(do="attach", spec=own.document())
        assert await ask(rig, "x-eve: 1\r\n") == b"original"
        assert "not name it among its holders" in (await eve.say(do="led", id="eve"))["error"]
        assert not any("requests" in each for each in eve.heard)
        # With the right to change the Service, she is a developer as any other.
        holders = {each.id: each.document() for each in (of(rig), own)}
        rig.api.put(f"{services('space')}/{NAME}", swapped(rig.service, _listeners(rig), holders))
        assert "error" not in await eve.say(do="led", id="eve")
        # Nobody listens at her end, and she has said that no other may answer.
        assert await ask(rig, "x-eve: 1\r\n") != b"original"
        assert await ask(rig, "x-ada: 1\r\n") == b"ada"


async def test_who_may_write_leases_alone_gets_nothing_of_pods_that_have_doors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever elects a leader may write leases. What a door catches is for those who may make Services as well."""
    async with server_of(b"ada") as here, two(monkeypatch) as (rig, eve):
        await rig.attach(Local(here), Route((Header("x-ada", Match("exact", "1")),)))
        agent = rig.agent
        assert agent is not None
        own = of(rig, id="eve", way="pods", routes=(Route((Header("x-eve", Match("exact", "1")),)),))
        rig.api.put(f"{leases('space')}/{lease_name(own)}", lease(own, key=eve.key))
        path = f"{services('space')}/{marker_name(own)}"
        for made in (None, marker(own, rig.key, rig.service), marker(replace(own, hold=1.0), eve.key, rig.service)):
            if made is not None:
                rig.api.put(path, made)
            assert "no Service devloop-eve stands for it" in (await eve.say(do="attach", spec=own.document()))["error"]
        rig.api.put(path, marker(own, eve.key, rig.service))
        assert "error" not in await eve.say(do="attach", spec=own.document())
        agent._members["eve"].targets = {"u0": Target("u0", "web-0", (HERE,), {rig.proxy.port: 8080})}
        assert [each.spec.id for each in agent._pods._members()] == ["eve"]
        rig.api.delete(path)
        await until(lambda: not agent._pods._members())


def _listeners(rig: Rig) -> dict[int, int]:
    from devloop.agent.objects import listeners_of

    return listeners_of(rig.service)


async def test_the_agent_refuses_what_overlaps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async with server_of(b"ada") as here, two(monkeypatch) as (rig, eve):
        await rig.attach(Local(here))
        own = of(rig, id="eve", user="eve")
        rig.api.put(f"{leases('space')}/{lease_name(own)}", lease(own, key=eve.key))
        answer = await eve.say(do="attach", spec=own.document())
        assert "ada@here holds all requests of api (intercept) since now" in answer["error"]
        # One who was taken over holds nothing, though the agent has not seen it yet.
        rig.api.objects.pop(f"{leases('space')}/{lease_name(of(rig))}")
        assert "listeners" in await eve.say(do="attach", spec=own.document())


@pytest.mark.parametrize(
    "change",
    [
        {"id": "../../x"},
        {"service": "../secrets/x"},
        {"workload": "deployment/../../secrets/x?a"},
        {"hold": float("nan")},
        {"hold": 1e9},
        {"ports": {"0": 1}},
        {"ports": {"80": 99999}},
        {"udp": {"0": 1}},
        {"udp": {"53": 99999}},
        {"user": "x" * 10_000},
        {"routes": [{}] * 10_000},
    ],
)
async def test_words_that_no_engine_says_are_refused(monkeypatch: pytest.MonkeyPatch, change: Document) -> None:
    async with server_of(b"ada") as here, two(monkeypatch) as (rig, eve):
        await rig.attach(Local(here))
        assert "error" in await eve.say(do="attach", spec={**of(rig).document(), **change})
        assert await ask(rig) == b"ada"

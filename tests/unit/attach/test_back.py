"""Connections to an original pod that the agent can't make, made by the pod's door."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from devloop.agent import back, door, doors, reach
from devloop.agent.splice import Onward


def free() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


@asynccontextmanager
async def greeter() -> AsyncIterator[int]:
    """An original that speaks first, answers each line in capitals, and ends when the client has."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        while line := await reader.readline():
            writer.write(line.upper())
        writer.write(b"bye\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


class Pod:
    """A door in this process, as the agent knows it."""

    address = "127.0.0.1"

    def __init__(self, port: int) -> None:
        self.door = door.Door(("127.0.0.1", 0), "t", "pod", "devloop_x", ())
        self.door._places[port] = door.Place(port, 1)
        self.asked: list[tuple[int, str]] = []

    def bring(self, port: int, key: str) -> None:
        self.asked.append((port, key))
        self.door._bring(port, key, "127.0.0.1")


@pytest.fixture
async def agent(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[back.Back]:
    port = free()
    monkeypatch.setattr(door, "BACK_PORT", port)
    made = back.Back(port)
    await made.start()
    yield made
    made.close()


async def test_what_either_side_says_first_arrives_and_so_does_its_end(agent: back.Back) -> None:
    async with greeter() as port:
        number = await agent.listen(Pod(port), port)
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", number)
            assert await reader.readline() == b"hello\n"
            writer.write(b"word\n")
            assert await reader.readline() == b"WORD\n"
            writer.write_eof()
            assert await reader.read() == b"bye\n"
            writer.close()
    assert not agent.waiting


async def test_an_original_that_is_down_ends_the_connection(agent: back.Back) -> None:
    number = await agent.listen(Pod(port := free()), port)
    reader, writer = await asyncio.open_connection("127.0.0.1", number)
    with pytest.raises(ConnectionResetError):
        if not await reader.read():
            raise ConnectionResetError
    writer.close()


async def test_a_door_has_one_loopback_port_for_a_port_and_none_once_it_is_gone(agent: back.Back) -> None:
    pod = Pod(8080)
    numbers = await asyncio.gather(*(agent.listen(pod, 8080) for _ in range(3)))
    assert {*numbers, await agent.listen(pod, 8080)} == {numbers[0]}
    coming = asyncio.create_task(agent.listen(pod, 8081))
    agent.forget(pod)
    for number in (numbers[0], await coming):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", number)


async def test_a_port_that_was_not_opened_and_a_key_that_nobody_gave_lead_nowhere(
    agent: back.Back, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(back, "DIAL_SECONDS", 0.05)
    async with greeter() as port:
        pod = Pod(port)
        number = await agent.listen(pod, port + 1 if port < 65535 else port - 1)
        reader, writer = await asyncio.open_connection("127.0.0.1", number)
        with pytest.raises(ConnectionResetError):
            if not await reader.read():
                raise ConnectionResetError
        writer.close()
        # Somebody else knows a key, but does not come from the pod's address; or knows none.
        pod.address = "192.0.2.1"
        loop = asyncio.get_running_loop()
        agent.waiting["k" * 32] = ("192.0.2.1", Onward(), loop.create_future())
        for key in (b"k" * 32, b"x" * 40):
            reader, writer = await asyncio.open_connection("127.0.0.1", agent._port)
            writer.write(key)
            with pytest.raises(ConnectionResetError):
                if not await reader.read():
                    raise ConnectionResetError
            writer.close()


async def test_the_way_back_is_taken_where_the_agent_reaches_no_place_and_as_long(
    agent: back.Back, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = False

    async def reached(_: str, __: int) -> bool:
        return there

    monkeypatch.setattr(reach, "reached", reached)
    known = doors.Door("u", "10.0.0.1", None, None)  # type: ignore[arg-type]
    known.places = {8080: 40001}
    assert known.endpoint(8080) == ("10.0.0.1", 40001) and known.endpoint(9) is None
    await known.reach(agent)
    brought = known.endpoint(8080)
    assert brought is not None and brought[0] == "127.0.0.1" and brought[1] != 40001
    there = True
    await known.reach(agent)
    assert known.endpoint(8080) == brought, "it is looked at when something is new, or when somebody asks"
    await known.reach(agent, again=True)
    assert known.endpoint(8080) == ("10.0.0.1", 40001)


async def test_a_door_has_one_connection_for_datagrams_whoever_asks_for_it() -> None:
    arrived: list[asyncio.StreamWriter] = []
    greeted, gone = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.append(writer)
        if await reader.readline():
            greeted.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        gone.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    made = door.Door(server.sockets[0].getsockname(), "t", "pod", "devloop_x", ())
    await asyncio.gather(*(made._connect_datagrams() for _ in range(3)))
    async with asyncio.timeout(5):
        await greeted.wait()
        assert made._datagrams.connected and len(arrived) == 1
        made._datagrams.close()
        await gone.wait()
    server.close()


async def test_an_agent_that_takes_no_datagrams_does_not_keep_the_kernel_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(door, "BEAT_SECONDS", 0.01)
    made = door.Door(("127.0.0.1", 1), "t", "pod", "devloop_x", ())
    made._datagrams.places[53] = 1
    told = asyncio.Event()
    words: list[str] = []

    async def silent() -> None:
        await asyncio.get_running_loop().create_future()

    async def tell(text: str) -> None:
        words.append(text)
        if len(words) == 3:
            told.set()

    monkeypatch.setattr(made, "_connect_datagrams", silent)
    monkeypatch.setattr(made, "_tell_kernel", tell)
    monkeypatch.setattr(made, "_say", lambda *_, **__: None)
    living = asyncio.create_task(made._live(None))  # type: ignore[arg-type]
    async with asyncio.timeout(1):
        await told.wait()
    for task in (living, made._connects):
        assert task is not None
        task.cancel()
    await asyncio.gather(living, made._connects, return_exceptions=True)  # type: ignore[arg-type]


async def test_an_agent_that_is_kept_from_the_door_costs_one_connection_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(door, "DIAL_SECONDS", 0.3)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # with its queue full the kernel drops a SYN, as a policy does
        waiting = []
        for _ in range(2):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(full.getsockname())
        async with greeter() as port:
            made = door.Door(("127.0.0.1", 1), "t", "pod", "devloop_x", ())
            made._caught = {port: full.getsockname()[1]}
            place = door.Place(port)
            server = await asyncio.get_running_loop().create_server(lambda: made._came(place), "127.0.0.1", 0)
            times = []
            for _ in range(3):
                began = asyncio.get_running_loop().time()
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                assert await reader.readline() == b"hello\n", "the original answers"
                times.append(asyncio.get_running_loop().time() - began >= 0.3)
                writer.write_eof()
                assert await reader.read() == b"bye\n"
                writer.close()
            assert times == [True, False, False]
            server.close()
        for each in waiting:
            each.close()


async def test_who_shows_no_key_makes_room_and_is_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one policy for strangers: a crowd that says nothing keeps nobody out, and does not stay."""
    monkeypatch.setattr(back, "SHOW_SECONDS", 0.2)
    monkeypatch.setattr(back, "STRANGERS_EACH", 8)
    agent = back.Back(port := free())
    await agent.start()
    try:
        crowd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(30)]
        assert len(agent.strangers) <= 8
        arrived, onward = asyncio.get_running_loop().create_future(), Onward()
        agent.waiting["k" * 32] = ("127.0.0.1", onward, arrived)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"k" * 32)
        async with asyncio.timeout(5):
            await arrived
            for reader, _ in crowd:
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
        assert len(agent.strangers) == 0
        onward.transport.abort()
        writer.close()
        for _, each in crowd:
            each.close()
    finally:
        agent.close()


async def test_a_way_back_that_can_not_be_listened_for_cuts_off_its_own_port_until_it_can(
    agent: back.Back, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def reached(*_: object) -> bool:
        return False

    async def full(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(reach, "reached", reached)
    known = doors.Door("u", "10.0.0.1", None, None)  # type: ignore[arg-type]
    known.places = {8080: 40001}
    with monkeypatch.context() as patch:
        patch.setattr(back.Back, "listen", full)
        await known.reach(agent)
    assert known.endpoint(8080) is None and "Too many open files" in known.cut_off[8080]
    await known.reach(agent)
    assert known.endpoint(8080) is not None and not known.cut_off


async def test_a_kernel_without_tproxy_refuses_datagrams_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    made = door.Door(("127.0.0.1", 1), "t", "pod", "devloop_x", ())
    words: list[str] = []

    async def place(port: int) -> door.Place:
        return door.Place(port, 40000 + port)

    async def connected() -> None:
        pass

    async def tell(text: str) -> None:
        if "tproxy" in text:
            raise door.DoorError("No such file or directory")
        words.append(text)

    monkeypatch.setattr(made, "_place", place)
    monkeypatch.setattr(made, "_tell_kernel", tell)
    monkeypatch.setattr(made, "_connect_datagrams", connected)
    monkeypatch.setattr(made._datagrams, "place", lambda port: made._datagrams.places.update({port: 1}))
    for _ in range(2):
        with pytest.raises(door.DoorError, match="UDP takes TPROXY"):
            await made._do({"open": [], "udp": [53]})
        assert await made._do({"open": [80]}) == {"places": {"80": 40080}}
    assert "redirect to :40080" in words[-2], "the rules, and then what is open now"


async def test_what_the_kernel_refuses_for_a_moment_changes_nothing_of_what_it_is_known_to_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = door.Door(("127.0.0.1", 1), "t", "pod", "devloop_x", ())
    full = False

    async def place(port: int) -> door.Place:
        return door.Place(port, 40000 + port)

    async def tell(text: str) -> None:
        if full:
            raise door.DoorError("nft has not answered in 5 s")

    monkeypatch.setattr(made, "_place", place)
    monkeypatch.setattr(made, "_tell_kernel", tell)
    await made._do({"open": [80]})
    full = True
    with pytest.raises(door.DoorError, match="5 s"):
        await made._do({"open": [81]})
    assert made._transparent is True

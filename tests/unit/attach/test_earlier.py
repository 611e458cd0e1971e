"""Connections from before are counted by client, or it is said why they can't be."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from devloop.agent.mover import Plan
from devloop.agent.request_rate import Compared
from devloop.agent.spec import Spec
from devloop.attach.attachment import Attachment
from devloop.attach.earlier import COUNTING, Earlier, Past
from devloop.attach.moving import Mover
from devloop.attach.seam import AttachError, Wanted
from devloop.errors import RemoteError
from devloop.remote.kubernetes.api import ApiError, ApiUnreachableError
from tests.waiting import until

from .fake_api import service
from .fake_pods import FakePods

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def table(*clients: str, port: int = 8080) -> bytes:
    """Of a pod that these are connected to."""
    lines = [
        f"{number}: 0100000A:{port:04X} {struct.unpack('<I', IPv4Address(each).packed)[0]:08X}:C35{number:X} 01 "
        f"00000000:00000000 00:00000000 00000000 1000 0 8{number} 1 0 20 4 30 10 -1\n"
        for number, each in enumerate(clients)
    ]
    return (HEAD + "".join(lines)).encode()


class Pods(FakePods):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.printed: dict[str, bytes] = {}
        """By the prefix of a container's name, what it has printed; one that is not there may not be read."""

    async def stream(self, path: str, **query: str) -> AsyncIterator[bytes]:
        for prefix, text in self.printed.items():
            if query["container"].startswith(prefix):
                yield text
                return
        raise ApiError(403, "", "pods/log is forbidden", where="here")

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        if "fieldSelector" in query:
            address = query["fieldSelector"].partition("=")[2]
            items = [each for each in self.pods.values() if each["status"]["podIPs"][0]["ip"] == address]
            return {"items": items}
        found = await super().get(path, **query)
        if "app=web" in query.get("labelSelector", ""):
            found["items"] = [each for each in found["items"] if each["metadata"]["name"].startswith("web")]
        return found


class Rig:
    def __init__(self) -> None:
        ports = [{"name": "http", "port": 80, "targetPort": "http"}]
        web = service("web", selector={"app": "web"}, ports=ports)
        self.api = Pods(web, "web-0", "web-1", "front-5")
        for each in self.api.pods.values():
            each["spec"]["containers"][0]["name"] = "main"
        self.tables = {"web-0": table(), "web-1": table()}
        self.has = "cat"
        self.refuses = ""
        self.ran: list[tuple[str, str]] = []
        self.earlier = Earlier(self.api, self, self.run, self.ask)  # type: ignore[arg-type]
        self.told = 0
        self.past_doors: dict[str, Past] | Exception = {}
        spec = Spec("a", "ada", "laptop", "intercept", "now", service="web", ports={80: 1})
        self.found = Attachment(spec, Wanted("intercept", "web"), None, self.tell)  # type: ignore[arg-type]

    def tell(self, _: Attachment) -> None:
        self.told += 1

    async def service(self, name: str) -> dict[str, Any] | None:
        return await self.api.find(name)

    async def ask(self, _: str) -> dict[str, Past]:
        if isinstance(self.past_doors, Exception):
            raise self.past_doors
        return self.past_doors

    async def run(self, pod: str, container: str, command: Sequence[str]) -> bytes:
        if self.refuses:
            raise RemoteError(self.refuses)
        self.ran.append((pod, command[0]))
        return self.tables[pod] if command[0] == self.has else b""


async def test_clients_are_named_and_the_agent_and_the_node_are_none() -> None:
    rig = Rig()
    rig.tables["web-0"] = table("10.0.0.6", "10.0.0.6", "10.0.0.9", "192.168.0.1", "10.9.9.9")
    rig.tables["web-1"] = table("10.0.0.6", "127.0.0.1")
    await rig.earlier.look(rig.found)
    assert rig.found.earlier == (("front-5", 3), ("10.9.9.9", 1))
    assert rig.found.uncounted == ""
    assert rig.told == 1
    await rig.earlier.look(rig.found)
    assert rig.told == 1
    rig.tables["web-0"] = table(port=9999)
    rig.tables["web-1"] = table()
    await rig.earlier.look(rig.found)
    assert rig.found.earlier == ()


async def test_a_client_is_known_by_its_second_address_which_nobody_can_select_by() -> None:
    rig = Rig()
    rig.api.pods["front-5"]["status"]["podIPs"] += [{"ip": "fd00::9"}]
    assert await rig.earlier._name("fd00::9") == "front-5"
    assert await rig.earlier._name("fd00::10") == "fd00::10"


def counted(at: float, *packets: int, client: str = "10.0.0.6") -> bytes:
    """As `ss` prints it, of the connections of `table(client, …)`."""
    lines = [
        f"0 0 10.0.0.1:8080 {client}:{0xC350 + number} ino:8{number} sk:{number}\n"
        f"\t data_segs_out:{each} data_segs_in:{each}\n"
        for number, each in enumerate(packets)
    ]
    return f"uptime {at}\n{''.join(lines)}".encode()


async def test_two_looks_tell_how_many_requests_they_carry() -> None:
    rig = Rig()
    rig.has = "sh"
    two = table("10.0.0.6", "10.0.0.6")

    async def looked(*, one: bytes, other: bytes) -> float | None:
        rig.tables = {"web-0": one, "web-1": other}
        await rig.earlier.look(rig.found)
        assert rig.found.uncounted == ""
        return rig.found.earlier_rate

    assert await looked(one=two + counted(100, 10, 50), other=table() + counted(500)) is None
    assert await looked(one=two + counted(102, 20, 54), other=table() + counted(502)) == 7
    told = rig.told
    assert await looked(one=two + counted(104, 30, 58), other=table() + counted(504)) == 7
    assert rig.told == told
    assert await looked(one=two + counted(106, 30, 58), other=table() + counted(506)) == 0
    assert rig.told == told + 1
    # Of one that has come in the other pod nothing is known yet, so nothing is said of all.
    new = table("10.0.0.6")
    assert await looked(one=two + counted(108, 30, 58), other=new + counted(508, 10**9)) is None
    assert await looked(one=two + counted(110, 30, 58), other=new + counted(510, 10**9 + 4)) == 2
    # An image that prints the tables alone.
    assert await looked(one=two, other=new + counted(512, 10**9 + 8)) is None
    assert sum(number for _, number in rig.found.earlier) == 3
    assert await looked(one=table(), other=table()) == 0
    assert {command for _, command in rig.ran} == {"sh"}, "one command a look"


async def test_what_was_seen_of_an_attachment_is_forgotten_with_it() -> None:
    rig = Rig()
    rig.has = "sh"
    rig.tables["web-0"] = table("10.0.0.6") + counted(100, 10)
    watching = asyncio.create_task(rig.earlier.watching(rig.found))
    await asyncio.wait_for(rig.found.looked.wait(), 5)
    assert rig.earlier._rates
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert not rig.earlier._rates


async def test_who_has_connected_while_the_service_led_elsewhere_is_counted_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("devloop.attach.earlier.SETTLE_SECONDS", 0.0)
    rig = Rig()
    looks: list[str] = []

    async def look(found: Attachment) -> None:
        looks.append(found.spec.service)

    monkeypatch.setattr(rig.earlier, "look", look)
    watching = asyncio.create_task(rig.earlier.watching(rig.found))
    try:
        await until(lambda: len(looks) == 2)  # nodes hear a moment later where it leads
        rig.found.look_again.set()  # it is made anew
        await until(lambda: len(looks) == 4)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_the_command_that_an_image_has_is_found_once() -> None:
    rig = Rig()
    rig.has = "python3"
    await rig.earlier.look(rig.found)
    assert rig.ran[-1][1] == "python3"
    rig.ran.clear()
    await rig.earlier.look(rig.found)
    assert sorted(rig.ran) == [("web-0", "python3"), ("web-1", "python3")]


@pytest.mark.parametrize("why", ["right", "tool", "node"])
async def test_what_is_not_known_is_said(why: str) -> None:
    rig = Rig()
    if why == "right":
        rig.refuses, words = "no command may be run in pods", "no command may be run in pods"
    elif why == "tool":
        rig.has, words = "", "has none of sh, cat, busybox, python3, node"
    else:
        rig.api.pods["web-0"]["spec"]["hostNetwork"] = True
        words = "pod web-0 has the network of its node"
    await rig.earlier.look(rig.found)
    assert words in rig.found.uncounted
    assert rig.found.earlier == ()


async def test_none_is_said_only_when_it_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.found.uncounted = COUNTING  # as `Attachments.attach` begins

    async def fails(*_: object) -> bytes:
        raise TimeoutError

    monkeypatch.setattr(rig.earlier, "_run", fails)
    await rig.earlier.look(rig.found)
    assert rig.found.uncounted == "the cluster did not answer"
    rig.found.looked.set()
    await rig.earlier.look(rig.found)
    assert rig.found.uncounted == "the cluster did not answer"
    monkeypatch.setattr(rig.earlier, "_run", rig.run)
    rig.tables["web-0"] = table("10.0.0.6")
    await rig.earlier.look(rig.found)
    assert (rig.found.earlier, rig.found.uncounted) == ((("front-5", 1),), "")
    monkeypatch.setattr(rig.earlier, "_run", fails)
    rig.found.earlier_rate = 5.0
    await rig.earlier.look(rig.found)  # a moment's trouble
    assert (rig.found.earlier, rig.found.uncounted) == ((("front-5", 1),), "")
    assert rig.found.earlier_rate is None, "it is not known what they carry now"


async def test_what_a_pod_prints_stops_nothing() -> None:
    rig = Rig()
    rig.tables["web-0"] = table() + b"eth0 00000000 FFFFFFFFFFFFFFFF 0003 0 0 0 00000000 0 0 0\n"
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    await rig.earlier.look(rig.found)
    assert "can't be counted" in rig.found.uncounted and told
    rig.tables["web-0"] = table("10.0.0.6")
    await rig.earlier.look(rig.found)
    assert (rig.found.earlier, rig.found.uncounted) == ((("front-5", 1),), "")


async def test_those_who_are_too_many_to_be_named_are_counted() -> None:
    assert await Rig().earlier.named({"10.0.0.6": 2, "": 7}) == (("others", 7), ("front-5", 2))


async def test_in_the_pods_the_doors_are_asked() -> None:
    rig = Rig()
    rig.found.spec = replace(rig.found.spec, way="pods")
    rig.past_doors = {"uid-web-0": Past({"10.0.0.6": 2, "10.0.0.9": 1}), "uid-web-1": Past({})}
    await rig.earlier.look(rig.found)
    assert (rig.found.earlier, rig.found.uncounted) == ((("front-5", 2),), "")
    assert rig.found.leads_to == {"uid-web-0"}
    assert rig.ran == [], "nothing is run in its pods"
    assert rig.found.earlier_rate is None
    rig.past_doors["uid-web-0"] = replace(rig.past_doors["uid-web-0"], compared=Compared(12, 2, 2))
    await rig.earlier.look(rig.found)
    assert rig.found.earlier_rate == 12
    rig.past_doors = AttachError("pod web-0 has no door that could count them", where="here")
    await rig.earlier.look(rig.found)
    assert rig.found.uncounted == "pod web-0 has no door that could count them"
    assert not rig.found.earlier


@pytest.mark.parametrize("read", [True, False])
async def test_what_moves_connections_is_read_while_it_goes_on(monkeypatch: pytest.MonkeyPatch, read: bool) -> None:
    """It stays for what is under way on those that it has moved; where it can't be read, it moves idle ones alone."""
    rig = Rig()
    rig.tables["web-0"] = table("10.0.0.6")
    said = b'{"ended": 34, "left": {}, "why": ""}'
    rig.api.printed = {"main": b".", "devloop-mover-": said + b"\n"} if read else {}
    plans: list[Plan] = []

    async def request(method: str, path: str, body: Any = None, **_: Any) -> dict[str, Any]:
        (made,) = body["spec"]["ephemeralContainers"]
        plans.append(Plan.read(made["env"][0]["value"]))
        state: dict[str, Any] = {"running": {}} if read else {"terminated": {"message": said.decode()}}
        statuses = rig.api.pods["web-0"]["status"]
        statuses["ephemeralContainerStatuses"] = [{"name": made["name"], "state": state}]
        return {}

    async def find(path: str) -> dict[str, Any] | None:
        return rig.api.pods.get(path.rpartition("/")[2], rig.api.service)

    monkeypatch.setattr(rig.api, "request", request)
    monkeypatch.setattr(rig.api, "find", find)
    moved = await Mover(rig.api, rig.earlier).move(rig.found, force=False)  # type: ignore[arg-type]
    assert (moved.ended, moved.left) == (34, ())
    assert [each.take for each in plans] == [read, read]
    assert bool(moved.notes) is not read
    if not read:
        assert "get pods/log" in moved.notes[0]


@pytest.mark.parametrize("status", [404, 409])
async def test_a_pod_that_goes_while_connections_are_moved_keeps_nobody(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    rig = Rig()
    rig.tables["web-0"] = rig.tables["web-1"] = table("10.0.0.6")
    put: list[str] = []

    async def request(method: str, path: str, body: Any = None, **_: Any) -> dict[str, Any]:
        name = path.split("/")[-2]
        if name == "web-0":
            raise ApiError(status, "", "it has gone", where="here")
        (made,) = body["spec"]["ephemeralContainers"]
        put.append(made["name"])
        over = {"terminated": {"message": '{"ended": 1, "left": {"10.0.0.6": 1}}'}}
        rig.api.pods[name]["status"]["ephemeralContainerStatuses"] = [{"name": made["name"], "state": over}]
        return {}

    async def find(path: str) -> dict[str, Any] | None:
        name = path.rpartition("/")[2]
        if name == "web-0":
            return None
        return rig.api.pods.get(name, rig.api.service)

    monkeypatch.setattr(rig.api, "request", request)
    monkeypatch.setattr(rig.api, "find", find)
    moved = await Mover(rig.api, rig.earlier).move(rig.found, force=False)  # type: ignore[arg-type]
    assert (moved.ended, moved.left) == (1, (("front-5", 1),))
    assert len(put) == 2, "once dry, once in earnest"


async def test_a_mover_that_says_nothing_ends_a_move_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs, prints nothing, and what it prints breaks off: as a pod whose node is gone."""
    monkeypatch.setattr("devloop.attach.moving.START_SECONDS", 0.3)
    monkeypatch.setattr("devloop.attach.moving.MOVE_SECONDS", 0.0)
    rig = Rig()
    rig.tables["web-0"] = table("10.0.0.6")
    rig.api.printed = {"main": b"."}
    broken = 0

    async def request(method: str, path: str, body: Any = None, **_: Any) -> dict[str, Any]:
        (made,) = body["spec"]["ephemeralContainers"]
        statuses = rig.api.pods["web-0"]["status"]
        statuses["ephemeralContainerStatuses"] = [{"name": made["name"], "state": {"running": {}}}]
        return {}

    async def find(path: str) -> dict[str, Any] | None:
        return rig.api.pods.get(path.rpartition("/")[2], rig.api.service)

    async def stream(path: str, *, container: str, **_: str) -> Any:
        nonlocal broken
        if container != "main":
            broken += 1
            if broken < 3:
                raise ApiUnreachableError("the API server can't be reached", where="here")
            await asyncio.Event().wait()
        yield b"."

    monkeypatch.setattr(rig.api, "request", request)
    monkeypatch.setattr(rig.api, "find", find)
    monkeypatch.setattr(rig.api, "stream", stream)
    with pytest.raises(RemoteError, match="pod web-0: what ends connections there has not ended itself in time"):
        await Mover(rig.api, rig.earlier).move(rig.found, force=False)  # type: ignore[arg-type]
    assert broken == 3

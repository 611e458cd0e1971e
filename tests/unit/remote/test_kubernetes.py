"""What is read from objects: the agent's pod, rights, SPDY's frames."""

from __future__ import annotations

import asyncio
import re
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from devloop.agent import keys
from devloop.remote.kubernetes.api import BUSY_TRIES, Api, ApiError
from devloop.remote.kubernetes.identity import identity
from devloop.remote.kubernetes.install import AgentPod, fitting, pod_manifest
from devloop.remote.kubernetes.podstate import ended, made_by_devloop, progress, running
from devloop.remote.kubernetes.rights import NEEDS
from devloop.remote.kubernetes.spdy import DICTIONARY, Connection, StreamResetError
from devloop.remote.roles import Role

MANIFESTS = Path(__file__).parents[3] / "devloop" / "remote" / "manifests"


@pytest.mark.parametrize("role", Role)
def test_the_rights_that_are_asked_for_are_those_of_the_role(role: Role) -> None:
    made, binding = yaml.safe_load_all((MANIFESTS / f"role-{role}.yaml").read_text())
    assert made["metadata"]["name"] == binding["metadata"]["name"] == binding["roleRef"]["name"] == role.object_name
    granted = {
        (group, resource, verb, name)
        for rule in made["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }
    asked = {
        (group, resource, verb, name)
        for need in NEEDS
        if need.role is role
        for group, resource, verbs, name in need.rights
        for verb in verbs
    }
    assert asked == granted
    # Each line has its reason, what its lack costs and what it lets somebody do; a comment stands before it.
    text = (MANIFESTS / f"role-{role}.yaml").read_text().partition("\nrules:\n")[2].partition("\n---\n")[0]
    reasons = [each for each in re.split(r"(?m)^(?!#).*\n?", text) if each.strip()]
    told = [each for each in reasons if "To be removed" not in each]
    assert told and all("Without:" in each and "Who is malicious:" in each for each in told), told


def test_a_developers_key_is_made_once_and_is_theirs_alone(tmp_path: Path) -> None:
    file = tmp_path / "state" / "agent_key"
    first, second = identity(file), identity(file)
    assert first.key.public_data == second.key.public_data
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(file.parent.iterdir()) == [file]
    entry = keys.entry(first.key.public_data, keys.new_suffix(), first.name, "devloop-agent", "uid")
    # DNS-1123 subdomain (Kubernetes' rule for names of objects).
    assert re.fullmatch(r"[a-z0-9][-a-z0-9]{0,251}[a-z0-9]", entry["metadata"]["name"])
    assert keys.fingerprint(entry["metadata"]["name"]) == first.key.get_fingerprint()
    assert keys.is_entry(entry["metadata"])
    assert entry["immutable"] and "PRIVATE" not in str(entry)


@pytest.mark.parametrize(
    ("user", "suffix"),
    [
        ("ada@laptop/0123456789abcdef", "0123456789abcdef"),
        ("a/b/c/0123456789abcdef", "0123456789abcdef"),
        ("/0123456789abcdef", "0123456789abcdef"),
        ("ada\nben/0123456789abcdef", "0123456789abcdef"),
        ("0123456789abcdef", ""),
        ("ada/0123456789ABCDEF", ""),
        ("ada/0123456789abcdef\n", ""),
        ("ada/0123456789abcdef/", ""),
        ("ada/../x", ""),
        ("", ""),
    ],
)
def test_which_entry_a_user_name_is_about(user: str, suffix: str) -> None:
    assert keys.suffix_of(user) == suffix
    assert keys.suffix_of(keys.user(user, "0" * 16)) == "0" * 16


def pod(*states: dict[str, Any], deleted: bool = False, phase: str = "Pending") -> dict[str, Any]:
    made = pod_manifest("registry/agent:2", 30)
    made["metadata"] |= {"deletionTimestamp": "now"} if deleted else {}
    made["status"] = {"phase": phase, "containerStatuses": [{"state": each} for each in states]}
    return made


def test_how_far_an_agents_pod_is() -> None:
    assert running(pod({"running": {}}))
    assert not running(pod({"running": {}}, deleted=True))
    beside = pod({"running": {}}, {"waiting": {"reason": "ContainerCreating"}})
    runs, waits = beside["status"]["containerStatuses"]
    for runs["name"], waits["name"] in (("agent", "envoy"), ("envoy", "agent")):
        assert running(beside) is (runs["name"] == "agent"), "the SSH server's is the one that is waited for"
    assert ended(pod({"running": {}}, deleted=True))
    assert ended(pod(phase="Failed"))
    assert progress(pod({"waiting": {"reason": "ContainerCreating"}})) == ("ContainerCreating", False)
    what, stuck = progress(pod({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling x"}}))
    assert stuck
    assert "Back-off pulling x" in what
    ending = pod({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}})
    ended_with = {"terminated": {"message": "a traceback\ndevloop agent: it may not\n"}}
    ending["status"]["containerStatuses"][0]["lastState"] = ended_with
    assert progress(ending) == ("it ends again and again (devloop agent: it may not)", True)
    unscheduled = pod()
    unscheduled["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}
    ]
    assert progress(unscheduled) == ("0/1 nodes are available", False)


def test_an_administrators_agent_is_left_alone() -> None:
    assert made_by_devloop(pod())
    owned = pod()
    owned["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet"}]
    assert not made_by_devloop(owned)
    staying = pod_manifest(linger=0)
    assert not made_by_devloop(staying)


class FakeSocket:
    """The far end of a SPDY connection: understands what is written, and answers."""

    def __init__(self) -> None:
        self.inflate = zlib.decompressobj(zdict=DICTIONARY)
        self.deflate = zlib.compressobj(zdict=DICTIONARY)
        self.frames: list[tuple[int, int, bytes]] = []
        self.receiver: Any = None
        self.reading = True
        self.full = False
        self.written = b""

    def start(self, receiver: Any) -> None:
        self.receiver = receiver

    def write(self, data: bytes) -> None:
        self.written += data
        while len(self.written) >= 8:
            word, size = struct.unpack(">II", self.written[:8])
            if len(self.written) < 8 + (size & 0xFFFFFF):
                return
            body = self.written[8 : 8 + (size & 0xFFFFFF)]
            self.written = self.written[8 + (size & 0xFFFFFF) :]
            if word == 0x8003_0001:
                headers = self.inflate.decompress(body[10:])
                body = body[:4] + headers
            self.frames.append((word, size >> 24, body))

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None: ...

    def reply(self, number: int) -> None:
        body = struct.pack(">I", number) + self.deflate.compress(struct.pack(">I", 0))
        body += self.deflate.flush(zlib.Z_SYNC_FLUSH)
        self.say(0x8003_0002, 0, body)

    def say(self, word: int, flags: int, body: bytes) -> None:
        self.receiver.received(memoryview(struct.pack(">II", word, flags << 24 | len(body)) + body), True)
        self.receiver.read()


class Heard(asyncio.Protocol):
    def __init__(self) -> None:
        self.events: list[Any] = []

    def data_received(self, data: bytes) -> None:
        self.events.append(data)

    def eof_received(self) -> bool:
        self.events.append("eof")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append(exc)


async def opened(half_close: bool = True) -> tuple[Connection, FakeSocket, Any, Heard]:
    socket: Any = FakeSocket()
    connection = Connection(socket, "web-1", lambda *_: None, half_close=half_close)
    task = asyncio.create_task(connection.open(Heard, 8080))
    await asyncio.sleep(0)
    assert [frame[0] for frame in socket.frames] == [0x8003_0001, 0x8003_0001]
    assert b"streamtype\x00\x00\x00\x05error" in socket.frames[0][2]
    assert socket.frames[0][1] == 1  # nothing is said on the error stream
    assert b"8080" in socket.frames[1][2]
    socket.reply(1)
    socket.reply(3)
    stream, heard = await task
    socket.frames.clear()
    return connection, socket, stream, heard


async def test_a_conversation_over_spdy() -> None:
    connection, socket, stream, heard = await opened()
    stream.write(b"x" * 100_000)
    assert b"".join(frame[2] for frame in socket.frames) == b"x" * 100_000
    assert max(len(frame[2]) for frame in socket.frames) == 32 * 1024
    socket.say(3, 0, b"answer")
    stream.write_eof()
    assert socket.frames[-1] == (3, 1, b"")
    socket.say(3, 1, b"last")
    await asyncio.sleep(0)
    assert heard.events == [b"answer", b"last", None]
    assert connection.load == 0


@pytest.mark.parametrize("size", [1, 7, 8, 9, 20, 1000])
async def test_frames_come_in_pieces_of_any_size(size: int) -> None:
    connection, socket, _, heard = await opened()
    second = asyncio.create_task(connection.open(Heard, 8081))
    await asyncio.sleep(0)
    socket.reply(7)
    _, other = await second
    one, two = 3, 7
    ping = struct.pack(">III", 0x8003_0006, 4, 2)
    frames = [(one, b"first"), (one, b"second"), (two, b"other"), (one, b""), (one, b"x" * 50), (two, b"more")]
    said = b"".join(struct.pack(">II", number, len(body)) + body + ping for number, body in frames)
    said += struct.pack(">II", one, 1 << 24 | 3) + b"end" + struct.pack(">II", two, 1 << 24)
    for at in range(0, len(said), size):
        connection.received(memoryview(bytearray(said[at : at + size])), False)
        connection.read()
    assert b"".join(heard.events[:-1]) == b"firstsecond" + b"x" * 50 + b"end"
    assert b"".join(other.events[:-1]) == b"othermore"
    assert heard.events[-1] == other.events[-1] == "eof"
    assert socket.frames.count((0x8003_0006, 0, struct.pack(">I", 2))) == len(frames)


async def test_what_was_read_at_once_is_handed_on_together() -> None:
    connection, _, _, heard = await opened()
    for _ in range(3):
        connection.received(memoryview(struct.pack(">II", 3, 4) + b"four"), True)
    assert not heard.events
    connection.read()
    assert heard.events == [b"four" * 3]


async def test_where_a_half_close_would_end_all_it_is_not_said() -> None:
    _, socket, stream, _ = await opened(half_close=False)
    stream.write_eof()
    assert socket.frames == []


async def test_why_the_kubelet_could_not_connect() -> None:
    _, socket, _, heard = await opened()
    socket.say(1, 0, b"error forwarding port 8080: connection refused")
    socket.say(0x8003_0003, 0, struct.pack(">II", 3, 5))
    await asyncio.sleep(0)
    (problem,) = heard.events
    assert isinstance(problem, StreamResetError)
    assert "connection refused" in str(problem)


async def test_a_stream_that_is_not_read_stops_the_websocket_until_it_is() -> None:
    connection, socket, stream, heard = await opened()
    stream.pause_reading()
    for _ in range(33):
        socket.say(3, 0, bytes(32 * 1024))
    assert not socket.reading
    assert not connection.usable
    stream.resume_reading()
    assert socket.reading
    assert len(heard.events) == 33


async def test_a_lost_websocket_ends_every_stream() -> None:
    connection, _, _, heard = await opened()
    connection.lost("gone")
    assert isinstance(heard.events[0], StreamResetError)
    with pytest.raises(StreamResetError):
        waiting = asyncio.create_task(connection.open(Heard, 1))
        await asyncio.sleep(0)
        connection.lost("gone")
        await waiting


QUOTA = 'pods "devloop-agent" is forbidden: failed quota: compute: must specify '


@pytest.mark.parametrize(
    ("missed", "limits", "requests"),
    [
        ("limits.cpu for: agent,envoy", {"cpu": "500m"}, {}),
        ("limits.cpu,requests.ephemeral-storage", {"cpu": "500m"}, {"ephemeral-storage": "32Mi"}),
        (
            "limits.cpu for: agent,envoy; limits.ephemeral-storage for: agent,envoy",
            {"cpu": "500m", "ephemeral-storage": "128Mi"},
            {},
        ),
    ],
)
def test_the_agent_says_what_a_resource_quota_wants_to_be_said(
    missed: str, limits: dict[str, str], requests: dict[str, str]
) -> None:
    before = pod_manifest()
    found = fitting(before, QUOTA + missed)
    assert [each["name"] for each in found["spec"]["containers"]] == ["agent", "envoy"]
    for container, old in zip(found["spec"]["containers"], before["spec"]["containers"], strict=True):
        assert container["resources"]["limits"] == {**old["resources"]["limits"], **limits}
        assert container["resources"]["requests"] == {**old["resources"]["requests"], **requests}
    # What it has said already is not the reason; nor is a quota that is used up.
    assert fitting(found, QUOTA + missed) == found
    assert fitting(before, "exceeded quota: compute, requested: limits.cpu=1, used: 4, limited: 4") == before


async def test_a_pod_that_a_resource_quota_refuses_is_made_with_limits() -> None:
    asked: list[Any] = []

    class Quota:
        namespace, where = "shop", "test"

        async def request(self, method: str, path: str, body: Any = None, **_: Any) -> Any:
            asked.append(body)
            if any("cpu" not in each["resources"]["limits"] for each in body["spec"]["containers"]):
                raise ApiError(403, "Forbidden", QUOTA + "limits.cpu for: agent", where="test")
            return body

    made = await AgentPod(cast(Any, Quota())).create(pod_manifest())
    assert made is not None and len(asked) == 2
    assert [each["resources"]["limits"]["cpu"] for each in made["spec"]["containers"]] == ["500m", "500m"]


class Answer:
    """Of aiohttp's, as far as `Api` reads it."""

    def __init__(self, status: int, **headers: str) -> None:
        self.status, self.headers, self.reason, self.released = status, headers, "", False

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def release(self) -> None:
        self.released = True

    @property
    def content(self) -> Answer:
        return self

    async def iter_any(self) -> AsyncIterator[bytes]:
        yield b'{"message": "too many"}' if self.status == 429 else b'{"kind": "Service"}'


@pytest.mark.parametrize("busy", [1, BUSY_TRIES - 1, BUSY_TRIES])
async def test_a_server_that_has_too_much_to_do_is_asked_again(monkeypatch: pytest.MonkeyPatch, busy: int) -> None:
    answers = [Answer(429, **{"Retry-After": "0"}) for _ in range(busy)] + [Answer(201)]
    asked: list[str] = []
    api = object.__new__(Api)
    api.where = "here"

    async def send(method: str, path: str, **_: Any) -> Any:
        asked.append(method)
        return answers[len(asked) - 1]

    monkeypatch.setattr(api, "_send", send)
    if busy < BUSY_TRIES:
        assert await api.request("POST", "/services", {}) == {"kind": "Service"}
        assert all(each.released for each in answers[:busy])
    else:
        with pytest.raises(ApiError, match="too many"):
            await api.request("POST", "/services", {})
    assert len(asked) == min(busy + 1, BUSY_TRIES)

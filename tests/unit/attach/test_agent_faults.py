"""What goes wrong around the agent for a moment is over after that moment."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.message import Message
from http.client import IncompleteRead
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import parse_qs

import pytest

from devloop.agent import attachments, envoy, kube
from devloop.agent.attachments import Attachments
from devloop.agent.certificates import Termination
from devloop.agent.desk import ASIDE, LINE_BYTES, MESSAGES, QUEUED_BYTES, UNREAD_BYTES, Desk
from devloop.agent.doors import Door, DoorLostError
from devloop.agent.gateway import Gateway, RejectedError
from devloop.agent.member import Member
from devloop.agent.objects import lease, lease_name, swapped
from devloop.agent.plan import PortPlan, ServicePlan
from devloop.agent.spec import Spec
from devloop.agent.uplink import _Pod
from devloop.agent.view import NotNowError, RefusedError
from devloop.attach.seam import AttachError
from devloop.attach.session import Session
from devloop.errors import RemoteError

from .fake_api import service

Document = dict[str, Any]
SPEC = Spec("one", "ada", "h", "intercept", "now", "api", {80: 8080, 81: 8081})


class Api:
    """`ClusterApi`: each watch ends with what `ends` has for it, then there are no more words."""

    namespace = "space"

    def __init__(self, *items: Document) -> None:
        self.items = list(items)
        self.ends: list[Exception] = []
        self.calls: list[str] = []
        self.fails: list[Exception] = []
        self.over = False
        self.watched: list[tuple[str, float]] = []

    def call(self, method: str, path: str, body: object = None) -> Document:
        self.calls.append(f"{method} {path.partition('?')[0].rpartition('/')[2]}")
        if self.fails:
            raise self.fails.pop(0)
        if path.partition("?")[0].endswith(("/services", "/leases")):
            return {"items": self.items, "metadata": {"resourceVersion": "1"}}
        for each in self.items:
            if path.endswith(f"/{each['metadata']['name']}"):
                return each
        raise error(404)

    def lines(self, path: str, silence: float) -> Iterator[bytes]:
        self.watched.append((path, silence))
        if "allowWatchBookmarks" in path:
            yield b'{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}}'
        yield json.dumps({"type": "ADDED", "object": {"metadata": {"name": f"seen-{len(self.calls)}"}}}).encode()
        if self.ends:
            raise self.ends.pop(0)
        while not self.over:
            time.sleep(0.01)


def error(status: int) -> urllib.error.HTTPError:
    return urllib.error.HTTPError("", status, "trouble", Message(), None)


async def until(there: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not there():  # noqa: ASYNC110 (a thread's doing)
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("problem", [IncompleteRead(b""), ConnectionResetError(), TypeError("no document")])
async def test_a_watch_goes_on_however_it_was_cut(problem: Exception) -> None:
    api = Api(service())
    api.ends = [problem]
    found = kube.Watched(cast(Any, api), "/services", lambda: None)
    try:
        await until(lambda: "seen-2" in found.objects)
    finally:
        api.over = True
        found.close()


async def test_a_watch_is_blind_for_90_seconds_at_most() -> None:
    """After a silent loss of its connection: the API server ends it before that in any case."""
    api = Api(service())
    found = kube.Watched(cast(Any, api), "/services", lambda: None)
    try:
        await until(lambda: "seen-1" in found.objects)
        [(path, silence)] = api.watched
        assert int(parse_qs(path.partition("?")[2])["timeoutSeconds"][0]) < silence <= 90
        assert set(found.objects) == {"api", "seen-1"}
    finally:
        api.over = True
        found.close()


class Views:
    """`View` and `Watched`, as far as restoration asks them."""

    def protocol(self, name: str, port: int) -> str:
        return "http"

    def __init__(self, *items: Document) -> None:
        self.objects = self.services = {each["metadata"]["name"]: each for each in items}
        self.synced = asyncio.Event()
        self.synced.set()


def agent(api: Api, folder: Path, *leases: Document) -> Attachments:
    made = Attachments(cast(Any, api), folder, "envoy")
    made._view, made._leases = cast(Any, Views()), cast(Any, Views(*leases))
    return made


@pytest.mark.parametrize("problem", [IncompleteRead(b""), ValueError("no JSON"), error(503), OSError()])
async def test_what_could_not_be_put_back_is_tried_again_soon(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, problem: Exception
) -> None:
    tried = asyncio.Event()
    outcomes: list[Exception | None] = [problem, None]

    def restore(*_: object) -> int:
        found = outcomes.pop(0)
        if found is not None:
            raise found
        loop.call_soon_threadsafe(tried.set)
        return 0

    loop = asyncio.get_running_loop()
    made = agent(Api(), tmp_path, lease(SPEC, seconds=0))
    made._leases.objects[lease_name(SPEC)]["spec"]["leaseDurationSeconds"] = 0.001  # type: ignore[union-attr]
    made._view.synced = made._leases.synced.wait  # type: ignore[method-assign, union-attr, assignment]
    monkeypatch.setattr(kube, "restore", restore)
    monkeypatch.setattr(attachments, "RESTORE_PAUSE", 0.01)
    monkeypatch.setattr(attachments, "ENDPOINT_SECONDS", 0.01)
    task = asyncio.create_task(made._restore())
    try:
        async with asyncio.timeout(5):
            await tried.wait()
    finally:
        task.cancel()


async def test_an_attachment_is_not_forgotten_while_its_lease_can_not_be_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(attachments, "ENDPOINT_SECONDS", -1.0)
    api = Api(lease(SPEC))
    made = agent(api, tmp_path)
    made._members["one"] = Member(SPEC, cast(Any, None), None, 0.0, 0.0)
    assert await made._forget()  # the watch is behind
    api.fails = [OSError("the API server is away")]
    assert await made._forget()
    assert "one" in made._members
    api.items.clear()
    assert not await made._forget()
    assert not made._members


@pytest.mark.parametrize("status", [409, 429, 500, 503])
async def test_an_agent_that_ends_leads_back_what_it_can(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int
) -> None:
    monkeypatch.setattr(attachments, "BACK_PAUSE", 0)
    api = Api(swapped(service(), {80: 1, 81: 2}, {}))
    api.fails = [error(status)]
    await asyncio.to_thread(agent(api, tmp_path)._back, "api")
    assert api.calls == ["GET api", "GET api", "PUT api"]


async def test_what_envoy_does_not_take_now_it_is_told_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = agent(Api(), tmp_path)
    applied = asyncio.Event()
    outcomes: list[Exception] = [TimeoutError(), TimeoutError(), OSError()]

    async def apply() -> None:
        made._dirty.clear()
        if outcomes:
            raise outcomes.pop(0)
        applied.set()

    monkeypatch.setattr(made, "apply", apply)
    monkeypatch.setattr(attachments, "AGAIN_SECONDS", 0)
    task = asyncio.create_task(made._configure())
    made._members["one"] = member = Member(SPEC, cast(Any, None), None, 0.0, 0.0)
    await made._drop(member)
    try:
        async with asyncio.timeout(5):
            await applied.wait()
    finally:
        task.cancel()


async def test_files_that_envoy_has_refused_are_not_what_the_next_one_starts_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = Gateway(tmp_path, "envoy", lambda _: None)
    for each in ("eds", "rds"):
        (tmp_path / each).mkdir()
    before = found._files = envoy.files([], str(tmp_path))
    for name, text in before.items():
        (tmp_path / name).write_text(text)

    async def nothing() -> int:
        return 0

    async def refuse(*_: object) -> None:
        raise RejectedError("Envoy refuses")

    monkeypatch.setattr(found, "start", nothing)
    monkeypatch.setattr(found, "_rejections", nothing)
    monkeypatch.setattr(found, "_taken", refuse)
    plan = ServicePlan("api", (PortPlan(80, 20000, "http", (("10.0.0.1", 80),)),))
    with pytest.raises(RejectedError):
        await found.apply(envoy.files([plan], str(tmp_path)))
    assert {name: (tmp_path / name).read_text() for name in before} == before


class Channel:
    """Of a desk's session."""

    def __init__(self) -> None:
        self.said: list[Document] = []

    def write(self, text: str) -> None:
        self.said.append(json.loads(text))


async def test_a_message_that_can_not_be_read_is_answered_and_so_is_the_next_one() -> None:
    async def nothing(*_: object) -> None:
        pass

    async def not_now(*_: object) -> None:
        raise NotNowError("Envoy does not answer")

    given = SimpleNamespace(warm=nothing, tell=nothing, beat=lambda _: None, detach=not_now, left=nothing)
    channel = Channel()
    desk = Desk(cast(Any, given), cast(Any, None), channel)
    for message in (
        {"do": "local", "n": 1, "id": "x", "up": True, "deaf": ["one"]},
        {"do": "attach", "n": 2, "spec": {}},
        {"do": "detach", "n": 3, "id": "x"},
    ):
        desk.received(json.dumps(message) + "\n")
    await until(lambda: len(channel.said) == 3)
    assert [each["answer"] for each in channel.said] == [1, 2, 3]
    assert [each.get("again") for each in channel.said] == [None, False, True]
    desk.ended()
    await asyncio.sleep(0)


@pytest.mark.parametrize("do", ["x", "reach"])
async def test_an_engine_that_only_asks_is_hung_up_on(do: str) -> None:
    """Questions that are worked on aside count until they are answered, and few of them are worked on at a time."""
    closed: list[bool] = []
    reaching: list[object] = []

    async def nothing(*_: object) -> None:
        pass

    async def stuck(*given: object) -> None:
        reaching.append(given)
        await asyncio.Event().wait()

    given = SimpleNamespace(warm=nothing, beat=lambda _: None, left=nothing, reach=stuck)
    channel = SimpleNamespace(write=lambda _: None, abort=lambda: closed.append(True))
    message = json.dumps({"do": do, "id": "x"})

    async def ended(desk: Desk) -> None:
        desk.ended()
        await asyncio.gather(desk._task, *desk._aside, return_exceptions=True)

    desk = Desk(cast(Any, given), cast(Any, None), channel)
    desk.received(f"{message}\n" * MESSAGES)
    assert not closed
    for _ in range(20):
        await asyncio.sleep(0)
    if do == "reach":
        assert len(reaching) == ASIDE
        desk.received(f"{message}\n")
        assert closed.pop()
    else:
        await until(lambda: not desk._unanswered)
        desk.received(f"{message}\n" * (MESSAGES + 1))
        assert closed.pop()
    desk.received("x" * (LINE_BYTES + 1))
    assert not closed and not desk._rest, "nothing of it is kept, or heard, from then on"
    await ended(desk)
    long = json.dumps({"do": do, "id": "x" * (LINE_BYTES - 100)})
    for said in (f"{long}\n" * (QUEUED_BYTES // LINE_BYTES + 1), "x" * (LINE_BYTES + 1)):
        desk = Desk(cast(Any, given), cast(Any, None), channel)
        desk.received(said)
        assert closed.pop()
        await ended(desk)


@pytest.mark.parametrize("again", [False, True])
async def test_what_the_agent_can_not_do_now_is_no_refusal(monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    session = Session(cast(Any, SimpleNamespace(where="here")), lambda *_: None)

    def answer(message: Document) -> None:
        session.received(json.dumps({"answer": message["n"], "error": "not this", "again": again}) + "\n")

    monkeypatch.setattr(session, "_send", answer)
    with pytest.raises(RemoteError, match="not this") as problem:
        await session.ask(do="attach")
    assert isinstance(problem.value, AttachError) is not again


async def test_an_original_pod_hears_that_its_client_sends_no_more() -> None:
    done: list[str] = []

    class Wire:
        def __init__(self, name: str) -> None:
            self.name = name

        def is_closing(self) -> bool:
            return False

        def can_write_eof(self) -> bool:
            return True

        def write(self, data: bytes) -> None:
            done.append(f"{self.name} {data.decode()}")

        def write_eof(self) -> None:
            done.append(f"{self.name} eof")

        def set_protocol(self, _: object) -> None:
            pass

        def resume_reading(self) -> None:
            pass

    far = SimpleNamespace(transport=Wire("client"), kept=lambda: [b"bye"], finished=True)
    _Pod(cast(Any, far)).connection_made(cast(Any, Wire("pod")))
    assert done == ["pod bye", "pod eof"]


async def test_what_envoy_refuses_of_one_developer_spoils_nothing_of_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = agent(Api(), tmp_path)
    led = swapped(service(), {80: 20000, 81: 20001}, {})
    view = SimpleNamespace(
        services={"api": led},
        tells=lambda *_: True,
        pods=lambda *_: [("10.0.0.1", 80)],
        also=lambda _: {},
        protocol=lambda *_: "http",
    )
    made._view = cast(Any, view)

    async def take(files: dict[str, str]) -> None:
        if any("local-bad-" in text for text in files.values()):
            raise RejectedError("Envoy refuses")
        took.append("local-good-" in files["cds.json"])

    took: list[bool] = []
    monkeypatch.setattr(made._gateway, "apply", take)
    good, bad = (Member(replace(SPEC, id=each), cast(Any, None), None, 0.0, 0.0) for each in ("good", "bad"))
    made._members["good"] = good
    await made.apply(good)
    made._members["bad"] = bad  # it waits for its turn
    await made.apply()
    with pytest.raises(RejectedError):
        await made.apply(bad)
    await made.apply()
    assert took == [True, True, True]


@pytest.mark.parametrize("before", [False, True])
async def test_a_certificate_that_envoy_refuses_is_nobody_elses_trouble_when_its_developer_has_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: bool
) -> None:
    made = agent(Api(), tmp_path)
    led = swapped(service("web"), {80: 20002, 81: 20003}, {})
    view = SimpleNamespace(
        services={"api": service("api"), "web": led},
        tells=lambda *_: True,
        pods=lambda *_: [("10.0.0.1", 80)],
        also=lambda _: {},
        protocol=lambda name, _: "https" if name == "api" else "http",
    )
    made._view = cast(Any, view)
    took: list[list[str]] = []

    async def take(files: dict[str, str]) -> None:
        if any(name.startswith("sds/") for name in files):
            raise RejectedError("Envoy takes RSA keys of 2048 bits")
        took.append([each["name"] for each in json.loads(files["lds.json"])["resources"]])

    monkeypatch.setattr(made._gateway, "apply", take)
    if before:  # somebody had it a moment ago, and their clients are connected
        made._claimed["api"] = {80: 20000}
        await made.apply()
        del made._claimed["api"]
        await made.apply()
    bad = Member(SPEC, cast(Any, None), None, 0.0, 0.0)
    bad.tls = {80: Termination("c", "k")}
    made._members["one"], made._claimed["api"] = bad, {80: 20000}
    with pytest.raises(RejectedError):
        await made.apply(bad)
    await made._refuse(bad)
    await made.apply()
    assert took[-1] == (["api-80"] if before else []) + ["web-80", "web-81"]


async def test_a_certificate_is_shown_to_clients_only_for_who_is_named_in_the_services_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = agent(Api(), tmp_path)
    ada, eve = (Member(replace(SPEC, id=each), cast(Any, None), None, 0.0, 0.0) for each in ("ada", "eve"))
    eve.tls = {80: Termination("c", "k")}

    def led(*holders: Member) -> Document:
        return swapped(service(), {80: 20000, 81: 20001}, {each.spec.id: each.spec.document() for each in holders})

    view = SimpleNamespace(
        services={"api": led(ada)},
        tells=lambda *_: True,
        pods=lambda *_: [("10.0.0.1", 80)],
        also=lambda _: {},
        protocol=lambda *_: "https",
    )
    made._view = cast(Any, view)
    shown: list[bool] = []

    async def take(files: dict[str, str]) -> None:
        shown.append(any(name.startswith("sds/") for name in files))

    monkeypatch.setattr(made._gateway, "apply", take)
    made._members = {"ada": ada, "eve": eve}
    await made.apply(ada)
    await made.apply(eve)  # she has a lease, and no more
    await made.apply()
    view.services["api"] = led(ada, eve)
    await made.apply()
    assert shown == [False, False, False, True]


async def test_what_envoy_refuses_once_the_service_is_led_here_is_nobody_elses_trouble(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = agent(Api(), tmp_path)
    bad = Member(SPEC, cast(Any, SimpleNamespace(key="k")), None, 0.0, 0.0, taken=True)
    bad.tls = {80: Termination("c", "k")}
    led = swapped(service(), {80: 20000, 81: 20001}, {"one": SPEC.document()})
    made._view = cast(Any, SimpleNamespace(
        services={"api": led}, tells=lambda *_: True, pods=lambda *_: [], also=lambda _: {}, protocol=lambda *_: "https"
    ))  # fmt: skip
    made._members = {"one": bad}

    async def take(files: dict[str, str]) -> None:
        if any(name.startswith("sds/") for name in files):
            raise RejectedError("Envoy takes RSA keys of 2048 bits")

    monkeypatch.setattr(made._gateway, "apply", take)
    with pytest.raises(RefusedError, match="2048"):
        await made.led("one", bad.connection)
    await made.apply()


@pytest.mark.parametrize("said", [{}, {"places": {"8080": 70_000}}, {"places": [1]}, {"places": {"8080": None}}])
async def test_what_a_door_says_that_can_not_be_is_its_own_trouble(
    monkeypatch: pytest.MonkeyPatch, said: Document
) -> None:
    closed: list[bool] = []
    door = Door("uid", "10.0.0.1", cast(Any, None), cast(Any, SimpleNamespace(close=lambda: closed.append(True))))

    async def ask(**_: object) -> Document:
        return said

    monkeypatch.setattr(door, "_ask", ask)
    with pytest.raises(DoorLostError, match="can't be read"):
        await door.open({8080})
    assert closed and not door.places


async def test_a_lease_that_ends_while_another_is_put_back_is_seen_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    made = agent(Api(), tmp_path, lease(SPEC, seconds=30))

    async def forget() -> bool:
        clock[0] += 31.0  # as long as the API server takes
        return False

    monkeypatch.setattr(made, "_forget", forget)
    assert await made._put_back() == 30.0


def test_a_certificate_of_one_whom_nobody_has_led_here_is_nobodys_who_comes_later(tmp_path: Path) -> None:
    """Who may write leases alone would else have everybody's clients see their certificate."""
    made = agent(Api(), tmp_path)
    eve = Member(
        replace(SPEC, id="eve", kind="wiretap"), cast(Any, SimpleNamespace(key="e")), None, 0.0, 0.0, taken=True
    )
    eve.tls = {80: Termination("eve", "k")}
    services = {"api": service()}
    made._view = cast(Any, SimpleNamespace(
        services=services, tells=lambda *_: True, pods=lambda *_: [], also=lambda _: {}, protocol=lambda *_: "https"
    ))  # fmt: skip
    made._members = {"eve": eve}
    made._claimed = {"api": {80: 20000, 81: 20001}}
    (plan,) = made._plans()
    assert plan.ports[0].tls is not None, "Envoy is asked whether it takes it"
    made._members["one"] = Member(SPEC, cast(Any, SimpleNamespace(key="a")), None, 1.0, 1.0, taken=True)
    services["api"] = swapped(service(), {80: 20000, 81: 20001}, {"one": SPEC.document()})
    (plan,) = made._plans()
    assert plan.ports[0].tls is None
    # What a holder has brought stays as long as somebody is connected, though they have left.
    both = {"one": SPEC.document(), "eve": eve.spec.document()}
    services["api"] = swapped(service(), {80: 20000, 81: 20001}, both)
    made._plans()
    del made._members["eve"]
    (plan,) = made._plans()
    assert plan.ports[0].tls == eve.tls[80]


async def test_who_waits_for_silent_pods_keeps_nobody_elses_message_waiting() -> None:
    channel, ends = Channel(), asyncio.Event()

    async def nothing(*_: object) -> None:
        pass

    async def attach(*_: object) -> dict[int, int]:
        return {80: 20000}

    async def silent(*_: object) -> Any:
        await ends.wait()
        return []

    given = SimpleNamespace(
        warm=nothing, beat=lambda _: None, left=nothing, reach=silent, look=silent, unreached=silent, attach=attach,
        detach=nothing,
    )  # fmt: skip
    desk = Desk(cast(Any, given), cast(Any, None), channel)
    messages: tuple[Document, ...] = (
        {"do": "hello", "service": "api", "ports": {}, "server": ""},
        {"do": "attach", "spec": SPEC.document(), "probe": True},
        {"do": "reach", "id": "one"},
        {"do": "detach", "id": "one"},
    )
    for number, message in enumerate(messages):
        desk.received(json.dumps({"n": number, **message}) + "\n")
    await until(lambda: bool(channel.said))
    assert channel.said == [{"answer": 3}]
    ends.set()
    await until(lambda: len(channel.said) == 4)
    assert {"answer": 1, "listeners": {"80": 20000}, "unreached": []} in channel.said
    desk.ended()
    await asyncio.gather(desk._task, return_exceptions=True)


async def test_a_door_that_takes_no_datagrams_takes_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door("uid", "10.0.0.1", cast(Any, None), cast(Any, SimpleNamespace(is_closing=lambda: False)))
    asked: list[Document] = []

    async def ask(**message: Any) -> Document:
        asked.append(message)
        if message["udp"]:
            door.problem = "no nft_tproxy"
            raise DoorLostError(door.problem)
        return {"places": {str(port): 40000 + port for port in message["open"]}}

    monkeypatch.setattr(door, "_ask", ask)
    await door.open({80}, {53})
    assert (door.places, door.problem, door.no_datagrams) == ({80: 40080}, "", "no nft_tproxy")
    await door.open({80, 81}, {53})
    assert door.places == {80: 40080, 81: 40081} and not door.datagram_places


@pytest.mark.parametrize("held", [True, False])
def test_a_service_that_was_copied_while_it_was_led_here_is_in_nobodys_way(tmp_path: Path, held: bool) -> None:
    """`kubectl get -o yaml`, another name, `apply`: with the record come its listeners. Envoy refuses two of a kind."""
    made = agent(Api(), tmp_path)
    led = swapped(service(), {80: 20000, 81: 20001}, {"one": SPEC.document()})
    copied = {**led, "metadata": {**led["metadata"], "name": "a-copy", "creationTimestamp": "2026-11-28T12:00:00Z"}}
    led["metadata"]["creationTimestamp"] = "2026-11-28T13:00:00Z" if held else "2026-11-28T11:00:00Z"
    odd = swapped(service("odd"), {80: 22, 81: 700_000}, {})
    made._view = cast(Any, SimpleNamespace(
        services={"a-copy": copied, "api": led, "odd": odd}, tells=lambda *_: True, pods=lambda *_: [],
        also=lambda _: {}, protocol=lambda *_: "http",
    ))  # fmt: skip
    if held:
        made._members = {"one": Member(SPEC, cast(Any, SimpleNamespace(key="k")), None, 0.0, 0.0, taken=True)}
    assert {plan.name: [each.listener for each in plan.ports] for plan in made._plans()} == {
        "api": [20000, 20001],
        "a-copy": [],
        "odd": [],
    }


async def test_an_engine_that_reads_nothing_is_hung_up_on() -> None:
    """Its window is used up, and what it is told waits for it in the agent's memory."""

    class Unread:
        waiting = 0
        cut = False

        def write(self, text: str) -> None:
            self.waiting += len(text)

        def get_write_buffer_size(self) -> int:
            return self.waiting

        def abort(self) -> None:
            self.cut = True

    async def nothing(*_: object) -> None:
        pass

    channel = Unread()
    given = SimpleNamespace(warm=nothing, beat=lambda _: None, left=nothing)
    desk = Desk(cast(Any, given), cast(Any, None), channel)
    desk.stuck(True)
    message = json.dumps({"do": "x" * 200_000, "n": 1}) + "\n"  # the answer says what it does not know
    for _ in range(60):
        desk.received(message)
        await until(lambda: not desk._unanswered)
    assert channel.cut and channel.waiting < UNREAD_BYTES + len(message) + 1000
    desk.ended()

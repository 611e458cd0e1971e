"""What goes wrong with one service, faults of devloop's too, stops no other: an exception at each place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from devloop.agent.attachments import Attachments as AtTheAgent
from devloop.attach.attachment import Attachment
from devloop.attach.attachments import Attachments
from devloop.attach.doors import Doors
from devloop.attach.seam import Phase, Wanted
from devloop.config.model import Attach, AttachKind, Place, Project, Remote, RemoteKind
from devloop.core import events as ev
from devloop.engine import attaching
from devloop.engine import remote as remote_module
from devloop.engine.attaching import Attaching, Rates
from devloop.engine.passthrough import Passthrough
from devloop.engine.remote import RemoteSide
from devloop.errors import DevloopError, RemoteError
from devloop.remote import standing
from devloop.remote.link import LinkState
from devloop.remote.link import Phase as LinkPhase
from devloop.remote.workload import references as kinds
from devloop.remote.workload.fake import FakeCluster
from tests.unit.core.playbook import ROOT, service

FAULT = "KeyError('a fault')"


def fault() -> KeyError:
    return KeyError("a fault")


class Told(SimpleNamespace):
    """Everything that was told: calls by name."""

    def __init__(self) -> None:
        super().__init__(calls=[])

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.calls.append((name, *args))

    def of(self, name: str) -> list[Any]:
        return [args for each, *args in self.calls if each == name]


@pytest.fixture(autouse=True)
async def faults() -> list[str]:
    found: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(repr(context.get("exception"))))
    return found


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, "RETRY_SECONDS", (0.001, 0.001))
    monkeypatch.setattr(remote_module, "SURVEY_SECONDS", 0.001)


class Side:
    """A RemoteSide of the services a and b, with nothing real below it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **places: Place) -> None:
        self.told = Told()
        services = {name: service(name, place=places.get(name, Place())) for name in ("a", "b")}
        project = Project("shop", ROOT / "devloop.toml", (), services)
        self.cluster = FakeCluster("shop")
        state = SimpleNamespace(path=Path("/nowhere"))
        remote = Remote(RemoteKind.KUBERNETES)
        self.side = RemoteSide(project, remote, cast(Any, None), cast(Any, state), cast(Any, self.told))
        self.parts: Any = Told()
        self.parts.clusters = {"shop": self.cluster}
        self.parts.link = Told()
        self.parts.link.state = LinkState(LinkPhase.CONNECTING, "agent", "x", 0)
        self.parts.link.subscribe = lambda _: lambda: None
        self.parts.link.ready = self.parts.link.resolver = self._nothing
        self.parts.folder = SimpleNamespace(path=Path("/nowhere"))
        self.parts.networks = Told()
        self.parts.networks.kind = SimpleNamespace(value="namespace")
        self.parts.networks.open = self._network
        self.problem: Exception | None = None
        monkeypatch.setattr("devloop.engine.parts.make", self._make)

    async def _make(self, _: object) -> Any:
        if self.problem is not None:
            raise self.problem
        return self.parts

    async def _nothing(self) -> None:
        return None

    async def _network(self, _: object) -> Any:
        found: Any = Told()
        found.lost, found.publisher, found.close = False, Told(), self._nothing
        return found


@pytest.fixture
def side(monkeypatch: pytest.MonkeyPatch) -> Iterator[Side]:
    yield Side(monkeypatch)


@pytest.fixture(autouse=True)
async def closed(side: Side) -> AsyncIterator[None]:
    yield
    await side.side.close()


async def test_what_prepares_the_remote(side: Side, faults: list[str]) -> None:
    side.problem = fault()
    side.side.start()
    async with asyncio.timeout(5):
        with pytest.raises(DevloopError, match="fault in devloop itself"):
            await side.side.until_prepared()
    assert faults == [FAULT] and side.told.of("notice"), "it is told, and nobody waits for what never comes"


async def test_how_one_service_stands(side: Side, monkeypatch: pytest.MonkeyPatch, faults: list[str]) -> None:
    make = standing._standing
    monkeypatch.setattr(standing, "_standing", lambda s, *rest: raises() if s.name == "a" else make(s, *rest))
    side.side.start()
    async with asyncio.timeout(5):
        assert (await side.side.until_standing("b")).service == "b"
        with pytest.raises(DevloopError, match="a fault"):
            await side.side.until_standing("a")
    side.side.wake()
    assert faults == [FAULT], "it is told once, though it is looked at again and again"


async def test_a_kind_that_nobody_knows_is_one_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """devloop.toml can't say that any more; if it comes from elsewhere, it is no hang and stops no remote."""
    side = Side(monkeypatch, a=Place("svc/x"))
    side.side.start()
    async with asyncio.timeout(5):
        assert (await side.side.until_standing("b")).service == "b"
        with pytest.raises(DevloopError, match="svc/x"):
            await side.side.until_standing("a")
    await side.side.close()


async def test_a_look_at_the_remote(side: Side, faults: list[str]) -> None:
    listing, broken = side.cluster.listing, True

    async def fails(*args: Any, **more: Any) -> Any:
        if broken:
            raise fault()
        return await listing(*args, **more)

    side.cluster.listing = fails  # type: ignore[method-assign]
    side.side.start()
    async with asyncio.timeout(5):
        with pytest.raises(DevloopError, match="a fault"):
            await side.side.until_standing("a")
        broken = False
        await side.side._surveyed.wait()
        assert (await side.side.until_standing("a")).service == "a", "the next look finds it mended"
    assert faults == [FAULT]


@pytest.mark.parametrize("problem", [fault(), ExceptionGroup("x", [fault()]), OSError(28, "No space left on device")])
async def test_one_services_world(side: Side, monkeypatch: pytest.MonkeyPatch, problem: Exception) -> None:
    from devloop.engine.worlds import World

    async def opens(world: World, *_: object) -> None:
        if world.service == "a":
            raise problem

    monkeypatch.setattr(World, "open", opens)
    side.side.start()
    side.side.here.open_world("a")
    side.side.here.open_world("b")
    async with asyncio.timeout(5):
        await asyncio.gather(*side.side.here._opening.values())
    assert side.told.of("opened") == [["b"]]
    ((name, what, _),) = side.told.of("failed")
    assert name == "a" and ("a fault" in what or "o space left" in what), "a has an answer, and can be tried again"


async def test_one_service_that_can_not_be_closed(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    from devloop.engine.worlds import World

    closed = []

    async def closes(world: World) -> None:
        closed.append(world.service)
        if world.service == "a":
            raise fault()

    monkeypatch.setattr(World, "open", lambda *_: side._nothing())
    monkeypatch.setattr(World, "close", closes)
    side.side.start()
    side.side.here.open_world("a")
    side.side.here.open_world("b")
    await asyncio.gather(*side.side.here._opening.values())
    await side.side.here.close()
    assert closed == ["a", "b"]


async def test_a_workload_that_is_not_there_is_said_at_its_place(
    side: Side, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "devloop.toml"
    file.write_text('[services.a]\nmode = "local"\nworkload = "webb"\n')
    template: dict[str, Any] = {"spec": {"containers": []}}
    await side.cluster.put(kinds.DEPLOYMENT, {"metadata": {"name": "web"}, "spec": {"template": template}})
    project = side.side.project
    place = service("a", place=Place("webb"))
    side.side.project = Project(project.name, file, (file,), {**project.services, "a": place})
    side.parts.agent_image = ""
    side.side.start()
    async with asyncio.timeout(5):
        with pytest.raises(DevloopError, match="no workload is called webb") as caught:
            await side.side.here.read_variables("a")
    assert caught.value.where is not None and caught.value.where.endswith("devloop.toml:3:12")
    assert caught.value.hint == "Did you mean deployment/web?"


async def test_a_service_that_no_workload_is_called_like_is_told_once(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    from devloop.engine.worlds import World

    monkeypatch.setattr(World, "open", lambda *_: side._nothing())
    template: dict[str, Any] = {"spec": {"containers": []}}
    await side.cluster.put(kinds.DEPLOYMENT, {"metadata": {"name": "aa"}, "spec": {"template": template}})
    services = side.side.project.services
    meant = service("b", place=Place(none=True))
    side.side.project = Project("shop", ROOT / "devloop.toml", (), {**services, "b": meant})
    side.side.start()
    for _ in range(2):
        side.side.here.open_world("a")
        side.side.here.open_world("b")
        await asyncio.gather(*side.side.here._opening.values())
    warned = [each for each in side.told.of("notice") if each[0] == "warning"]
    ((_, text, hint),) = warned
    assert text == "a has no environment and no files of the cluster: no workload of shop is called so"
    assert hint.startswith("did you mean deployment/aa? ") and "`workload = false`" in hint


# Attachments.


def raises(*_: object) -> Any:
    raise fault()


def nothing(*_: object) -> None:
    return None


def quiet(_: str) -> tuple[None, float, bool]:
    return None, 0.0, True


async def later(*_: object) -> None:
    pass


async def raises_later(*_: object, **__: object) -> Any:
    raise fault()


class Link(Told):
    api = Told()
    state = LinkState(LinkPhase.CONNECTING, "agent", "x", 0)

    def subscribe(self, _: object) -> Any:
        return lambda: None


def attachment(name: str) -> Attachment:
    from devloop.agent.spec import Spec

    spec = Spec(name, "ada", "h", "intercept", "now", name, {80: 1})
    return Attachment(spec, Wanted("intercept", name), cast(Any, Told()), lambda _: None)


def attachments() -> Attachments:
    link = Link()
    link.api.namespace = "space"
    return Attachments(cast(Any, link), cast(Any, link.api), user="ada", host="h")


async def test_leaving_one_of_two_services(monkeypatch: pytest.MonkeyPatch) -> None:
    left = []
    found = Attaching(
        cast(Any, Link()),
        "x",
        None,
        lambda _: None,
        quiet,
        nothing,
        lambda _: None,
        lambda _: None,
        lambda *_: None,
        later,
    )

    async def leave(each: Attachment, *, stop: bool) -> None:
        left.append(each.spec.id)
        if each.spec.id == "one":
            raise RemoteError("the cluster is away")

    monkeypatch.setattr(found._attachments, "leave", leave)
    found._of["api"] = {name: attachment(name) for name in ("one", "two")}
    with pytest.raises(RemoteError, match="away"):
        await found.leave("api")
    assert left == ["one", "two"], "the second one left all the same"


async def test_the_rates_of_one_service(monkeypatch: pytest.MonkeyPatch) -> None:
    told = asyncio.Event()
    found = Attaching(
        cast(Any, Link()),
        "x",
        None,
        lambda _: None,
        quiet,
        nothing,
        lambda name: raises() if name == "a" else told.set(),
        lambda _: None,
        lambda *_: None,
        later,
    )
    monkeypatch.setattr(found, "_rates", lambda *_: Rates(1.0))
    for name in ("a", "b"):
        found._of[name][name] = attachment(name)
        assert not found._counts[name]
    monkeypatch.setattr(attaching, "TICK_SECONDS", 0)
    task = asyncio.create_task(found._tick())
    async with asyncio.timeout(5):
        await told.wait()
    task.cancel()


@pytest.mark.parametrize("kind", [AttachKind.INTERCEPT, AttachKind.REPLACE])
async def test_attaching_one_service_by_itself(kind: AttachKind, faults: list[str]) -> None:
    events: list[object] = []
    notices: list[tuple[object, ...]] = []
    spec = service("a", attach=Attach(kind))
    found = Passthrough.__new__(Passthrough)
    found._about_to = {}
    found._engine = cast(
        Any,
        SimpleNamespace(
            project=SimpleNamespace(services={"a": spec}),
            dispatch=events.append,
            notice=lambda *args, **more: notices.append(args),
        ),
    )
    found._attach = raises_later  # type: ignore[method-assign]
    found._is_local = lambda _: True  # type: ignore[method-assign]
    if kind is AttachKind.REPLACE:
        await found._replace_first("a")
        assert isinstance(events[0], ev.WorldFailed) and "a fault" in events[0].failure, (
            "a start that waits is answered"
        )
    else:
        await found._attach_by_itself("a")
        assert "a fault" in str(notices)
    assert faults == [FAULT]


async def test_the_lease_of_one_attachment(monkeypatch: pytest.MonkeyPatch) -> None:
    work, renewed = attachments(), asyncio.Event()
    for name in ("one", "two"):
        work._held[name] = attachment(name)

    async def renew(spec: Any) -> bool:
        if spec.id == "one":
            raise fault()
        renewed.set()
        return True

    monkeypatch.setattr(work._claims, "renew", renew)
    work._claims.seconds = 0
    task = asyncio.create_task(work._renewals.renewing())
    async with asyncio.timeout(5):
        await renewed.wait()
    assert not task.done()
    task.cancel()


async def test_keeping_one_attachment(monkeypatch: pytest.MonkeyPatch) -> None:
    work, found = attachments(), attachment("one")
    outcomes: list[Any] = [raises_later, None]
    done = asyncio.Event()

    async def ensure(_: Attachment) -> None:
        if (outcome := outcomes.pop(0)) is not None:
            await outcome()
        found.become(Phase.LEFT)
        done.set()

    monkeypatch.setattr(work, "_ensure", ensure)
    states: list[str] = []
    found._changed = lambda each: states.append(each.state.reason)
    found.dirty.set()
    task = asyncio.create_task(work._keep(found))
    async with asyncio.timeout(5):
        await done.wait()
        await task
    assert "a fault" in states[0], "it says so, and is tried again"


@pytest.mark.parametrize("what", ["services", "pods"])
async def test_a_change_of_one_object(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    seen, done = [], asyncio.Event()

    async def listed(_: str) -> dict[str, Any]:
        return {}

    async def watch(_: str, **query: str) -> AsyncIterator[Any]:
        for name in ("one", "two"):
            yield "MODIFIED", {"metadata": {"name": name}}
        await asyncio.Event().wait()

    def see(*args: Any) -> None:
        seen.append(args[-1]["metadata"]["name"])
        if seen == ["one"]:
            raise fault()
        done.set()

    work: Any = attachments()
    if what == "pods":
        work = Doors(work.api, work._claims, list)
        work._api.watch = watch
        work._needed.set()
        run = work.watching
    else:
        work.api.get, work.api.watch = listed, watch
        run = work._watching
    monkeypatch.setattr(work, "_seen", see)
    task = asyncio.create_task(run())
    async with asyncio.timeout(5):
        await done.wait()
    task.cancel()


async def test_one_attachment_that_can_not_be_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    work = attachments()
    stopped: list[bool] = []
    work._stops.append(lambda: stopped.append(True))
    work._held["one"] = attachment("one")
    monkeypatch.setattr(work._releases, "_release", raises_later)
    await work.close()
    assert stopped, "what is left of the closing is done"


async def test_one_configuration_at_the_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    agent, applied = AtTheAgent(None, tmp_path, "envoy"), asyncio.Event()
    outcomes = [raises_later]

    async def apply() -> None:
        agent._dirty.clear()
        if outcomes:
            agent._dirty.set()
            await outcomes.pop()()
        applied.set()

    monkeypatch.setattr(agent, "apply", apply)
    monkeypatch.setattr("devloop.agent.attachments.AGAIN_SECONDS", 0)
    agent._dirty.set()
    task = asyncio.create_task(agent._configure())
    async with asyncio.timeout(5):
        await applied.wait()
    task.cancel()

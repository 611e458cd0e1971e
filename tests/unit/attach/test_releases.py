"""Attachments end whole: what could not be put back at once is tried again, and nobody who comes meanwhile loses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal, cast

import pytest

from devloop.attach import attachments as engine
from devloop.attach import releases, sizes, unsettled
from devloop.attach.seam import AttachError, Phase, Wanted
from devloop.attach.unsettled import Unsettled
from devloop.errors import RemoteError
from devloop.remote.kubernetes.api import REQUEST_SECONDS, ApiError, ApiUnreachableError

from .fake_api import Document
from .test_sizes import WANTED, WORKER, FakeCluster, FakeSession, Rig

How = Literal["no answer", "etcd", "Ctrl-C"]


class LateCluster(FakeCluster):
    """Zero as a size is not set when it is asked for, but by `land`, if nothing has changed the workload since."""

    def __init__(self) -> None:
        super().__init__(2)
        self.how: How | None = None
        self.asked = asyncio.Event()
        self.queries: list[Any] = []
        self.land: Callable[[], bool] = lambda: False
        self.failing = 0

    async def request(self, method: str, path: str, body: Any = None, **more: Any) -> Document:
        if self.failing and path.endswith("/scale"):
            self.failing -= 1
            raise ApiError(503, "", "the API server has trouble", where=self.where)
        if path.endswith("/scale"):
            self.queries.append(more.get("query"))
        if self.how is None or not path.endswith("/scale") or body["spec"]["replicas"]:
            return await super().request(method, path, body, **more)

        def land() -> bool:
            if body["metadata"]["resourceVersion"] != str(self.sized):
                return False
            self.resize(0, "devloop")
            return True

        self.land = land
        self.asked.set()
        if self.how == "Ctrl-C":
            await asyncio.Event().wait()
        if self.how == "etcd":
            raise ApiError(500, "InternalError", "etcdserver: request timed out", where=self.where)
        raise ApiUnreachableError("no answer in time", where=self.where)


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(sizes, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(engine, "Session", FakeSession)
    monkeypatch.setattr(releases, "AGAIN_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(releases, "PATIENCE_SECONDS", 0.05)
    found = Rig(api=LateCluster())
    yield found
    await found.attachments.close()


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not what():  # noqa: ASYNC110 (the API in memory tells nobody)
            await asyncio.sleep(0.005)


async def late(rig: Rig, how: How) -> str:
    """An attach whose size is not set in time; what is said of it."""
    cast(LateCluster, rig.api).how = how
    attaching = asyncio.create_task(rig.attachments.attach(WANTED, cast(Any, rig.local)))
    await cast(LateCluster, rig.api).asked.wait()
    if how == "Ctrl-C":
        attaching.cancel()
    with pytest.raises((RemoteError, asyncio.CancelledError)) as problem:
        await attaching
    return str(problem.value)


@pytest.mark.parametrize("how", ["no answer", "etcd", "Ctrl-C"])
async def test_a_size_that_is_set_too_late_is_put_back(rig: Rig, how: How) -> None:
    said = await late(rig, how)
    assert rig.lease() is not None, "nothing would tell what it was"
    if how != "Ctrl-C":
        assert "whether deployment/worker is as it was can't be told yet" in said
    assert [each.spec.workload for each in rig.attachments._renewed()] == ["deployment/worker"]
    assert cast(LateCluster, rig.api).land()
    assert rig.api.sizes[WORKER] == 0
    await until(lambda: rig.lease() is None)
    assert rig.api.sizes[WORKER] == 2
    assert not rig.attachments._renewed()


@pytest.mark.slow
async def test_one_that_never_comes_keeps_its_lease_for_a_while(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsettled, "SETTLE_SECONDS", 1.0)
    await late(rig, "no answer")
    assert rig.lease() is not None
    await until(lambda: rig.lease() is None)
    assert rig.api.sizes[WORKER] == 2


async def test_who_attaches_again_meanwhile_has_it(rig: Rig) -> None:
    api = cast(LateCluster, rig.api)
    await late(rig, "no answer")
    api.how = None
    found = await rig.attachments.attach(WANTED, cast(Any, rig.local))
    assert not api.land(), "it would come too late"
    assert rig.api.sizes[WORKER] == 0 and rig.lease() is not None
    await rig.attachments.leave(found)
    assert rig.api.sizes[WORKER] == 2 and rig.lease() is None


async def test_the_api_server_is_told_how_long_it_may_work_at_a_size(rig: Rig) -> None:
    await rig.attachments.leave(await rig.attach())
    assert cast(LateCluster, rig.api).queries == [{"timeout": "10s"}] * 2
    assert unsettled.WRITE_SECONDS < REQUEST_SECONDS, "or it would still be at it when nobody waits any more"


def test_another_version_settles_it_and_so_does_time_since_the_api_server_was_heard() -> None:
    found = Unsettled()
    found.writes("a", "7")
    assert "a" in found
    assert found.seen("a", "7", 100.0) and found.seen("a", "7", 100.0 + unsettled.SETTLE_SECONDS - 1)
    assert not found.seen("a", "7", 100.0 + unsettled.SETTLE_SECONDS) and "a" not in found
    for version in ("8", None):
        found.writes("a", "7")
        assert not found.seen("a", version, 0.0) and "a" not in found
    # A refusal says nothing of the one before it.
    found.writes("a", "7")
    before = found.writes("a", "7")
    found.refused("a", before)
    assert "a" in found
    found.answered("a")
    assert "a" not in found


async def test_what_could_not_be_put_back_is_tried_again_by_itself(rig: Rig) -> None:
    found = await rig.attach()
    cast(LateCluster, rig.api).failing = 3
    with pytest.raises(RemoteError, match="has trouble"):
        await rig.attachments.leave(found)
    await until(lambda: rig.lease() is None)
    assert rig.api.sizes[WORKER] == 2


async def test_a_leave_that_nobody_waits_for_any_more_goes_on(rig: Rig) -> None:
    found = await rig.attach()
    leaving = asyncio.create_task(rig.attachments.leave(found))
    await asyncio.sleep(0)
    leaving.cancel()
    await until(lambda: rig.lease() is None)
    assert rig.api.sizes[WORKER] == 2


async def test_who_attaches_while_one_is_given_up_waits_until_that_is_over(rig: Rig) -> None:
    found = await rig.attach()
    at_end: list[Any] = []
    rig.api.before = lambda method, path: at_end.append(rig.api.sizes[WORKER]) if method == "DELETE" else None
    rig.attachments._give_up(found, Phase.CONTESTED, "somebody else wants it")
    again = await rig.attachments.attach(WANTED, cast(Any, rig.local))
    assert set(at_end) == {2}, "the old one was whole again before"
    assert again.state.phase is Phase.ATTACHED
    assert rig.api.sizes[WORKER] == 0 and rig.lease() is not None
    await asyncio.sleep(0.05)
    assert rig.api.sizes[WORKER] == 0 and rig.lease() is not None
    with pytest.raises(AttachError, match="attached already"):
        await rig.attachments.attach(WANTED, cast(Any, rig.local))
    assert rig.attachments.held == (again,)


@pytest.mark.parametrize("how", ["leave", "give up"])
async def test_nothing_of_an_attachment_goes_on_after_it(rig: Rig, how: str) -> None:
    """Its watches, that is: each is a connection to the API server, for minutes."""
    found = await rig.attach()
    tasks = set(found.tasks)
    assert found.task in tasks and len(tasks) >= 2
    assert any("size of" in each.get_name() for each in tasks)
    if how == "leave":
        await rig.attachments.leave(found)
    else:
        rig.attachments._give_up(found, Phase.CONTESTED, "somebody else wants it")
        await until(lambda: rig.lease() is None)
    assert all(each.done() for each in tasks) and not found.tasks


async def test_a_watch_of_its_workload_ends_with_it(rig: Rig) -> None:
    ended = asyncio.Event()
    watch = rig.api.watch

    async def watched(path: str, **query: str) -> AsyncIterator[tuple[str, Document]]:
        try:
            async for each in watch(path, **query):
                yield each
        finally:
            ended.set()

    rig.api.watch = watched  # type: ignore[method-assign]
    await rig.attachments.leave(await rig.attach())
    async with asyncio.timeout(5):
        await ended.wait()


@pytest.mark.slow
async def test_an_attachment_that_comes_again_has_its_own_local_port() -> None:
    """Also where the last one could not leave."""
    from types import SimpleNamespace

    from devloop.agent.paths import listen_path
    from devloop.agent.spec import Spec
    from devloop.attach.session import Session

    made: list[Callable[[], Any]] = []
    reached: list[int] = []

    class Connection:
        async def create_unix_server(self, opened: Callable[[], Any], path: str, **_: Any) -> Any:
            made.append(opened)
            return SimpleNamespace(close=lambda: None)

    class Local:
        async def connect(self, factory: Any, port: int) -> Any:
            reached.append(port)
            raise OSError("it does not run")

    async def nothing() -> None:
        pass

    session = Session(cast(Any, SimpleNamespace(connection=Connection(), where="x")), lambda *_: None)
    import asyncssh

    for port in (8080, 9090):
        spec = Spec("api-1", "ada", "h", "intercept", "now", "api", {80: port})
        await session._listen(listen_path(spec.id, 80), spec, cast(Any, Local()), port, lambda: None)
        with pytest.raises(asyncssh.ChannelOpenError):
            await made[-1]()
    assert reached == [8080, 9090]
    await session.forget(spec)
    with pytest.raises(asyncssh.ChannelOpenError, match="not attached"):
        await made[-1]()
    assert reached == [8080, 9090]


async def test_what_left_badly_takes_no_more_connections(rig: Rig) -> None:
    forgotten: list[str] = []

    class Known(FakeSession):
        async def detach(self, spec: Any) -> None:
            pass

        async def drained(self, spec: Any, seconds: float) -> None:
            pass

        async def forget(self, spec: Any) -> None:
            forgotten.append(spec.id)

    from devloop.agent.spec import Spec
    from devloop.attach.attachment import Attachment

    rig.attachments._session = cast(Any, Known(None))
    spec = Spec("api-1", "ada", "h", "intercept", "now", "api", {80: 8080})
    found = Attachment(spec, Wanted("intercept", "api"), cast(Any, rig.local), lambda _: None)

    async def trouble(*_: Any) -> bool:
        raise ApiError(503, "", "the API server has trouble", where="x")

    rig.attachments._claims.restore = trouble  # type: ignore[method-assign]
    with pytest.raises(ApiError):
        await rig.attachments._releases.begin(found)
    assert forgotten == ["api-1"]

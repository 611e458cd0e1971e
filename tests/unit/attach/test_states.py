"""What an attachment says of itself, by what its local service takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from devloop.agent import objects
from devloop.agent.spec import Fail, Spec
from devloop.attach.attachment import Attachment
from devloop.attach.attachments import Attachments
from devloop.attach.claims import Claims
from devloop.attach.seam import AttachError, Phase, Wanted
from devloop.attach.session import Session, SessionLostError
from devloop.remote.kubernetes.api import ApiError

from .fake_api import FakeApi, service

WHY = "nothing listens on port 8080; it listens on 9090"


class Told:
    """A session, and what it was told."""

    def __init__(self) -> None:
        self.said: list[tuple[bool, tuple[int, ...]]] = []

    async def tell(self, _: Spec, up: bool, deaf: tuple[int, ...], udp: tuple[int, ...]) -> None:
        self.said.append((up, deaf))


def attachment(fail: Fail = "open") -> tuple[Attachment, Any]:
    local = SimpleNamespace(running=True, deaf={})
    spec = Spec("one", "ada", "h", "intercept", "now", "api", {80: 8080, 81: 8081}, fail=fail)
    return Attachment(spec, Wanted("intercept", "api"), cast(Any, local), lambda _: None), local


async def test_it_says_no_more_than_is_true_of_each_port() -> None:
    work = Attachments(cast(Any, None), cast(Any, FakeApi()), user="ada", host="h")
    found, local = attachment()
    session = Told()

    async def stands() -> Any:
        await work._told(found, cast(Any, session))
        work._stands(found)
        return found.state

    assert (await stands()).phase is Phase.ATTACHED
    local.deaf = {8080: WHY}
    state = await stands()
    assert state.phase is Phase.ATTACHED
    assert state.notes == (f"port 80 is answered by the original: {WHY}",)
    local.deaf = {8080: WHY, 8081: "nothing listens on port 8081"}
    state = await stands()
    assert (state.phase, state.notes) == (Phase.OPEN, ())
    assert state.reason == f"{WHY}; nothing listens on port 8081; the original answers"
    local.deaf = {}
    assert await stands() == found.state and found.state.phase is Phase.ATTACHED and not found.state.notes
    assert session.said == [(True, ()), (True, (80,)), (True, (80, 81)), (True, ())]


async def test_one_that_fails_closed_does_not_say_that_the_original_answers() -> None:
    work = Attachments(cast(Any, None), cast(Any, FakeApi()), user="ada", host="h")
    found, local = attachment("closed")
    local.deaf = {8080: WHY, 8081: WHY}
    work._stands(found)
    assert found.state.reason == WHY


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_moments_trouble_of_the_api_server_is_no_refusal(status: int) -> None:
    api = FakeApi(service())

    def trouble(method: str, path: str) -> None:
        if method != "GET":
            raise ApiError(status, "", "etcdserver: request timed out", where="here")

    api.before = trouble
    claims = Claims(cast(Any, api))
    found, _ = attachment()
    for call in (
        claims.acquire(found.spec),
        claims.shadow(service()),
        claims.lead(found.spec, {80: 20000, 81: 20001}),
    ):
        with pytest.raises(ApiError, match="etcdserver") as problem:
            await call
        assert not isinstance(problem.value, AttachError)


async def test_a_workload_of_a_colleagues_that_may_not_be_read_keeps_nobody_from_leaving() -> None:
    api = FakeApi(service())
    ours = attachment()[0].spec
    theirs = Spec("two", "bob", "h", "replace", "now", workload="rollout/pay")
    claims = Claims(cast(Any, api))
    await claims.acquire(theirs, replicas=2)
    await claims.acquire(ours)

    def refuse(method: str, path: str) -> None:
        if path.endswith("/scale"):
            raise ApiError(403, "Forbidden", "rollouts/scale", where="here")

    api.before = refuse
    await claims.restore({objects.lease_name(ours)})
    assert [each["metadata"]["name"] for each in await claims.leases()] == [objects.lease_name(theirs)]
    await claims.restore({objects.lease_name(theirs)})
    assert len(await claims.leases()) == 1, "who may read it puts it back"


async def test_nothing_is_led_to_an_agent_that_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Attachments(cast(Any, None), cast(Any, FakeApi()), user="ada", host="h")
    found: list[Any] = [{"metadata": {}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}]

    async def pods() -> list[Any]:
        return found

    monkeypatch.setattr(work._bridge, "pods", pods)
    session = cast(Any, SimpleNamespace(lost=False, leaving=False))
    await work._agent_ready(session)
    found.clear()
    await work._agent_ready(session)  # it was ready, and nothing has been heard since
    work._agent_gone()
    session.leaving = True
    with pytest.raises(SessionLostError):
        await work._agent_ready(session)


async def test_a_service_that_went_while_nobody_watched_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Attachments(cast(Any, None), cast(Any, FakeApi()), user="ada", host="h")
    gone: list[str] = []
    monkeypatch.setattr(work, "_deleted", lambda found, what: gone.append(found.spec.id))
    found, _ = attachment()
    work._held[found.spec.id] = found
    found.task, found.version = cast(Any, object()), 7
    there = service()
    there["metadata"]["resourceVersion"] = "6"
    for items, version in (([there], "9"), ([], "6")):
        work._listed({"metadata": {"resourceVersion": version}, "items": items})
        assert gone == []  # it is there, or has been made since
    work._listed({"metadata": {"resourceVersion": "9"}, "items": []})
    assert gone == ["one"]


async def test_nothing_is_attached_while_envoy_is_away() -> None:
    """The agent says so in a message; what is attached then waits for the next one."""
    work = Attachments(cast(Any, None), cast(Any, FakeApi()), user="ada", host="h")
    session = Session(cast(Any, SimpleNamespace(where="here")), lambda *_: None, work._away)
    work._session = session
    found, _ = attachment()
    found.task = cast(Any, object())
    work._held["one"] = found
    work._stands(found)
    assert found.state.phase is Phase.ATTACHED
    session.received('{"away": "Envoy has ended"}\n')
    assert (found.state.phase, found.state.reason) == (Phase.OPEN, "Envoy has ended")
    work._stands(found)  # whatever else happens meanwhile
    assert found.state.phase is Phase.OPEN
    found.dirty.clear()
    session.received('{"away": ""}\n')
    assert found.dirty.is_set()
    work._stands(found)
    assert found.state.phase is Phase.ATTACHED

"""What one developer gets at the agent nobody else gets, in whatever order they come, leave and are put back."""

from __future__ import annotations

import asyncio
import urllib.error
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from devloop.agent import attachments, kube
from devloop.agent.attachments import Attachments
from devloop.agent.member import Member
from devloop.agent.objects import Dead, lease, lease_name, marker, swapped
from devloop.agent.pods import PodWay
from devloop.agent.spec import Spec
from devloop.agent.view import RefusedError

from .fake_api import service
from .test_agent_faults import Api, Views

Document = dict[str, Any]


class View(Views):
    """`View`, of Services that are told one after the other."""

    def close(self) -> None:
        pass

    async def service(self, name: str) -> Document:
        return self.services[name]

    async def endpoints(self, name: str) -> None:
        pass

    def pods(self, name: str, port: int) -> list[tuple[str, int]]:
        return [("10.0.0.1", 8080)]

    def tells(self, name: str, port: int) -> bool:
        return True

    def also(self, name: str) -> dict[str, str]:
        return {}


class Cluster(Api):
    """`Api`, where a lease and a Service may have one name."""

    def call(self, method: str, path: str, body: object = None, **_: object) -> Document:
        kind, name = path.partition("?")[0].split("/")[-2:]
        for each in self.items:
            if each["metadata"]["name"] == name and ("holderIdentity" in each["spec"]) == (kind == "leases"):
                return each
        raise urllib.error.HTTPError("", 404, "there is none", Message(), None)


def intercept(user: str, **more: Any) -> Spec:
    return Spec(f"api-{user}", user, "h", "intercept", "2026-11-28T11:00:00Z", "api", {80: 8080}, **more)


def replacing(user: str) -> Spec:
    since = "2026-11-28T11:00:00Z"
    return Spec(f"worker-{user}", user, "h", "replace", since, workload="deployment/worker")


def connection(user: str) -> Any:
    return SimpleNamespace(key=f"key of {user}")


def held(spec: Spec) -> Document:
    return lease(spec, key=f"key of {spec.user}")


def agent(folder: Path, api: Api, view: View, *leases: Document) -> Attachments:
    made = Attachments(cast(Any, api), folder, "envoy")
    made._view, made._leases = cast(Any, view), cast(Any, Views(*leases))

    async def apply(trying: Member | None = None) -> None:
        if trying is not None:
            trying.taken = True

    made.apply = apply  # type: ignore[method-assign]
    return made


def of(spec: Spec) -> Member:
    return Member(spec, connection(spec.user), object(), 0.0, 0.0)


@pytest.mark.parametrize("known", [False, True])
async def test_of_two_who_come_for_the_same_in_the_pods_the_second_is_refused(tmp_path: Path, known: bool) -> None:
    """Both have what entitles them, and the agent sees that a moment later, or has seen it already."""
    ada, ben = intercept("ada", way="pods"), intercept("ben", way="pods")
    found = service(clusterIP="None")
    markers = [marker(each, f"key of {each.user}", found) for each in (ada, ben)]
    leases = [held(each) for each in (ada, ben)]
    view = View(found, *(markers if known else ()))
    made = agent(tmp_path, Cluster(*leases, *markers), view, *leases)
    coming = [asyncio.create_task(made.attach(each, connection(each.user), object(), {})) for each in (ada, ben)]
    await asyncio.wait(coming, return_when=asyncio.FIRST_COMPLETED)
    view.services.update({each["metadata"]["name"]: each for each in markers})
    outcomes = await asyncio.gather(*coming, return_exceptions=True)
    (refused,) = [each for each in outcomes if each != {}]
    assert isinstance(refused, RefusedError) and "holds all requests of api" in str(refused)
    assert len(made._members) == 1 and not made._coming
    # Who is in may come again, and who has left makes room.
    (first,) = made._members.values()
    await made.attach(first.spec, first.connection, object(), {})
    await made.detach(first.spec.id, first.connection)
    second = ben if first.spec is ada else ada
    made._api.items = [each for each in made._api.items if each is not leases[first.spec is ben]]  # type: ignore[union-attr]
    assert await made.attach(second, connection(second.user), object(), {}) == {}


async def test_who_could_not_come_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ada, ben = intercept("ada", way="pods"), intercept("ben", way="pods")
    markers = [marker(each, f"key of {each.user}", service()) for each in (ada, ben)]
    leases = [held(each) for each in (ada, ben)]
    made = agent(tmp_path, Cluster(*leases, *markers), View(service(), *markers), *leases)

    async def apply(trying: Member | None = None) -> None:
        if trying is not None and trying.spec is ada:
            raise RefusedError("Envoy refuses")

    monkeypatch.setattr(made, "apply", apply)
    with pytest.raises(RefusedError, match="Envoy"):
        await made.attach(ada, connection("ada"), object(), {})
    assert await made.attach(ben, connection("ben"), object(), {}) == {}


async def test_a_pods_port_is_one_services_also_when_two_ask_at_the_same_time() -> None:
    members = [
        Member(Spec(each, each, "h", "intercept", each, each, {80: 1}, way="pods"), *[cast(Any, None)] * 2, 0, 0)
        for each in ("web", "other")
    ]
    made = PodWay(Path("/f"), lambda: members, lambda: None)

    async def listen() -> None:  # the first time it takes a while
        await asyncio.sleep(0)

    made._doors.listen = listen  # type: ignore[method-assign]
    pods = [{"uid": "u", "name": "web-0", "addresses": ["10.0.0.1"], "ports": {"80": 8080}}]
    first, second = await asyncio.gather(*(made.ask(each, pods) for each in members), return_exceptions=True)
    assert first is True and isinstance(second, RefusedError)


async def test_a_dead_replaces_lease_that_somebody_else_has_taken_over_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachments, "ENDPOINT_SECONDS", -1.0)
    ada, ben = replacing("ada"), replacing("ben")
    assert lease_name(ada) == lease_name(ben)
    now = held(ben)
    made = agent(tmp_path, Api(now), View(), now)
    made._members[ada.id] = of(ada)
    coming = of(ben)
    await made._entitled(coming)
    assert coming in made._coming and not made._members
    made._members[ada.id] = of(ada)
    assert not await made._forget()
    assert not made._members
    # While it is ada's own, it is hers, whatever it has of its watch.
    made = agent(tmp_path, Api(held(ada)), View(), held(ben))
    made._members[ada.id] = of(ada)
    assert await made._forget() and ada.id in made._members


async def test_who_takes_it_in_the_pods_does_not_keep_the_service_at_the_agent(tmp_path: Path) -> None:
    there, pods = intercept("ada"), intercept("ben", way="pods")
    view = View(swapped(service(), {80: 20000, 81: 20001}, {there.id: there.document()}))
    made = agent(tmp_path, Api(), view)
    both = [of(there), of(pods)]
    for each in both:
        each.taken = True
        made._members[each.spec.id] = each
    await made._listeners("api")
    (plan,) = [each for each in made._plans() if not each.pod]
    assert [each.spec.id for each in plan.locals] == [there.id]
    await made._drop(both[0])
    assert "api" not in made._claimed
    view.services["api"] = service()
    (plan,) = made._plans()
    assert plan.leaving and [each.id for each in plan.fading] == [there.id]
    await made._drop(both[1])
    (plan,) = made._plans()
    assert [each.id for each in plan.fading] == [there.id]


class Renewed(Api):
    """The API server's, of which a lease is renewed by the time that it is asked."""

    def __init__(self, *items: Document) -> None:
        super().__init__(*items)
        self.changes: list[str] = []

    def call(self, method: str, path: str, body: object = None, **_: object) -> Document:
        if path.endswith("/scale"):
            return {"metadata": {}, "spec": {"replicas": 0}}
        if method != "GET":
            self.changes.append(f"{method} {path}")
            raise urllib.error.HTTPError("", 403, "nothing is to be written", Message(), None)
        if path.partition("?")[0].endswith("/services"):
            return {"items": []}
        return super().call(method, path, body)


@pytest.mark.parametrize("what", ["renewed", "another"])
async def test_the_agent_puts_back_no_lease_that_is_held_again(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachments, "RESTORE_PAUSE", 0)
    over = lease(replacing("ada"), replicas=3, seconds=1)
    over["metadata"]["uid"], over["spec"]["leaseDurationSeconds"] = "first", 0.001
    fresh = lease(replacing("ada" if what == "renewed" else "ben"), replicas=3)
    fresh["metadata"]["uid"] = "first" if what == "renewed" else "second"
    fresh["spec"]["renewTime"] = "later" if what == "renewed" else over["spec"]["renewTime"]
    api = Renewed(fresh)
    made = agent(tmp_path, api, View(), over)
    asked: list[Any] = []
    real = kube.restore
    monkeypatch.setattr(kube, "restore", lambda api, dead: asked.append(dead) or real(api, dead))
    await made._put_back()
    await asyncio.sleep(0.005)
    await made._put_back()
    assert list(asked[-1]) == [lease_name(replacing("ada"))] and not api.changes


class Storing(Api):
    """The API server, as far as the agent puts back: objects by their paths, and a Deployment's size."""

    def __init__(self, *items: Document, size: int = 0) -> None:
        super().__init__()
        self.size = size
        self.objects = {
            f"{'leases' if 'holderIdentity' in each['spec'] else 'services'}/{name}": each
            for each in items
            if (name := each["metadata"]["name"])
        }

    def call(self, method: str, path: str, body: Any = None, **_: object) -> Document:
        path = path.partition("?")[0].partition("/space/")[2]
        if path == "deployments/worker/scale":
            self.size = body["spec"]["replicas"] if method == "PUT" else self.size
            return {"metadata": {}, "spec": {"replicas": self.size}}
        if path in ("leases", "services"):
            return {"items": [each for key, each in self.objects.items() if key.startswith(f"{path}/")]}
        return self.objects.pop(path) if method == "DELETE" else self.objects[path]


@pytest.mark.parametrize("vouched", [True, False])
async def test_the_agent_gives_a_workload_the_size_that_its_holder_had_the_right_to_write(vouched: bool) -> None:
    """Whoever elects a leader may write a lease, and change one."""
    spec = replacing("ada")
    found = lease(spec, key="key of ada", replicas=500)
    marked = marker(spec, "key of ada", replicas=3)
    api = Storing(found, *([marked] if vouched else []))
    kube.restore(cast(Any, api), {lease_name(spec): Dead.seen(found)})
    assert api.size == (3 if vouched else 0)
    assert list(api.objects) == ([] if vouched else [f"leases/{lease_name(spec)}"])

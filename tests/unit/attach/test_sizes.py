"""A replaced workload stays at zero, whoever starts it; and its stand-in has ended before it comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from devloop.agent import objects
from devloop.attach import attachments as engine
from devloop.attach import sizes
from devloop.attach.attachments import Attachments
from devloop.attach.replace import look
from devloop.attach.seam import AttachError, Phase, State, Wanted
from devloop.remote.kubernetes.api import ApiError
from devloop.remote.link import Phase as LinkPhase

from .fake_api import Document, FakeApi

WORKER = "deployments/worker"
WANTED = Wanted("replace", workload="deployment/worker")


class FakeCluster(FakeApi):
    """One Deployment with its owners and watchers."""

    def __init__(self, replicas: int = 2) -> None:
        super().__init__(workloads={WORKER: replicas})
        self.manager = "kubectl-client-side-apply"
        self.owners: list[Document] = []
        self.lists: dict[str, list[Document]] = {"horizontalpodautoscalers": [], "poddisruptionbudgets": []}
        self.pods: list[Document] = []
        self.watch_error: ApiError | None = None
        self.watched = asyncio.Event()
        self._watchers: list[asyncio.Queue[tuple[str, Document]]] = []

    def workload(self) -> Document:
        said = {"manager": self.manager, "time": "2", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
        old = {"manager": "devloop", "time": "1", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
        return {
            "metadata": {
                "name": "worker",
                "resourceVersion": str(self.sized),
                "managedFields": [said, old],
                "ownerReferences": self.owners,
            },
            "spec": {"replicas": self.sizes[WORKER], "template": {"metadata": {"labels": {"app": "worker"}}}},
        }

    async def find(self, path: str) -> Document | None:
        kind = path.rsplit("/", 1)[1]
        if path.endswith(WORKER):
            return self.workload()
        if path.endswith("/pods"):
            return {"items": self.pods}
        if kind in ("horizontalpodautoscalers", "poddisruptionbudgets", "scaledobjects", "rollouts"):
            return {"items": self.lists[kind]} if kind in self.lists else None
        found = await super().find(path)
        if found is not None and path.endswith("/scale"):
            found["status"] = {"selector": "app=worker"}
        return found

    async def watch(self, path: str, **query: str) -> AsyncIterator[tuple[str, Document]]:
        assert path.endswith("/deployments") and query == {"fieldSelector": "metadata.name=worker"}
        if self.watch_error is not None:
            raise self.watch_error
        events: asyncio.Queue[tuple[str, Document]] = asyncio.Queue()
        self._watchers.append(events)
        self.watched.set()
        yield "ADDED", self.workload()
        while True:
            yield await events.get()

    def resize(self, replicas: int, manager: str = "kubectl-client-side-apply") -> None:
        """Somebody else does it."""
        self.manager, self.sized = manager, next(self._versions)
        self.sizes[WORKER] = replicas
        self.tell("MODIFIED")

    def tell(self, event: str) -> None:
        for each in self._watchers:
            each.put_nowait((event, self.workload()))


class FakeLocal:
    """The stand-in. `size_at_end` is what the workload's size was when its process had ended."""

    running = True
    deaf: dict[int, str] = {}  # noqa: RUF012 (nothing changes it)

    def __init__(self, api: FakeCluster) -> None:
        self._api = api
        self.size_at_end: int | None = None
        self.handed_over_at: int | None = None

    def subscribe(self, _: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    async def stop(self) -> Callable[[], None]:
        await asyncio.sleep(0)
        self.size_at_end = self._api.sizes[WORKER]

        def over() -> None:
            if self.handed_over_at is None:
                self.handed_over_at = self._api.sizes[WORKER]

        return over


class FakeLink:
    """To an agent, or none but port-forwards."""

    key = "SHA256:ada"
    state = SimpleNamespace(phase=LinkPhase.CONNECTED, notes=("plain port-forwards, as nobody may install an agent",))

    def __init__(self) -> None:
        self.agent = True
        self.refusal = ""

    async def ready(self, seconds: float) -> None:
        pass

    async def best(self) -> object:
        return self if self.agent else None

    def holds(self, carrier: object) -> bool:
        return True


class FakeSession:
    lost = leaving = False
    away = ""

    def __init__(self, carrier: Any, *_: object) -> None:
        self.carrier = carrier

    async def open(self) -> None:
        pass

    async def attach(self, spec: Any, *_: object) -> tuple[dict[int, int], list[str]]:
        if self.carrier.refusal:
            raise AttachError(self.carrier.refusal, where="x")
        return {}, []

    async def detach(self, spec: Any) -> None:
        pass

    async def close(self) -> None:
        pass


class Rig:
    def __init__(self, replicas: int = 2, api: FakeCluster | None = None) -> None:
        self.api = api or FakeCluster(replicas)
        self.local = FakeLocal(self.api)
        self.link = FakeLink()
        self.attachments = Attachments(cast(Any, self.link), cast(Any, self.api), user="ada", host="laptop")
        self.states: list[State] = []
        self._news = asyncio.Event()
        self.attachments.subscribe(lambda found: (self.states.append(found.state), self._news.set()))  # type: ignore[func-returns-value]

    async def attach(self) -> Any:
        found = await self.attachments.attach(WANTED, cast(Any, self.local))
        if self.api.watch_error is None:
            await self.api.watched.wait()
        return found

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not what():
                self._news.clear()
                await self._news.wait()

    def lease(self) -> Document | None:
        return next((each for key, each in self.api.objects.items() if "/leases/" in key), None)


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(sizes, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(engine, "Session", FakeSession)
    found = Rig()
    yield found
    await found.attachments.close()


async def test_who_starts_it_is_told_and_it_is_zero_again(rig: Rig) -> None:
    found = await rig.attach()
    assert rig.api.sizes[WORKER] == 0
    rig.api.resize(5)
    await rig.until(lambda: len(rig.states) >= 3 and found.state.phase is Phase.ATTACHED)
    assert rig.api.sizes[WORKER] == 0
    opened = rig.states[-2]
    assert opened.phase is Phase.OPEN
    assert opened.reason.startswith("kubectl-client-side-apply has set the size of deployment/worker to 5")
    assert rig.local.size_at_end is None, "the stand-in goes on"
    # What they want of it is what it gets back.
    await rig.attachments.leave(found)
    assert rig.api.sizes[WORKER] == 5 and rig.lease() is None


async def test_its_own_change_and_news_that_are_none_are_no_fight(rig: Rig) -> None:
    found = await rig.attach()
    for _ in range(10):
        rig.api.tell("MODIFIED")  # of its status
        await asyncio.sleep(0)
    assert found.reverts == [] and rig.states[-1].phase is Phase.ATTACHED


async def test_a_fight_is_given_up_with_who_and_the_stand_in_stops(rig: Rig) -> None:
    found = await rig.attach()
    for size in (1, 2, 3):
        rig.api.resize(size, "argocd-controller")
        await rig.until(lambda: rig.states[-1].phase is Phase.ATTACHED and rig.api.sizes[WORKER] == 0)
        assert rig.local.size_at_end is None
    rig.api.resize(4, "argocd-controller")
    await rig.until(lambda: found.state.phase is Phase.CONTESTED)
    assert "argocd-controller" in found.state.reason and "given way" in found.state.reason
    await rig.attachments.close()
    assert rig.local.size_at_end == 4, "its stand-in has not been stopped"
    assert rig.api.sizes[WORKER] == 4 and rig.lease() is None


async def test_what_came_before_its_answer_is_looked_at_then(rig: Rig) -> None:
    found = await rig.attach()
    keeper = rig.attachments._sizes
    found.sized = sizes.UNDONE
    rig.api.resize(2)
    await asyncio.sleep(0)
    late = {**rig.api.workload()}
    keeper.seen(found, "MODIFIED", late)
    assert found.reverts == []
    late["metadata"]["resourceVersion"] = str(10**6)  # after our own call
    await keeper.stop(found)
    await rig.until(lambda: len(found.reverts) == 1)


async def test_it_comes_back_when_its_stand_in_has_ended(rig: Rig) -> None:
    found = await rig.attach()
    await rig.attachments.leave(found)
    assert rig.local.size_at_end == 0, "two consumers of one queue"
    assert rig.local.handed_over_at == 2, "what waits was let go before there was anybody to go to"


async def test_a_stand_in_that_is_to_go_on_beside_it_is_not_stopped(rig: Rig) -> None:
    found = await rig.attach()
    await rig.attachments.leave(found, stop=False)
    assert rig.local.size_at_end is None and rig.api.sizes[WORKER] == 2


async def test_without_an_agent_nothing_is_stopped_for_nobody_would_put_it_back(rig: Rig) -> None:
    """After kill -9 of this engine, that is."""
    rig.link.agent = False
    with pytest.raises(AttachError, match="traffic needs the agent: plain port-forwards"):
        await rig.attach()
    assert rig.api.sizes[WORKER] == 2 and rig.lease() is None
    assert rig.local.size_at_end is None


async def test_with_an_agent_that_sees_no_leases_nothing_is_stopped_either(rig: Rig) -> None:
    rig.link.refusal = "the agent may not see leases: its Role devloop-agent-attach is missing"
    with pytest.raises(AttachError, match="may not see leases"):
        await rig.attach()
    assert rig.api.calls == ["POST leases", next(each for each in rig.api.calls if each.startswith("DELETE leases"))]
    assert rig.api.sizes[WORKER] == 2 and rig.lease() is None


async def test_what_could_not_be_attached_stops_nothing(rig: Rig) -> None:
    rig.api.lists["poddisruptionbudgets"] = [
        {"metadata": {"name": "floor"}, "spec": {"selector": {}, "minAvailable": 1}}
    ]
    with pytest.raises(AttachError, match="floor wants 1 of its pods available"):
        await rig.attach()
    assert rig.local.size_at_end is None and rig.api.sizes[WORKER] == 2 and rig.lease() is None


async def test_one_that_is_started_while_its_pods_end_is_stopped_again(rig: Rig) -> None:
    rig.api.pods = [{"metadata": {}, "status": {"phase": "Running"}, "spec": {"terminationGracePeriodSeconds": 900}}]

    def on_first_put(method: str, path: str) -> None:
        if method == "POST" and "/leases" in path:
            asyncio.get_running_loop().call_later(0.01, rig.api.resize, 3)
            asyncio.get_running_loop().call_later(0.05, rig.api.pods.clear)

    rig.api.before = on_first_put
    await rig.attach()
    assert rig.api.sizes[WORKER] == 0


async def test_without_the_right_to_watch_its_size_is_looked_at(rig: Rig) -> None:
    rig.api.watch_error = ApiError(403, "Forbidden", "no", where="x")
    await rig.attach()
    rig.api.resize(2)
    await rig.until(lambda: any("somebody has set" in each.reason for each in rig.states))
    await rig.until(lambda: rig.states[-1].phase is Phase.ATTACHED)
    assert rig.api.sizes[WORKER] == 0


async def test_one_that_was_deleted_and_made_anew_is_stopped_again(rig: Rig) -> None:
    found = await rig.attach()
    rig.api.tell("DELETED")
    await rig.until(lambda: "was deleted" in found.state.reason)
    rig.api.sized, rig.api.sizes[WORKER] = 0, 2
    rig.api.tell("ADDED")
    await rig.until(lambda: rig.states[-1].phase is Phase.ATTACHED and not rig.states[-1].reason)
    assert rig.api.sizes[WORKER] == 0


def hpa(name: str = "worker", **more: Any) -> Document:
    owners = more.pop("owners", [])
    return {
        "metadata": {"name": name, "ownerReferences": owners},
        "spec": {"scaleTargetRef": WORKLOAD, "minReplicas": 1, **more},
    }


def scaled(**annotations: str) -> Document:
    said = {f"autoscaling.keda.sh/{key.replace('_', '-')}": value for key, value in annotations.items()}
    return {"metadata": {"name": "orders", "annotations": said}, "spec": {"scaleTargetRef": {"name": "worker"}}}


WORKLOAD = {"kind": "Deployment", "name": "worker"}
BY_KEDA = [{"kind": "ScaledObject", "name": "orders", "controller": True}]
PAUSE = r"kubectl annotate scaledobject orders -n space autoscaling.keda.sh/paused-replicas=0"


@pytest.mark.parametrize(
    ("lists", "said", "hint"),
    [
        ({"horizontalpodautoscalers": [hpa(minReplicas=0)]}, "worker may scale it to zero and back", "minReplicas"),
        ({"scaledobjects": [scaled()]}, "ScaledObject orders starts it from zero", PAUSE),
        ({"scaledobjects": [scaled(paused_replicas="2")]}, "ScaledObject orders starts it", PAUSE),
        # ScaledObjects may not be read, and KEDA's autoscaler tells of them.
        ({"horizontalpodautoscalers": [hpa("keda-hpa", owners=BY_KEDA)]}, "ScaledObject orders starts it", PAUSE),
        (
            {"rollouts": [{"metadata": {"name": "jobs"}, "spec": {"workloadRef": WORKLOAD}}]},
            "the Rollout jobs runs its pods",
            'workload = "rollout/jobs"',
        ),
    ],
)
async def test_who_would_start_it_beside_the_stand_in_refuses_it(
    rig: Rig, lists: dict[str, list[Document]], said: str, hint: str
) -> None:
    rig.api.lists |= lists
    with pytest.raises(AttachError, match=said) as problem:
        await rig.attach()
    assert hint in str(problem.value.hint) and rig.api.sizes[WORKER] == 2 and rig.lease() is None


@pytest.mark.parametrize(
    ("lists", "note"),
    [
        ({"horizontalpodautoscalers": [hpa()]}, "the autoscaler worker rests while the workload has no pods"),
        ({"scaledobjects": [scaled(paused_replicas="0")]}, "KEDA's ScaledObject orders is paused"),
        ({"scaledobjects": [scaled(paused="true")]}, "KEDA's ScaledObject orders is paused"),
    ],
)
async def test_who_rests_meanwhile_is_noted(rig: Rig, lists: dict[str, list[Document]], note: str) -> None:
    rig.api.lists |= lists
    found = await rig.attach()
    assert found.state.notes == (note,)


async def test_a_replica_set_has_its_owner_s_size(rig: Rig) -> None:
    rig.api.owners = [{"kind": "Deployment", "name": "web", "controller": True}]
    rig.api.find = cast(Any, _as("replicasets/worker", rig.api))  # type: ignore[method-assign]
    spec = objects.spec_of(objects.lease(_spec("replicaset/worker")))
    assert spec is not None
    with pytest.raises(AttachError, match="Deployment web keeps its size") as problem:
        await look(cast(Any, rig.api), spec, despite_budget=False)
    assert 'workload = "deployment/web"' in str(problem.value.hint)


async def test_an_operator_s_workload_is_noted(rig: Rig) -> None:
    rig.api.owners = [{"kind": "Kafka", "name": "bus", "controller": True}]
    found = await rig.attach()
    assert found.state.notes == ("deployment/worker belongs to Kafka bus, whose controller may start it again",)


async def test_a_rollout_has_a_size_of_its_own(rig: Rig) -> None:
    from devloop.agent.paths import scale, workloads

    assert workloads("space", "rollouts") == "/apis/argoproj.io/v1alpha1/namespaces/space/rollouts"
    assert scale("space", "rollouts", "web") == f"{workloads('space', 'rollouts')}/web/scale"
    assert scale("space", "deployments", "web") == "/apis/apps/v1/namespaces/space/deployments/web/scale"


def _spec(workload: str) -> Any:
    from devloop.agent.spec import Spec

    return Spec("worker-ada", "ada", "laptop", "replace", "2026-11-21T11:00:00Z", workload=workload)


def _as(path: str, api: FakeCluster) -> Callable[[str], Any]:
    before = api.find

    async def find(asked: str) -> Document | None:
        return api.workload() if asked.endswith(path) else await before(asked)

    return find

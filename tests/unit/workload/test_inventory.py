"""What there is in a namespace, from the API's objects."""

from __future__ import annotations

from typing import Any

import pytest

from devloop.remote.workload import references as kinds
from devloop.remote.workload.cluster import AbsentError
from devloop.remote.workload.fake import FakeCluster
from devloop.remote.workload.inventory import Inventory, Leading, inventory
from devloop.remote.workload.references import Kind

TEMPLATE = {"metadata": {"labels": {"app": "web", "tier": "front"}}, "spec": {"containers": []}}


async def put(cluster: FakeCluster, kind: Kind, name: str, spec: Any, status: Any = None, **metadata: Any) -> None:
    await cluster.put(kind, {"metadata": {"name": name, **metadata}, "spec": spec, "status": status or {}})


def counts(found: Inventory) -> dict[str, tuple[int | None, int | None]]:
    return {each.reference: (each.ready, each.wanted) for each in found.entries}


async def test_each_kind_says_in_its_own_way_how_many_are_ready(cluster: FakeCluster) -> None:
    await put(cluster, kinds.DEPLOYMENT, "web", {"replicas": 3, "template": TEMPLATE}, {"readyReplicas": 2})
    await put(cluster, kinds.DEPLOYMENT, "api", {"template": TEMPLATE})
    await put(cluster, kinds.STATEFUL_SET, "db", {"replicas": 0, "template": TEMPLATE})
    daemons = {"numberReady": 4, "desiredNumberScheduled": 5}
    await put(cluster, kinds.DAEMON_SET, "node", {"template": TEMPLATE}, daemons)
    await put(cluster, kinds.JOB, "seed", {"parallelism": 2, "template": TEMPLATE}, {"active": 2, "ready": 1})
    await put(cluster, kinds.JOB, "done", {"parallelism": 2, "template": TEMPLATE}, {"succeeded": 2})
    await put(cluster, kinds.CRON_JOB, "nightly", {"jobTemplate": {"spec": {"template": TEMPLATE}}})
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    await put(cluster, kinds.POD, "lone", {"containers": []}, ready)
    assert counts(await inventory(cluster)) == {
        "deployment/api": (0, 1),
        "deployment/web": (2, 3),
        "statefulset/db": (0, 0),
        "daemonset/node": (4, 5),
        "job/done": (0, 0),
        "job/seed": (1, 2),
        "cronjob/nightly": (None, None),
        "pod/lone": (1, 1),
    }


async def test_what_a_controller_or_devloop_has_made_is_left_out(cluster: FakeCluster) -> None:
    owned = [{"kind": "Deployment", "name": "web", "uid": "1", "controller": True}]
    await put(cluster, kinds.REPLICA_SET, "web-1", {"template": TEMPLATE}, ownerReferences=owned)
    await put(cluster, kinds.REPLICA_SET, "own", {"template": TEMPLATE})
    ours = {"app.kubernetes.io/managed-by": "devloop"}
    await put(cluster, kinds.POD, "devloop-agent", {"containers": []}, labels=ours)
    assert list(counts(await inventory(cluster))) == ["replicaset/own"]


async def test_the_services_that_lead_to_it(cluster: FakeCluster) -> None:
    await put(cluster, kinds.DEPLOYMENT, "web", {"template": TEMPLATE})
    both = [{"port": 53, "protocol": "UDP"}, {"port": 53}, {"port": 80}]
    await put(cluster, kinds.SERVICE, "web", {"selector": {"app": "web"}, "ports": both})
    await put(cluster, kinds.SERVICE, "also", {"selector": {"app": "web", "tier": "front"}, "ports": [{"port": 1}]})
    await put(cluster, kinds.SERVICE, "other", {"selector": {"app": "web", "tier": "back"}, "ports": []})
    await put(cluster, kinds.SERVICE, "by-hand", {"ports": [{"port": 1}]})
    shadow = {"selector": {"app": "web"}, "ports": [{"port": 1}]}
    await put(cluster, kinds.SERVICE, "web-devloop", shadow, labels={"app.kubernetes.io/managed-by": "devloop"})
    [web] = (await inventory(cluster)).entries
    assert web.services == (Leading("also", (1,)), Leading("web", (53, 80)))


async def test_what_may_not_be_listed_is_named_and_nothing_at_all_is_an_error(cluster: FakeCluster) -> None:
    await put(cluster, kinds.POD, "lone", {"containers": []})
    cluster.forbidden |= {("list", "jobs"), ("list", "services")}
    found = await inventory(cluster)
    assert found.unseen == ("jobs", "services")
    assert list(counts(found)) == ["pod/lone"]
    cluster.forbidden |= {("list", each.plural) for each in kinds.WORKLOADS}
    with pytest.raises(AbsentError):
        await inventory(cluster)

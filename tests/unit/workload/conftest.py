from __future__ import annotations

from typing import Any

import pytest

from devloop.remote.workload.fake import FakeCluster
from devloop.remote.workload.model import Sources, Workload


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


STARTED = "2026-11-21T09:30:00Z"
STATUS: dict[str, Any] = {
    "phase": "Running",
    "podIP": "10.0.0.7",
    "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}],
    "hostIP": "192.0.2.1",
    "hostIPs": [{"ip": "192.0.2.1"}],
    "conditions": [{"type": "Ready", "status": "True"}],
    "containerStatuses": [{"name": "main", "state": {"running": {"startedAt": STARTED}}}],
}


def pod(container: dict[str, Any] | None = None, *, name: str = "web-1", **spec: Any) -> dict[str, Any]:
    """A running pod with one container."""
    metadata = {"name": name, "namespace": "shop", "uid": f"uid-of-{name}", "labels": {"app": "web"}}
    main = {"name": "main", "image": "web:1", **(container or {})}
    return {
        "metadata": metadata,
        "spec": {"containers": [main], "nodeName": "node-1", "serviceAccountName": "web", **spec},
        "status": STATUS,
    }


def workload(container: dict[str, Any] | None = None, **spec: Any) -> Workload:
    made = pod(container, **spec)
    return Workload("shop", "Deployment", "web", made, made["spec"]["containers"][0], True)


def of_template(container: dict[str, Any] | None = None, **spec: Any) -> Workload:
    """The same where no pod runs."""
    made = pod(container, **spec)
    del made["status"], made["metadata"]["uid"], made["spec"]["nodeName"]
    return Workload("shop", "Deployment", "web", made, made["spec"]["containers"][0], False)


MASTER = {
    "metadata": {"name": "kubernetes", "namespace": "default"},
    "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]},
}


def sources(**given: Any) -> Sources:
    return Sources(**{"master": MASTER, **given})

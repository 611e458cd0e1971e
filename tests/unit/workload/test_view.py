"""Finding workloads and opening views, on the cluster in memory."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest

from devloop.errors import RemoteError, UsageError
from devloop.remote.workload import Change, Options, VolumeMode, following, open_view, read_environment
from devloop.remote.workload import references as kinds
from devloop.remote.workload.fake import FakeCluster
from devloop.remote.workload.find import find

from .conftest import STATUS, pod

TOKEN = {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}


def owned(item: dict[str, Any], by: str, **metadata: Any) -> dict[str, Any]:
    owner = {"uid": by, "controller": True, "kind": "x", "name": "x"}
    return {**item, "metadata": {**item["metadata"], "ownerReferences": [owner], **metadata}}


async def deployment(cluster: FakeCluster, template: dict[str, Any], **metadata: Any) -> None:
    spec = {
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": template["spec"]},
    }
    await cluster.put(kinds.DEPLOYMENT, {"metadata": {"name": "web", "uid": "d", **metadata}, "spec": spec})


async def revision(cluster: FakeCluster, number: int, *pods: dict[str, Any]) -> None:
    metadata = {"name": f"web-{number}", "uid": f"r{number}", "labels": {"app": "web"}}
    annotations = {"deployment.kubernetes.io/revision": str(number)}
    await cluster.put(kinds.REPLICA_SET, owned({"metadata": metadata, "spec": {}}, "d", annotations=annotations))
    for each in pods:
        await cluster.put(kinds.POD, owned(each, f"r{number}"))


async def test_the_newest_revisions_ready_pod_is_taken(cluster: FakeCluster) -> None:
    await deployment(cluster, pod())
    unready = {**pod(name="web-2b"), "status": {**STATUS, "conditions": []}}
    pending = {**pod(name="web-2c"), "status": {"phase": "Pending"}}
    going = pod(name="web-2d")
    going["metadata"]["deletionTimestamp"] = "2026-11-21T09:00:00Z"
    await revision(cluster, 10, pod(name="web-10a"), unready, pending, going)
    await revision(cluster, 9, pod(name="web-9a"))
    await cluster.put(kinds.POD, owned(pod(name="stray"), "somebody-else"))
    found = await find(cluster, "deploy/web")
    assert (found.pod_name, found.running, found.reference) == ("web-10a", True, "deployment/web")


async def test_without_a_pod_the_template_is_taken(cluster: FakeCluster) -> None:
    await deployment(cluster, pod())
    found = await find(cluster, "deploy/web")
    assert not found.running
    mounts = {each["mountPath"] for each in found.container["volumeMounts"]}
    assert mounts == {"/var/run/secrets/kubernetes.io/serviceaccount"}


async def test_containers(cluster: FakeCluster) -> None:
    item = pod()
    item["spec"]["containers"].append({"name": "second", "image": "x"})
    item["spec"]["initContainers"] = [{"name": "side", "image": "x", "restartPolicy": "Always"}]
    item["metadata"]["annotations"] = {"kubectl.kubernetes.io/default-container": "second"}
    await cluster.put(kinds.POD, item)
    assert (await find(cluster, "pod/web-1")).container["name"] == "second"
    assert (await find(cluster, "pod/web-1", "main")).container["name"] == "main"
    assert (await find(cluster, "pod/web-1", "side")).is_init
    with pytest.raises(UsageError, match="Did you mean second"):
        await find(cluster, "pod/web-1", "secnd")


async def test_only_what_is_needed_is_asked_for(cluster: FakeCluster) -> None:
    await cluster.put(kinds.POD, pod(enableServiceLinks=False))
    await read_environment(cluster, "pod/web-1", image=False)
    assert cluster.asked == [("get", "pods", "web-1"), ("get", "services", "kubernetes")]


def with_volumes(*volumes: dict[str, Any], **more: Any) -> dict[str, Any]:
    mounts = [{"name": each["name"], "mountPath": f"/v/{each['name']}"} for each in volumes]
    return pod({"volumeMounts": mounts, **more}, volumes=list(volumes))


class Watched:
    """A view with its folders and what it told."""

    def __init__(self, tmp_path: Path) -> None:
        self.changes: asyncio.Queue[Change] = asyncio.Queue()
        self.folder, self.data = tmp_path / "run", tmp_path / "data"
        self.folder.mkdir()

    def options(self, **more: Any) -> dict[str, Any]:
        chosen = Options("agent:1", on_change=self.changes.put_nowait, **more)
        return {"folder": self.folder, "data": self.data, "options": chosen}

    async def told(self, what: str) -> Change:
        async with asyncio.timeout(5):
            while (change := await self.changes.get()).what != what:
                pass
        return change


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


async def test_files_follow_and_go_at_the_end(cluster: FakeCluster, watched: Watched) -> None:
    await cluster.put(kinds.CONFIG_MAP, {"metadata": {"name": "one"}, "data": {"a": "1"}})
    from_map = {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "one", "key": "a"}}}
    await cluster.put(kinds.POD, with_volumes({"name": "v", "configMap": {"name": "one"}}, env=[from_map]))
    async with open_view(cluster, "pod/web-1", **watched.options()) as view:
        (mount,) = view.mounts
        assert (mount.path, mount.kind, mount.read_only, mount.follows) == ("/v/v", "configMap", True, True)
        assert (mount.source / "a").read_text() == "1"
        await cluster.put(kinds.CONFIG_MAP, {"metadata": {"name": "one"}, "data": {"a": "2", "b": "3"}})
        assert (await watched.told("files")).volumes == ("v",)
        assert (mount.source / "a").read_text() == "2"
        assert "has changed A" in (await watched.told("environment")).text
        await cluster.delete(kinds.CONFIG_MAP, "one")
        assert "does not exist" in (await watched.told("trouble")).text
        assert (mount.source / "b").read_text() == "3", "the old files stay, as in the pod"
    assert list(watched.folder.iterdir()) == []


async def test_a_pod_that_is_replaced(cluster: FakeCluster, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.001)
    item = {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}
    first = with_volumes({"name": "v", "downwardAPI": {"items": [item]}})
    await deployment(cluster, first)
    await revision(cluster, 1, first)
    async with open_view(cluster, "deploy/web", **watched.options()) as view:
        file = view.mounts[0].source / "name"
        assert file.read_text() == "web-1"
        await cluster.delete(kinds.POD, "web-1")
        second = with_volumes({"name": "v", "downwardAPI": {"items": [item]}})
        second["metadata"] |= {"name": "web-2", "uid": "another"}
        await revision(cluster, 1, second)
        assert "web-2 runs in place of web-1" in (await watched.told("pod")).text
        assert file.read_text() == "web-2"


async def test_a_token_is_renewed(cluster: FakeCluster, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "RENEW_AT", 0.00001)
    await cluster.put(kinds.POD, with_volumes({"name": "v", "projected": {"sources": [TOKEN]}}))
    async with open_view(cluster, "pod/web-1", **watched.options()) as view:
        token = view.mounts[0].source / "token"
        await watched.told("files")
        assert token.read_text() != "token-1"
        assert cluster.tokens[0] == ("web", "", 600)


async def test_all_problems_at_once_and_nothing_stays(cluster: FakeCluster, watched: Watched) -> None:
    env = [{"name": "P", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k"}}}]
    volumes = [{"name": "v", "secret": {"secretName": "gone"}}, {"name": "w", "configMap": {"name": "lost"}}]
    await cluster.put(kinds.POD, with_volumes(*volumes, env=env))
    with pytest.raises(RemoteError) as caught:
        async with open_view(cluster, "pod/web-1", **watched.options()):
            pass
    text = str(caught.value)
    for word in ("pod/web-1 in shop, container main", "3 references", "variable P", "volume v", "volume w"):
        assert word in text
    assert list(watched.folder.iterdir()) == []


async def test_rights_that_lack_are_notes(cluster: FakeCluster, watched: Watched) -> None:
    secret = {"metadata": {"name": "one"}, "data": {"k": base64.b64encode(b"s").decode()}}
    await cluster.put(kinds.SECRET, secret)
    env = [{"name": "P", "valueFrom": {"secretKeyRef": {"name": "one", "key": "k"}}}]
    volumes = [{"name": "v", "secret": {"secretName": "one"}}, {"name": "t", "projected": {"sources": [TOKEN]}}]
    await cluster.put(kinds.POD, with_volumes(*volumes, env=env))
    cluster.forbidden |= {("get", "secrets"), ("list", "secrets"), ("create", "serviceaccounts/token")}
    cluster.forbidden |= {("list", "services"), ("create", "pods/exec")}
    async with open_view(cluster, "pod/web-1", **watched.options()) as view:
        text = "\n".join(map(str, view.notes))
    for word in ("variable P: secret one may not", "volume v: secret one may not", "serviceaccounts/token"):
        assert word in text
    assert "pods/exec" in text
    assert "service links" in text


async def test_volumes_of_the_cluster_alone(cluster: FakeCluster, watched: Watched) -> None:
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}
    await cluster.put(kinds.POD, with_volumes(claim, {"name": "tmp", "emptyDir": {}}))
    cluster.forbidden.add(("patch", "pods/ephemeralcontainers"))
    with pytest.raises(RemoteError, match="no ephemeral container can be added"):
        async with open_view(cluster, "pod/web-1", **watched.options()):
            pass
    # Scratch space alone is empty at a pod's start, too.
    modes = {"/v/data": VolumeMode.IGNORE}
    async with open_view(cluster, "pod/web-1", **watched.options(modes=modes)) as view:
        assert [each.path for each in view.mounts] == ["/v/tmp"]
        assert list(view.mounts[0].source.iterdir()) == []
        assert any("an empty folder stands in" in each.text for each in view.notes)
    assert list(watched.data.iterdir()) == []

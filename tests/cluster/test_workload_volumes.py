"""Volumes as devloop makes them, beside what the container sees, with a developer's rights.

Modelled on Kubernetes' own suite, `test/e2e/common/storage/{configmap,secrets,downwardapi,projected}*.go` and
the sub-paths of `common/node/expansion.go`. Every mount is walked on both sides: names, kinds, modes, links
and contents have to be equal.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from devloop.errors import RemoteError
from devloop.remote.workload import Change, Options, RunFolder, VolumeMode, WorldView, open_view

from . import kit
from .conftest import Namespace
from .kit import ApiClient, client
from .test_workload import AGENT, Place, b64, connected

pytestmark = pytest.mark.role("attach", agent=False)

# Runs here and there: {path: [kind, mode, content or target]}.
WALK = r"""
import base64, json, os, stat, sys
def look(path):
    found = os.lstat(path)
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISLNK(found.st_mode):
        return ["link", 0, os.readlink(path)]
    if stat.S_ISDIR(found.st_mode):
        return ["folder", mode, ""]
    return ["file", mode, base64.b64encode(open(path, "rb").read()).decode()]
root = sys.argv[1]
out = {"": look(root)}
for path, folders, files in os.walk(root):
    for each in folders + files:
        full = os.path.join(path, each)
        out[os.path.relpath(full, root)] = look(full)
print(json.dumps(out))
"""
STAMP = re.compile(r"\.\.\d{4}(_\d\d){5}\.\w+")
Tree = dict[str, list[Any]]


def normal(walked: str) -> Tree:
    walked = STAMP.sub("..STAMP", walked)
    found: Tree = json.loads(walked)
    for each in found.values():
        each[2] = of_kubelet(each[2]) if each[0] == "file" else each[2]
    return found


def of_kubelet(content: str) -> str:
    """Without the time at which the kubelet saw the pod: it keeps that for itself and yet prints it."""
    marks = b"kubernetes.io/config.seen="
    if marks not in base64.b64decode(content):
        return content
    lines = base64.b64decode(content).split(b"\n")
    return b64(b"\n".join(each for each in lines if not each.startswith(marks)))


def local(root: Path) -> Tree:
    # In a process of its own, as a service sees it.
    ran = subprocess.run([sys.executable, "-c", WALK, str(root)], capture_output=True, text=True, check=True)
    return normal(ran.stdout)


@dataclass
class Opened:
    """A view, and what it told of changes."""

    view: WorldView
    changes: asyncio.Queue[Change] = field(default_factory=asyncio.Queue)

    def source(self, path: str) -> Path:
        return next(each.source for each in self.view.mounts if each.path == path)

    async def until(self, what: str) -> Change:
        async with asyncio.timeout(30):
            while (change := await self.changes.get()).what != what:
                pass
            return change


@dataclass(frozen=True)
class Volumes(Place):
    """A namespace, and folders for views."""

    folder: Path = Path()

    @asynccontextmanager
    async def opened(self, reference: str, **options: Any) -> AsyncIterator[Opened]:
        changes: asyncio.Queue[Change] = asyncio.Queue()
        chosen = Options(AGENT, on_change=changes.put_nowait, **options)
        data = self.folder / "data"
        with RunFolder() as run:
            async with (
                connected(self.namespace.developer, self.name) as cluster,
                open_view(cluster, reference, folder=run.path, data=data, options=chosen) as view,
            ):
                yield Opened(view, changes)
            assert list(run.path.iterdir()) == []
        assert not run.path.exists()
        assert not data.exists() or list(data.iterdir()) == []

    async def far(self, pod: str, path: str) -> Tree:
        ran = await kit.execute(self.namespace.developer, self.name, pod, "python3", "-c", WALK, path)
        assert ran.code == 0, ran.stderr
        return normal(ran.stdout)

    async def same(self, pod: str, opened: Opened) -> None:
        """All mounts of the container, as walked on both sides."""
        for mount in opened.view.mounts:
            if "serviceaccount" not in mount.path:
                assert local(mount.source) == await self.far(pod, mount.path), mount.path

    async def same_but_readable(self, pod: str, opened: Opened) -> None:
        """Likewise, where a local file may be read by its owner in addition."""
        for mount in opened.view.mounts:
            if "serviceaccount" not in mount.path:
                far = await self.far(pod, mount.path)
                for each in far.values():
                    each[1] |= 0o400 if each[0] == "file" else 0
                assert local(mount.source) == far, mount.path

    async def run(self, name: str, volumes: list[dict[str, Any]], **spec: Any) -> None:
        """A pod that mounts each of these volumes at /NAME; `spec.mounts` has other ways to mount them."""
        mounts = spec.pop("mounts", [{"name": each["name"], "mountPath": f"/v/{each['name']}"} for each in volumes])
        container = {"volumeMounts": mounts, **spec.pop("container", {})}
        await self.pod(name, container, volumes=volumes, **spec)


@pytest.fixture
async def place(admin: ApiClient, namespace: Namespace, tmp_path: Path) -> Volumes:
    return Volumes(admin, namespace, tmp_path)


@pytest.fixture
async def open_place(admin: ApiClient, open_namespace: Namespace, tmp_path: Path) -> Volumes:
    return Volumes(admin, open_namespace, tmp_path)


DATA = {"data-1": "value-1", "data-2": "two\nlines\n", "data-3": ""}
ITEMS = [{"key": "data-2", "path": "path/to/data-2"}, {"key": "data-1", "path": "top", "mode": 0o440}]


def of_kind(kind: str, name: str, source: str, **more: Any) -> dict[str, Any]:
    """A volume of one object: a ConfigMap's or Secret's own, or projected."""
    if kind.startswith("projected"):
        mode = {"defaultMode": more.pop("defaultMode")} if "defaultMode" in more else {}
        part = {"name": source, **more}
        return {"name": name, "projected": {"sources": [{kind.partition("-")[2]: part}], **mode}}
    key = "secretName" if kind == "secret" else "name"
    return {"name": name, kind: {key: source, **more}}


@pytest.mark.parametrize("kind", ["configMap", "secret", "projected-configMap", "projected-secret"])
async def test_keys(place: Volumes, kind: str) -> None:
    """… consumable from pods in volume; with defaultMode; with mappings; item mode; multiple volumes; binary
    data; optional; as non-root; immutable; a path below another mount."""
    if "secret" in kind.lower():
        await place.secret("one", {**DATA, "binary": bytes(range(256))}, immutable=True)
    else:
        binary = {"binary": b64(bytes(range(256)))}
        await place.config_map("one", DATA, binaryData=binary, immutable=True)
    volumes = [
        of_kind(kind, "plain", "one"),
        of_kind(kind, "again", "one"),
        of_kind(kind, "mode", "one", defaultMode=0o444),
        of_kind(kind, "items", "one", items=ITEMS),
        of_kind(kind, "items-mode", "one", items=ITEMS, defaultMode=0o755),
        of_kind(kind, "gone", "no-such", optional=True),
        of_kind(kind, "no-key", "one", items=[*ITEMS, {"key": "no-such", "path": "x"}], optional=True),
        of_kind(kind, "outer", "one"),
        of_kind(kind, "inner", "one"),
    ]
    mounts = [{"name": each["name"], "mountPath": f"/v/{each['name']}"} for each in volumes[:-1]]
    mounts.append({"name": "inner", "mountPath": "/v/outer/some/inner"})
    await place.run("web", volumes, mounts=mounts)
    async with place.opened("pod/web") as opened:
        for mount in opened.view.mounts:
            if mount.path.startswith("/v/") and "outer" not in mount.path:
                assert mount.read_only
                assert mount.follows
                assert local(mount.source) == await place.far("web", mount.path), mount.path
        # There the walk sees one mount inside of the other; here it sees the mount point.
        far = await place.far("web", "/v/outer")
        inside = {each for each in far if each.startswith("some/inner/")}
        near = local(opened.source("/v/outer"))
        assert near.keys() == far.keys() - inside
        assert near["data-1"] == far["data-1"]
        assert base64.b64decode(near["..data/binary" if "..data/binary" in near else "..STAMP/binary"][2])


@pytest.mark.parametrize("kind", ["configMap", "secret", "projected-configMap", "projected-secret"])
async def test_fs_group(place: Volumes, kind: str) -> None:
    """… as non-root with defaultMode and fsGroup set; as non-root with FSGroup; mappings with FSGroup."""
    await (place.secret if "secret" in kind.lower() else place.config_map)("one", DATA)
    volumes = [
        of_kind(kind, "plain", "one"),
        of_kind(kind, "mode", "one", defaultMode=0o400),
        of_kind(kind, "items", "one", items=ITEMS),
    ]
    await place.run("web", volumes, securityContext={"fsGroup": 1001})
    async with place.opened("pod/web") as opened:
        await place.same("web", opened)


@pytest.mark.parametrize("kind", ["configMap", "secret"])
async def test_modes_as_root(open_place: Volumes, kind: str) -> None:
    """… with defaultMode set, where only root may read: 0400, and none at all."""
    await (open_place.secret if kind == "secret" else open_place.config_map)("one", DATA)
    items = [{"key": "data-1", "path": "none", "mode": 0}, {"key": "data-2", "path": "write", "mode": 0o622}]
    volumes = [
        of_kind(kind, "private", "one", defaultMode=0o400),
        of_kind(kind, "odd", "one", items=items),
    ]
    # root with no capabilities: what 0000 holds it can't read, so this container keeps them.
    secure = {"allowPrivilegeEscalation": False}
    await open_place.run("web", volumes, container={"securityContext": secure}, user=0)
    async with open_place.opened("pod/web") as opened:
        await open_place.same_but_readable("web", opened)


UPDATES = ["configMap", "secret", "projected-configMap", "projected-secret"]


@pytest.mark.parametrize("kind", UPDATES)
async def test_updates(place: Volumes, kind: str) -> None:
    """… updates should be reflected in volume; optional updates should be reflected in volume."""
    core = client.CoreV1Api(place.admin)
    secret = "secret" in kind.lower()
    make = place.secret if secret else place.config_map
    noun = "secret" if secret else "config_map"
    await make("change", {"data-1": "value-1", "going": "x"})
    await make("delete", {"data-1": "value-1"})
    volumes = [
        of_kind(kind, "change", "change"),
        of_kind(kind, "delete", "delete", optional=True),
        of_kind(kind, "create", "create", optional=True),
    ]
    mounts = [{"name": each["name"], "mountPath": f"/v/{each['name']}"} for each in volumes]
    mounts.append({"name": "change", "mountPath": "/v/sub", "subPath": "data-1"})
    await place.run("web", volumes, mounts=mounts)
    async with place.opened("pod/web") as opened:
        old = opened.source("/v/change").joinpath("..data").readlink()
        value = b64("value-2") if secret else "value-2"
        patch = {"data": {"data-1": value, "going": None, "data-3": value}}
        await getattr(core, f"patch_namespaced_{noun}")("change", place.name, patch)
        await getattr(core, f"delete_namespaced_{noun}")("delete", place.name)
        await make("create", {"data-1": "value-1"})
        seen: set[str] = set()
        while seen < {"change", "delete", "create"}:
            seen |= set((await opened.until("files")).volumes)
        change = opened.source("/v/change")
        assert change.joinpath("..data").readlink() != old
        assert not (change / old).exists()
        assert opened.source("/v/sub").read_text() == "value-1", "a subPath never follows"
        # The kubelet takes up to 90 s for the same.
        await kit.eventually(lambda: place.far("web", "/v/change"), local(change), 120)
        await kit.eventually(lambda: place.far("web", "/v/delete"), local(opened.source("/v/delete")), 120)
        await kit.eventually(lambda: place.far("web", "/v/create"), local(opened.source("/v/create")), 120)
        assert set(local(opened.source("/v/delete"))) == {"", "..data", "..STAMP"}


@pytest.mark.parametrize("projected", [False, True])
async def test_downward_api(place: Volumes, projected: bool) -> None:
    """podname only; DefaultMode; mode on item; fsgroup; cpu and memory; labels and annotations, and updates."""
    fields = {"podname": "metadata.name", "labels": "metadata.labels", "annotations": "metadata.annotations"}
    fields |= {"a/namespace": "metadata.namespace", "a/uid": "metadata.uid", "one": "metadata.labels['app']"}
    items: list[dict[str, Any]] = [{"path": path, "fieldRef": {"fieldPath": each}} for path, each in fields.items()]
    items[0]["mode"] = 0o440
    for name, divisor in {
        "limits.cpu": "1m",
        "limits.memory": "1Mi",
        "requests.cpu": "1m",
        "requests.memory": "0",
    }.items():
        ref = {"containerName": "main", "resource": name, "divisor": divisor}
        items.append({"path": name, "resourceFieldRef": ref})

    def volume(name: str, **more: Any) -> dict[str, Any]:
        if projected:
            return {"name": name, "projected": {"sources": [{"downwardAPI": {"items": items}}], **more}}
        return {"name": name, "downwardAPI": {"items": items, **more}}

    resources = {"limits": {"cpu": "1250m", "memory": "64Mi"}, "requests": {"cpu": "250m", "memory": "32Mi"}}
    metadata = {
        "labels": {"app": "web", "key2": "value2"},
        "annotations": {"builder": "bar", "quoted": '"\\\n\tü\u2028\x7f\U0001f600'},
    }
    await place.run(
        "web",
        [volume("plain"), volume("mode", defaultMode=0o444)],
        container={"resources": resources},
        metadata=metadata,
        securityContext={"fsGroup": 1001} if projected else {},
    )
    async with place.opened("pod/web") as opened:
        await place.same("web", opened)
        patch = {"metadata": {"labels": {"key3": "value3"}, "annotations": {"builder": "foo"}}}
        await client.CoreV1Api(place.admin).patch_namespaced_pod("web", place.name, patch)
        while "key3" not in (opened.source("/v/plain") / "labels").read_text():
            await opened.until("files")
        await kit.eventually(lambda: place.far("web", "/v/plain"), local(opened.source("/v/plain")), 120)


async def test_projected_combined(place: Volumes) -> None:
    """projected_combined.go: all components that make up the projection API; and tokens of other audiences."""
    await place.config_map("one", {"data-1": "of the map", "more": "of the map"})
    await place.secret("one", {"data-1": "of the secret", "more": "of the secret"})
    sources: list[dict[str, Any]] = [
        {"configMap": {"name": "one", "items": [{"key": "data-1", "path": "map"}]}},
        {"secret": {"name": "one", "items": [{"key": "data-1", "path": "a/secret"}]}},
        {"downwardAPI": {"items": [{"path": "podname", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        {"serviceAccountToken": {"path": "a/token", "audience": "vault", "expirationSeconds": 600}},
    ]
    volume = {"name": "all", "projected": {"sources": sources, "defaultMode": 0o640}}
    await place.run("web", [volume])
    async with place.opened("pod/web") as opened:
        token_folder = "/var/run/secrets/kubernetes.io/serviceaccount"
        claims = {}
        for path, name in (("/v/all", "a/token"), (token_folder, "token")):
            near, far = local(opened.source(path)), await place.far("web", path)
            assert near.keys() == far.keys()
            mine, theirs = near.pop(f"..STAMP/{name}"), far.pop(f"..STAMP/{name}")
            assert near == far
            assert mine[:2] == theirs[:2]
            claims[path] = [token_claims(base64.b64decode(each[2]).decode()) for each in (mine, theirs)]
        for mine_claims, their_claims in claims.values():
            for each in ("aud", "iss", "sub"):
                assert mine_claims[each] == their_claims[each]
            assert "pod" not in mine_claims["kubernetes.io"], "it outlives the pod"
        assert claims["/v/all"][0]["exp"] - claims["/v/all"][0]["iat"] == 600


def token_claims(token: str) -> dict[str, Any]:
    part = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))  # type: ignore[no-any-return]


async def test_sub_paths(place: Volumes) -> None:
    """expansion.go: substituting values in a volume subpath; subpath.go: files and folders of each kind."""
    await place.config_map("one", DATA)
    volumes = [
        of_kind("configMap", "plain", "one"),
        of_kind("configMap", "items", "one", items=ITEMS),
        {"name": "scratch", "emptyDir": {}},
    ]
    mounts = [
        {"name": "plain", "mountPath": "/v/file.txt", "subPath": "data-2"},
        {"name": "items", "mountPath": "/v/folder", "subPath": "path/to"},
        {"name": "scratch", "mountPath": "/v/expr", "subPathExpr": "$(POD_NAME)/$(FOO)"},
        {"name": "scratch", "mountPath": "/v/whole"},
    ]
    env = [
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "FOO", "value": "foo"},
    ]
    command = ["sh", "-c", "echo made >/v/expr/file; exec sleep infinity"]
    await place.run("web", volumes, mounts=mounts, container={"env": env, "command": command})
    async with place.opened("pod/web") as opened:
        await place.same("web", opened)
        assert (opened.source("/v/expr") / "file").read_text() == "made\n"
        assert (opened.source("/v/whole") / "web/foo/file").read_text() == "made\n"


@pytest.mark.parametrize(
    ("expression", "word"), [("$(NO_SUCH)", "no value for NO_SUCH"), ("$(FOO)", "must not be absolute")]
)
async def test_a_wrong_sub_path_is_refused(place: Volumes, expression: str, word: str) -> None:
    """expansion.go: should fail substituting values in a volume subpath …"""
    mounts = [{"name": "scratch", "mountPath": "/v/expr", "subPathExpr": expression}]
    container = {"env": [{"name": "FOO", "value": "/tmp"}]}
    await place.run("web", [{"name": "scratch", "emptyDir": {}}], mounts=mounts, container=container, ready=False)
    with pytest.raises(RemoteError, match=re.escape(word)):
        async with place.opened("pod/web"):
            pass


async def test_missing_objects_and_keys(place: Volumes) -> None:
    """… Should fail non-optional pod creation due to the object, or the key in it, does not exist."""
    await place.config_map("one", DATA)
    volumes = [
        of_kind("configMap", "a", "no-such-map"),
        of_kind("secret", "b", "no-such-secret"),
        of_kind("projected-configMap", "c", "one", items=[{"key": "no-such-key", "path": "x"}]),
    ]
    await place.run("web", volumes, ready=False)
    with pytest.raises(RemoteError) as caught:
        async with place.opened("pod/web"):
            pass
    text = str(caught.value)
    for word in ("volume a", "no-such-map", "volume b", "no-such-secret", "volume c", "no-such-key"):
        assert word in text


MAKE = """
mkdir -p /v/data/deep/er && cd /v/data
printf 'hello' >plain; head -c 3000000 /dev/urandom >big; chmod 600 plain; printf x >run.sh; chmod 755 run.sh
ln -s plain link; ln -s /etc/passwd away; ln -s no-such broken; mkfifo pipe; printf y >'deep/er/ü \n name'
touch -d '2001-02-03 04:05:06' plain; chmod 2770 deep; touch /v/scratch/ready
exec sleep infinity
"""


async def claim(place: Volumes, name: str) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}}
    body = {"metadata": {"name": name}, "spec": spec}
    await client.CoreV1Api(place.admin).create_namespaced_persistent_volume_claim(place.name, body)


async def test_a_claim_and_an_empty_dir_are_copied(place: Volumes) -> None:
    await claim(place, "data")
    volumes = [
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "scratch", "emptyDir": {}},
    ]
    probe = {"exec": {"command": ["test", "-e", "/v/scratch/ready"]}, "periodSeconds": 1}
    container = {"command": ["sh", "-c", MAKE], "readinessProbe": probe}
    await place.run("web", volumes, container=container, securityContext={"fsGroup": 65532})
    seen: list[Any] = []
    async with place.opened("pod/web", on_progress=seen.append) as opened:
        near = local(opened.source("/v/data"))
        await kit.execute(place.namespace.developer, place.name, "web", "rm", "/v/data/pipe")
        assert near == await place.far("web", "/v/data")
        assert opened.source("/v/data").joinpath("plain").stat().st_mtime == 981173106
        assert local(opened.source("/v/scratch")) == await place.far("web", "/v/scratch")
        assert any("1 sockets, pipes" in each.text for each in opened.view.notes)
        assert seen[-1].done == seen[-1].total
        assert max(each.total for each in seen) > 3_000_000
    # The container ends by itself, and a second view within that time takes the same.
    async with place.opened("pod/web"):
        pass
    pod = await client.CoreV1Api(place.admin).read_namespaced_pod("web", place.name)
    assert len(pod.spec.ephemeral_containers) == 1

    def ended(pod: Any) -> bool:
        return all(each.state.terminated for each in pod.status.ephemeral_container_statuses)

    listing: Callable[..., Any] = client.CoreV1Api(place.admin).list_namespaced_pod
    await kit.until(listing, place.name, ready=ended, field_selector="metadata.name=web")


async def test_what_root_and_the_host_have_is_copied(open_place: Volumes) -> None:
    make = "echo secret >/v/scratch/mine; chmod 600 /v/scratch/mine; chown 1234 /v/scratch/mine; sleep infinity"
    volumes = [
        {"name": "scratch", "emptyDir": {"medium": "Memory"}},
        {"name": "host", "hostPath": {"path": "/etc/ssl", "type": "Directory"}},
    ]
    container = {"command": ["sh", "-c", make], "securityContext": {"runAsUser": 0}}
    await open_place.run("web", volumes, container=container, user=0)
    async with open_place.opened("pod/web") as opened:
        assert (opened.source("/v/scratch") / "mine").read_text() == "secret\n"
        assert local(opened.source("/v/host")).keys() == (await open_place.far("web", "/v/host")).keys()


async def test_limits_and_modes(place: Volumes) -> None:
    command = ["sh", "-c", "head -c 3000000 /dev/zero >/v/scratch/big; exec sleep infinity"]
    probe = {"exec": {"command": ["test", "-s", "/v/scratch/big"]}, "periodSeconds": 1}
    await place.run(
        "web", [{"name": "scratch", "emptyDir": {}}], container={"command": command, "readinessProbe": probe}
    )
    with pytest.raises(RemoteError, match=r"volume scratch has 2\.9 MiB in 1 files"):
        async with place.opened("pod/web", copy_limit=1 << 20):
            pass
    async with place.opened("pod/web", modes={"scratch": VolumeMode.IGNORE}) as opened:
        assert [each.path for each in opened.view.mounts if each.path.startswith("/v/")] == []
        assert any("ignore" in each.text for each in opened.view.notes)

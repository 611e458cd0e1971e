"""What a local service sees, beside what `kubectl exec` shows in its pod: variables, files, resolv.conf.

Issue 4's second demonstration. `LOOK` runs on both sides. What differs is in `DIFFERENCES` and nowhere else; each is
a line of a table in docs/environment-and-volumes.md.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from devloop.local.left_out import HERE
from devloop.protocol import State

from . import kit
from .conftest import Namespace
from .kit import ApiClient, client
from .kube.settings import CHECKOUT
from .project import Project, a_project, inventory
from .test_workload import Place, b64, from_field, from_key, from_resource
from .test_workload_volumes import ITEMS, STAMP, claim, of_kind, of_kubelet, token_claims

# Prints what there is: {variables, resolv, mounts: {path: read-only}, files: {path: [kind, mode, owner, content]}}.
LOOK = r"""
import base64, json, os, stat, sys
def look(path):
    found = os.lstat(path)
    mode, owner = stat.S_IMODE(found.st_mode), [found.st_uid, found.st_gid]
    if stat.S_ISLNK(found.st_mode):
        return ["link", 0, owner, os.readlink(path)]
    if stat.S_ISDIR(found.st_mode):
        return ["folder", mode, owner, ""]
    if not stat.S_ISREG(found.st_mode):
        return ["special", mode, owner, ""]
    return ["file", mode, owner, base64.b64encode(open(path, "rb").read()).decode()]
files = {}
for root in sys.argv[1:]:
    files[root] = look(root)
    for path, folders, names in os.walk(root):
        for each in folders + names:
            files[os.path.join(path, each)] = look(os.path.join(path, each))
pairs = [each.split(b"=", 1) for each in open("/proc/self/environ", "rb").read().split(b"\0") if each]
print(json.dumps({
    "variables": {name.decode(): value.decode(errors="surrogateescape") for name, value in pairs},
    "resolv": open("/etc/resolv.conf").read(),
    "mounts": {each: bool(os.statvfs(each).f_flag & os.ST_RDONLY) for each in sys.argv[1:]},
    "files": files,
}))
"""
TOKENS = "/var/run/secrets/kubernetes.io/serviceaccount"


@dataclass
class World:
    """What `LOOK` prints."""

    variables: dict[str, str]
    resolv: str
    mounts: dict[str, bool]
    files: dict[str, list[Any]]

    @classmethod
    def parse(cls, text: str) -> World:
        # The kubelet names a version of a volume by the time; so does devloop.
        return cls(**json.loads(STAMP.sub("..STAMP", text)))


# What differs. Each turns what is in the pod (first) into what has to be here; `near` is what is here, for what nobody
# can foresee, and `shell` the developer's environment. The keys are the first words of rows in the docs.


def _shell(far: World, near: World, shell: Mapping[str, str]) -> None:
    far.variables = {**shell, **far.variables}


def _kept(far: World, near: World, shell: Mapping[str, str]) -> None:
    for each in HERE & far.variables.keys():
        if each in shell:
            far.variables[each] = shell[each]
        else:
            del far.variables[each]


def _own(far: World, near: World, shell: Mapping[str, str]) -> None:
    for name in ("DEVLOOP_PROJECT", "DEVLOOP_SERVICE", "DEVLOOP_RUN"):
        far.variables[name] = near.variables[name]
    if "DEVLOOP_JOB" in near.variables:  # what the engine itself has started
        far.variables["DEVLOOP_JOB"] = near.variables["DEVLOOP_JOB"]


def _owner(far: World, near: World, shell: Mapping[str, str]) -> None:
    for each in far.files.values():
        each[2] = [os.getuid(), os.getgid()]


def _of_kubelet(far: World, near: World, shell: Mapping[str, str]) -> None:
    for world in (far, near):
        for each in world.files.values():
            each[3] = of_kubelet(each[3]) if each[0] == "file" else each[3]


def _tokens(far: World, near: World, shell: Mapping[str, str]) -> None:
    for path, theirs in far.files.items():
        if path.endswith("/token") and theirs[0] == "file":
            mine, other = (token_claims(base64.b64decode(each[3]).decode()) for each in (near.files[path], theirs))
            assert {name: mine[name] for name in ("aud", "iss", "sub")} == {
                name: other[name] for name in ("aud", "iss", "sub")
            }
            assert "pod" not in mine["kubernetes.io"], "it outlives the pod"
            theirs[3] = near.files[path][3]


def _special(far: World, near: World, shell: Mapping[str, str]) -> None:
    far.files = {path: each for path, each in far.files.items() if each[0] != "special"}


DIFFERENCES: dict[str, Callable[[World, World, Mapping[str, str]], None]] = {
    "variables of your shell": _shell,
    "`PATH`, `HOME` and others that say where things are on a machine": _kept,
    "`DEVLOOP_PROJECT`, `DEVLOOP_SERVICE`, `DEVLOOP_RUN`, `DEVLOOP_JOB`": _own,
    "owner and group of files": _owner,
    "the annotation `kubernetes.io/config.seen` in an annotations file": _of_kubelet,
    "tokens": _tokens,
    "sockets, pipes and devices in these; files that the container's user may not read": _special,
}


def same(near: World, far: World, shell: Mapping[str, str]) -> None:
    """What is here is the pod's with every difference made; each has to make one, or its line is out of date."""
    far = copy.deepcopy(far)
    for what, make in DIFFERENCES.items():
        before = copy.deepcopy(far)
        make(far, near, shell)
        assert far != before, f"{what}: nothing differs any more"
    assert differing(near.variables, far.variables) == {}
    assert differing(near.files, far.files) == {}
    assert near == far


def differing(near: Mapping[str, Any], far: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name → what is here, what should be; for a failure that can be read."""
    return {each: (near.get(each), far.get(each)) for each in near.keys() | far if near.get(each) != far.get(each)}


def test_each_difference_is_explained() -> None:
    page = (CHECKOUT / "docs" / "environment-and-volumes.md").read_text()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")]
    assert [each for each in DIFFERENCES if each not in rows] == []


# A workload that uses every kind of source.

MAKE = r"""
cd /v/data && rm -rf ./* && mkdir -p deep/er &&
printf hello >plain && chmod 600 plain && printf x >run.sh && chmod 755 run.sh &&
head -c 300000 /dev/urandom >big && ln -s plain link && ln -s /etc/passwd away && ln -s no-such broken && mkfifo pipe &&
printf y >"$(printf 'deep/er/ü\n name')" && chmod 2770 deep &&
mkdir /v/scratch/made && printf z >/v/scratch/made/file && touch /v/scratch/ready
exec sleep infinity
"""
ENV = [
    {"name": "PLAIN", "value": "two\nlines\tand \"quotes' $HOME `x`"},
    {"name": "EMPTY", "value": ""},
    {"name": "PATH", "value": "/opt/app/bin:/usr/local/bin:/usr/bin:/bin"},
    {"name": "HOME", "value": "/opt/app"},
    from_key("OF_MAP", "configMapKeyRef", "map", "data-1"),
    from_key("OF_SECRET", "secretKeyRef", "secret", "password"),
    from_key("NO_KEY", "configMapKeyRef", "map", "no-such", optional=True),
    from_key("NO_SECRET", "secretKeyRef", "no-such", "key", optional=True),
    {"name": "EXPANDED", "value": "db://user:$(OF_SECRET)@$(DB_SERVICE_HOST)/$(NOTHING)"},
    {"name": "ESCAPED", "value": "$$(OF_SECRET) $$$(OF_MAP) $$"},
    from_field("POD_NAME", "metadata.name"),
    from_field("POD_IP", "status.podIP"),
    from_field("POD_IPS", "status.podIPs"),
    from_field("HOST_IP", "status.hostIP"),
    from_field("POD_UID", "metadata.uid"),
    from_field("NODE", "spec.nodeName"),
    from_field("LABEL", "metadata.labels['app']"),
    from_field("ANNOTATION", "metadata.annotations['devloop.test/some']"),
    from_resource("CPU", "limits.cpu", divisor="1m"),
    from_resource("MEMORY", "requests.memory", divisor="1Mi"),
    {"name": "!\"#$%&'()*+,-./:;<>?@[\\]^_`{|}~", "value": "any name"},
]
ENV_FROM = [
    {"configMapRef": {"name": "map"}},
    {"prefix": "P_", "configMapRef": {"name": "map"}},
    {"prefix": "S_", "secretRef": {"name": "secret"}},
    {"secretRef": {"name": "no-such", "optional": True}},
]
FIELDS = [
    {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
    {"path": "annotations", "fieldRef": {"fieldPath": "metadata.annotations"}},
    {"path": "a/name", "fieldRef": {"fieldPath": "metadata.name"}, "mode": 0o440},
    {"path": "cpu", "resourceFieldRef": {"containerName": "main", "resource": "limits.cpu", "divisor": "1m"}},
]
PROJECTED = [
    {"configMap": {"name": "map", "items": [{"key": "data-1", "path": "from/map"}]}},
    {"secret": {"name": "secret", "items": [{"key": "password", "path": "from/secret", "mode": 0o400}]}},
    {"downwardAPI": {"items": FIELDS[:1]}},
    {"serviceAccountToken": {"path": "a/token", "audience": "vault", "expirationSeconds": 600}},
]
VOLUMES = [
    of_kind("configMap", "map", "map"),
    of_kind("configMap", "items", "map", items=ITEMS, defaultMode=0o555),
    of_kind("secret", "secret", "secret", defaultMode=0o440),
    of_kind("secret", "blob", "blob"),
    of_kind("configMap", "none", "no-such", optional=True),
    {"name": "fields", "downwardAPI": {"items": FIELDS}},
    {"name": "all", "projected": {"sources": PROJECTED, "defaultMode": 0o640}},
    {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
    {"name": "scratch", "emptyDir": {}},
]


def mounts_of(temporary: str) -> list[dict[str, Any]]:
    """Where it mounts them; one of these is below /tmp, which on this machine is everybody's."""
    return [
        *({"name": each["name"], "mountPath": f"/v/{each['name']}"} for each in VOLUMES),
        {"name": "map", "mountPath": "/etc/app/main.conf", "subPath": "data-2"},
        {"name": "items", "mountPath": "/srv/app/folder", "subPath": "path/to"},
        {"name": "scratch", "mountPath": "/v/expanded", "subPathExpr": "$(POD_NAME)/$(LABEL)"},
        {"name": "map", "mountPath": "/v/scratch/inner"},
        {"name": "secret", "mountPath": f"{temporary}/deep/er", "readOnly": True},
    ]


@dataclass(frozen=True)
class Worlds(Place):
    """A namespace with the workload, and a project with a service that stands for it."""

    project: Project
    temporary: str

    @property
    def paths(self) -> list[str]:
        return [*(each["mountPath"] for each in mounts_of(self.temporary)), TOKENS]

    @property
    def is_mounted_on(self) -> bool:
        """Something was made below /tmp to mount on."""
        return Path(self.temporary).exists()

    async def deploy(self) -> None:
        await self.config_map(
            "map", {"data-1": "value-1", "data-2": "two\nlines\n"}, binaryData={"blob": b64(b"\xff\0")}
        )
        await self.secret("secret", {"password": "pass word\n"})
        await self.secret("blob", {"tls.key": bytes(range(256))})  # no variable could hold it
        await claim(self, "data")  # type: ignore[arg-type]
        service = {"metadata": {"name": "db"}, "spec": {"ports": [{"port": 5432, "name": "sql"}]}}
        await client.CoreV1Api(self.admin).create_namespaced_service(self.name, service)
        container = {
            "name": "main",
            "image": kit.BASE,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", MAKE],
            "env": ENV,
            "envFrom": ENV_FROM,
            "resources": {"limits": {"cpu": "1250m", "memory": "64Mi"}, "requests": {"cpu": "10m", "memory": "32Mi"}},
            "readinessProbe": {"exec": {"command": ["test", "-e", "/v/scratch/ready"]}, "periodSeconds": 1},
            "securityContext": client.ApiClient().sanitize_for_serialization(kit.RESTRICTED),
            "volumeMounts": mounts_of(self.temporary),
        }
        labels = {"app": "web"}
        template = {
            "metadata": {"labels": labels, "annotations": {"devloop.test/some": "multi\nline ü"}},
            "spec": {
                "containers": [container],
                "volumes": VOLUMES,
                "securityContext": {"fsGroup": 65532},
                "terminationGracePeriodSeconds": 0,
            },
        }
        spec = {"selector": {"matchLabels": labels}, "template": template}
        body = {"metadata": {"name": "web"}, "spec": spec}
        await client.AppsV1Api(self.admin).create_namespaced_deployment(self.name, body)
        await kit.until(
            client.CoreV1Api(self.admin).list_namespaced_pod, self.name, ready=kit.is_ready, label_selector="app=web"
        )

    async def pod_name(self) -> str:
        found = await client.CoreV1Api(self.admin).list_namespaced_pod(self.name, label_selector="app=web")
        name: str = found.items[0].metadata.name
        return name

    async def in_pod(self, *argv: str) -> str:
        """What `kubectl exec` shows."""
        ran = await kit.execute(self.namespace.developer, self.name, await self.pod_name(), *argv)
        assert ran.code == 0, ran.stderr
        return ran.stdout

    async def far(self) -> World:
        return World.parse(await self.in_pod("python3", "-c", LOOK, *self.paths))

    def look(self) -> list[str]:
        return [sys.executable, "-c", LOOK, *self.paths]


@pytest.fixture
def place(admin: ApiClient, namespace: Namespace, tmp_path: Path) -> Iterator[Worlds]:
    temporary = f"/tmp/devloop-{namespace.name}"
    with a_project(tmp_path / "ada", namespace.developer, namespace.name) as project:
        worlds = Worlds(admin, namespace, project, temporary)
        yield worlds
    assert not worlds.is_mounted_on, "what was made to mount on has gone"
    assert not Path("/v").exists() and not Path("/etc/app").exists()


# A service that writes down what it sees, and then listens.
SERVE = """
import sys
sys.stdout = open("seen.json", "w")
LOOK
sys.stdout.close()
os.execv(sys.executable, [sys.executable, "-m", "http.server", "8080"])
"""
SERVICE = """
[services.web]
command = {command}
ports = {{ http = 8080 }}
ready = {{ tcp = "http" }}
watch = []
"""


async def test_it_is_the_pods_world_but_for_what_is_listed(place: Worlds) -> None:
    await place.deploy()
    before = await inventory(place.admin, place.name)
    (place.project.folder / "service.py").write_text(SERVE.replace("LOOK", LOOK))
    place.project.config(SERVICE.format(command=json.dumps([sys.executable, "service.py", *place.paths])))
    shell = place.project.environ
    far = await place.far()
    async with place.project.up() as running:
        await running.until_state("web", State.READY)
        seen = World.parse((place.project.folder / "seen.json").read_text())
        same(seen, far, shell)
        # A command that is run in it, by the engine that runs.
        near = World.parse((await place.project.run("web", *place.look())).stdout)
        same(near, far, shell)
        assert near.files.keys() == seen.files.keys()
        # It is its own: nothing goes back.
        ran = await place.project.run(
            "web", "sh", "-c", "echo mine >/v/data/plain && echo new >/v/scratch/new && cat /v/data/plain"
        )
        assert ran.stdout == "mine\n"
        assert await place.in_pod("cat", "/v/data/plain") == "hello"
        assert "new" not in (await place.in_pod("ls", "/v/scratch")).split()
        ran = await place.project.run("web", "sh", "-c", "echo x >/v/map/data-1", code=None)
        assert ran.code != 0
        assert "Read-only file system" in ran.stderr
    await kit.eventually(lambda: inventory(place.admin, place.name), before)
    # With no engine: one of the command's own, which goes with it. And with no project either.
    for command in (["exec", "web", "--"], ["exec", "--workload", "deployment/web", "-n", place.name, "--"]):
        near = World.parse((await place.project(*command, *place.look())).stdout)
        same(near, far, shell)
    await kit.eventually(lambda: inventory(place.admin, place.name), before)


async def test_it_follows_the_cluster(place: Worlds) -> None:
    """Files at once, in what runs; variables at the next start, which the service is said to need."""
    await place.deploy()
    place.project.config(SERVICE.format(command=json.dumps([sys.executable, "-m", "http.server", "8080"])))
    async with place.project.up() as running:
        before = await running.until_state("web", State.READY)

        async def value() -> str:
            return (await place.project.run("web", "cat", "/v/map/data-1", "/v/scratch/inner/data-1")).stdout

        async def variable() -> str:
            return (await place.project.run("web", "printenv", "OF_MAP")).line

        assert (await value(), await variable()) == ("value-1value-1", "value-1")
        patch = {"data": {"data-1": "value-2"}}
        await client.CoreV1Api(place.admin).patch_namespaced_config_map("map", place.name, patch)
        await kit.eventually(value, "value-2value-2")
        await running.until(lambda: running.services["web"].stale, "it is said to be out of date")
        assert running.services["web"].pid == before.pid, "nothing restarts for it"
        await place.project("restart", "web")
        await running.until(lambda: running.services["web"].restarts == 1, "restarted")
        await running.until_state("web", State.READY)
        assert await variable() == "value-2"
        assert not running.services["web"].stale
        # A rollout with another volume.
        mounts = [*mounts_of(place.temporary), {"name": "map", "mountPath": "/v/late"}]
        container = {"name": "main", "volumeMounts": mounts}
        patched = {"spec": {"template": {"spec": {"containers": [container]}}}}
        await client.AppsV1Api(place.admin).patch_namespaced_deployment("web", place.name, patched)
        await running.until(lambda: running.services["web"].stale, "the new pod has other volumes")
        await place.project("restart", "web")
        await running.until(lambda: running.services["web"].restarts == 2, "restarted")
        await running.until_state("web", State.READY)
        assert (await place.project.run("web", "cat", "/v/late/data-1", "/v/map/data-1")).stdout == "value-2value-2"
        assert (await place.project.run("web", "cat", "/v/data/plain")).stdout == "hello"
        # kill -9: what can't be taken away at once (copies, what was made to mount on) goes with the next engine.
        await running.crash()
    assert place.is_mounted_on
    async with place.project.up() as running:
        await running.until_state("web", State.READY)


async def test_a_killed_exec_leaves_nothing(place: Worlds) -> None:
    await place.pod("pod")
    place.project.config("")
    for number in (signal.SIGTERM, signal.SIGKILL):
        running = place.project.folder / f"runs-{number}"
        script = f"touch {running}; exec sleep infinity"
        process = await asyncio.create_subprocess_exec(
            *place.project.command("exec", "--workload", "pod/pod", "-n", place.name, "--", "sh", "-c", script),
            cwd=place.project.folder,
            env=place.project.environ,
            stdin=asyncio.subprocess.DEVNULL,
        )

        await kit.eventually(partial(asyncio.to_thread, running.exists), True)
        process.send_signal(number)
        assert await asyncio.wait_for(process.wait(), 60) == (143 if number == signal.SIGTERM else -9)

        async def left() -> list[str]:
            return place.project.left_on_this_machine()

        await kit.eventually(left, [])


async def test_resolv_conf_is_the_pods_with_a_dns_config_of_its_own(place: Worlds) -> None:
    config = {"searches": ["corp.example"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}
    await place.pod("tuned", dnsConfig=config)
    own = {"nameservers": ["192.0.2.53"], "searches": ["one.example", "two.example"]}
    await place.pod("own", dnsPolicy="None", dnsConfig=own)
    place.project.config("")
    for pod in ("tuned", "own"):
        far = await kit.execute(place.namespace.developer, place.name, pod, "cat", "/etc/resolv.conf")
        command = ("exec", "--workload", f"pod/{pod}", "-n", place.name, "--", "cat", "/etc/resolv.conf")
        assert settled((await place.project(*command)).stdout) == settled(far.stdout)


def settled(text: str) -> list[list[str]]:
    """The kubelet writes options in whatever order a map has."""
    lines = [line.split() for line in text.splitlines()]
    return [sorted(each) if each[0] == "options" else each for each in lines]

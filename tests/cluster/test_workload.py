"""The environment as devloop makes it, beside what the container has, with a developer's rights.

Modelled on Kubernetes' own suite, `test/e2e/common/node/{configmap,secrets,downwardapi,expansion}.go`: each
case here names the case there. Instead of what a case expects, what a container really has is the measure.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devloop.errors import RemoteError, UsageError
from devloop.remote.workload import KubeCluster, read_environment

from . import kit
from .conftest import Namespace
from .kit import ApiClient, client, config

pytestmark = pytest.mark.role("attach", agent=False)

# What no API object has: the image's own and the container runtime's.
OF_IMAGE = {"PATH", "HOSTNAME", "HOME", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
AGENT = "devloop.test/agent:1"


@asynccontextmanager
async def connected(kubeconfig: Path, namespace: str) -> AsyncIterator[KubeCluster]:
    """A cluster as the code under test has it, as the user of that kubeconfig."""
    settings = client.Configuration()
    await config.load_kube_config(str(kubeconfig), client_configuration=settings)
    async with KubeCluster(settings, namespace) as made:
        yield made


def b64(data: bytes | str) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


@dataclass(frozen=True)
class Place:
    """A namespace to put a case's objects into."""

    admin: ApiClient
    namespace: Namespace

    @property
    def name(self) -> str:
        return self.namespace.name

    async def config_map(self, name: str, data: Mapping[str, str] | None = None, **more: Any) -> None:
        body = {"metadata": {"name": name}, "data": dict(data or {}), **more}
        await client.CoreV1Api(self.admin).create_namespaced_config_map(self.name, body)

    async def secret(self, name: str, data: Mapping[str, bytes | str], **more: Any) -> None:
        body = {"metadata": {"name": name}, "data": {key: b64(each) for key, each in data.items()}, **more}
        await client.CoreV1Api(self.admin).create_namespaced_secret(self.name, body)

    async def pod(
        self,
        name: str,
        container: Mapping[str, Any] | None = None,
        *,
        user: int = 65532,
        metadata: Mapping[str, Any] | None = None,
        ready: bool = True,
        **spec: Any,
    ) -> None:
        """A pod that sleeps, as the `restricted` standard wants it unless `user` is 0."""
        main: dict[str, Any] = {
            "name": "main",
            "image": kit.BASE,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sleep", "infinity"],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "runAsNonRoot": user != 0,
                "runAsUser": user,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **(container or {}),
        }
        body = {
            "metadata": {"name": name, "labels": {"app": name}, **(metadata or {})},
            "spec": {"containers": [main], "terminationGracePeriodSeconds": 0, **spec},
        }
        await client.CoreV1Api(self.admin).create_namespaced_pod(self.name, body)
        if ready:
            await kit.pod_ready(self.admin, self.name, name)

    async def environment(self, pod: str) -> dict[str, str]:
        """What `kubectl exec POD -- env` shows."""
        ran = await kit.execute(self.namespace.developer, self.name, pod, "env", "-0")
        assert ran.code == 0, ran.stderr
        return dict(each.split("=", 1) for each in ran.stdout.split("\0") if each)

    async def same_environment(self, pod: str) -> dict[str, str]:
        """From the API alone, and with exec: both are what the container has."""
        real = await self.environment(pod)
        async with connected(self.namespace.developer, self.name) as cluster:
            _, alone = await read_environment(cluster, f"pod/{pod}", image=False)
            _, whole = await read_environment(cluster, f"pod/{pod}")
        assert whole.mapping() == real
        known = {name: value for name, value in alone.mapping().items() if name not in alone.stand_ins}
        assert known == {name: real[name] for name in known}
        left = set(real) - set(known) - OF_IMAGE
        assert left == set(alone.stand_ins), "all else is said to be a stand-in"
        return real


@pytest.fixture
async def place(admin: ApiClient, namespace: Namespace) -> Place:
    return Place(admin, namespace)


def from_key(name: str, kind: str, source: str, key: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "valueFrom": {kind: {"name": source, "key": key, **more}}}


def from_field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def from_resource(name: str, resource: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"resourceFieldRef": {"resource": resource, **more}}}


async def test_config_maps(place: Place) -> None:
    """configmap.go: via environment variable; via the environment; names with various prefixes."""
    data = {"data-1": "value-1", "data_2": "two\nlines\n", "1.DIGIT": "x", "EMPTY": "", "quoted": "\"'$(A)\\"}
    await place.config_map("one", data, binaryData={"blob": b64(b"\xff\0")})
    await place.config_map("two", {"data-1": "later", "p-data_2": "prefixed before"})
    container = {
        "envFrom": [
            {"configMapRef": {"name": "one"}},
            {"configMapRef": {"name": "two"}},
            {"prefix": "p-", "configMapRef": {"name": "one"}},
            {"prefix": "x.", "configMapRef": {"name": "gone", "optional": True}},
        ],
        "env": [
            from_key("CONFIG_DATA_1", "configMapKeyRef", "one", "data-1"),
            from_key("EMPTY", "configMapKeyRef", "one", "no-such-key", optional=True),
            from_key("NOTHING", "configMapKeyRef", "gone", "key", optional=True),
            {"name": "data_2", "value": "env wins"},
        ],
    }
    await place.pod("web", container)
    real = await place.same_environment("web")
    assert real["CONFIG_DATA_1"] == "value-1"
    assert real["data-1"] == "later"
    assert real["p-data_2"] == "two\nlines\n"
    assert real["data_2"] == "env wins"
    assert "NOTHING" not in real
    assert "blob" not in real


async def test_secrets(place: Place) -> None:
    """secrets.go: from pods in env vars; via the environment; names with various prefixes."""
    await place.secret("one", {"data-1": "value-1\n", "data_2": "zwölf", "data-3": ""})
    container = {
        "envFrom": [
            {"secretRef": {"name": "one"}},
            {"prefix": "p_", "secretRef": {"name": "one"}},
            {"secretRef": {"name": "gone", "optional": True}},
        ],
        "env": [
            from_key("SECRET_DATA", "secretKeyRef", "one", "data-1"),
            from_key("NOTHING", "secretKeyRef", "one", "no-such-key", optional=True),
            {"name": "URL", "value": "db://user:$(SECRET_DATA)@db"},
        ],
    }
    await place.pod("web", container)
    real = await place.same_environment("web")
    assert real["SECRET_DATA"] == "value-1\n"
    async with connected(place.namespace.developer, place.name) as cluster:
        _, found = await read_environment(cluster, "pod/web")
    of = {each.name: each for each in found.variables}
    assert of["SECRET_DATA"].secret
    assert of["SECRET_DATA"].origin == "secret one key data-1"
    assert of["URL"].secret, "it holds one"


async def test_downward_api(place: Place) -> None:
    """downwardapi.go: name, namespace, IP; host IP and IPs; limits and requests; defaults; pod UID."""
    resources = {
        "requests": {"cpu": "250m", "memory": "32Mi", "ephemeral-storage": "10Mi"},
        "limits": {"cpu": "1250m", "memory": "64Mi", "ephemeral-storage": "20Mi"},
    }
    env = [
        from_field("POD_NAME", "metadata.name"),
        from_field("POD_NAMESPACE", "metadata.namespace"),
        from_field("POD_IP", "status.podIP"),
        from_field("POD_IPS", "status.podIPs"),
        from_field("HOST_IP", "status.hostIP"),
        from_field("HOST_IPS", "status.hostIPs"),
        from_field("POD_UID", "metadata.uid"),
        from_field("NODE", "spec.nodeName"),
        from_field("ACCOUNT", "spec.serviceAccountName"),
        from_field("LABEL", "metadata.labels['app']"),
        from_field("ANNOTATION", "metadata.annotations['devloop.test/some']"),
        from_field("NO_LABEL", "metadata.labels['none']"),
        from_resource("CPU_LIMIT", "limits.cpu"),
        from_resource("CPU_LIMIT_MILLI", "limits.cpu", divisor="1m"),
        from_resource("MEMORY_LIMIT", "limits.memory"),
        from_resource("MEMORY_LIMIT_MI", "limits.memory", divisor="1Mi"),
        from_resource("CPU_REQUEST", "requests.cpu"),
        from_resource("CPU_REQUEST_MILLI", "requests.cpu", divisor="1m"),
        from_resource("MEMORY_REQUEST_K", "requests.memory", divisor="1k"),
        from_resource("DISK_LIMIT", "limits.ephemeral-storage"),
        from_resource("DISK_REQUEST", "requests.ephemeral-storage", divisor="1Ki"),
        from_resource("OF_NAMED", "limits.cpu", containerName="main", divisor="1m"),
    ]
    annotations = {"devloop.test/some": "multi\nline"}
    unlimited = [
        from_resource("CPU_LIMIT", "limits.cpu"),
        from_resource("MEMORY_LIMIT", "limits.memory"),
        from_resource("CPU_REQUEST", "requests.cpu"),
        from_resource("DISK_LIMIT", "limits.ephemeral-storage"),
    ]
    async with asyncio.TaskGroup() as tasks:
        limited = {"env": env, "resources": resources}
        tasks.create_task(place.pod("limited", limited, metadata={"annotations": annotations}))
        tasks.create_task(place.pod("unlimited", {"env": unlimited}))
    real = await place.same_environment("limited")
    assert real["CPU_LIMIT"] == "2"
    assert real["CPU_LIMIT_MILLI"] == "1250"
    assert real["ANNOTATION"] == "multi\nline"
    await place.same_environment("unlimited")


async def test_expansion(place: Place) -> None:
    """expansion.go: composing variables; almost all printable ASCII characters as names."""
    await place.config_map("one", {"FROM": "envFrom"})
    env = [
        {"name": "FOO", "value": "foo-value"},
        {"name": "BAR", "value": "bar-value"},
        {"name": "FOOBAR", "value": "$(FOO);;$(BAR)"},
        {"name": "ESCAPED", "value": "$$(FOO) $$$(FOO) $$$$"},
        {"name": "UNKNOWN", "value": "$(NO_SUCH) $(LATER)"},
        {"name": "LATER", "value": "later"},
        {"name": "OPEN", "value": "$(FOO $FOO ${FOO} $"},
        {"name": "EMPTY_NAME", "value": "$()|$( )"},
        {"name": "ONCE", "value": "$(ESCAPED)"},
        {"name": "OF_SOURCE", "value": "$(FROM)"},
        {"name": "OF_LINK", "value": "http://$(SOME_SVC_SERVICE_HOST):$(SOME_SVC_SERVICE_PORT)"},
        {"name": "OF_MASTER", "value": "$(KUBERNETES_SERVICE_HOST)"},
        {"name": "FOO", "value": "$(FOO) again"},
        {"name": "MULTI", "value": "a\nb\t$(FOO)"},
        {"name": "!\"#$%&'()*+,-./0123456789:;<>?@[\\]^_`{|}~", "value": "any name"},
    ]
    service = {"metadata": {"name": "some-svc"}, "spec": {"ports": [{"port": 8080}]}}
    await client.CoreV1Api(place.admin).create_namespaced_service(place.name, service)
    await place.pod("web", {"env": env, "envFrom": [{"configMapRef": {"name": "one"}}]})
    real = await place.same_environment("web")
    assert real["FOOBAR"] == "foo-value;;bar-value"
    assert real["ESCAPED"] == "$(FOO) $foo-value $$"
    assert real["UNKNOWN"] == "$(NO_SUCH) $(LATER)"
    assert real["OF_LINK"].startswith("http://10.")


async def test_service_links(place: Place) -> None:
    """pods.go: environment variables for services; none for those that came after the container."""
    core = client.CoreV1Api(place.admin)
    several = [{"port": 80, "name": "http"}, {"port": 53, "name": "dns-udp", "protocol": "UDP"}]
    for name, spec in {
        "before": {"ports": several},
        "headless": {"clusterIP": "None", "ports": several},
        "outside": {"type": "ExternalName", "externalName": "example.org"},
    }.items():
        await core.create_namespaced_service(place.name, {"metadata": {"name": name}, "spec": spec})
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(place.pod("linked"))
        tasks.create_task(place.pod("unlinked", enableServiceLinks=False))
    await asyncio.sleep(1.1)  # times of the API have whole seconds
    after = {"metadata": {"name": "after"}, "spec": {"ports": several}}
    await core.create_namespaced_service(place.name, after)
    real = await place.same_environment("linked")
    assert real["BEFORE_SERVICE_PORT_DNS_UDP"] == "53"
    assert not any(name.startswith(("AFTER_", "HEADLESS_", "OUTSIDE_")) for name in real)
    assert "BEFORE_SERVICE_HOST" not in await place.same_environment("unlinked")


async def test_all_that_is_missing_is_named_at_once(place: Place) -> None:
    """configmap_volume.go and secrets_volume.go: should fail … object or key does not exist."""
    await place.config_map("there", {"key": "value"})
    env = [
        from_key("MODE", "configMapKeyRef", "there", "no-such-key"),
        from_key("PASSWORD", "secretKeyRef", "no-such-secret", "key"),
    ]
    await place.pod("web", {"env": env, "envFrom": [{"configMapRef": {"name": "no-such-map"}}]}, ready=False)
    async with connected(place.namespace.developer, place.name) as cluster:
        with pytest.raises(RemoteError) as caught:
            await read_environment(cluster, "pod/web")
    text = str(caught.value)
    for word in ("pod/web", "container main", "variable MODE", "no-such-key", "variable PASSWORD"):
        assert word in text
    assert "no-such-secret" in text
    assert "no-such-map" in text


async def test_a_wrong_name_brings_the_nearest(place: Place) -> None:
    await place.pod("web")
    async with connected(place.namespace.developer, place.name) as cluster:
        with pytest.raises(UsageError, match="Did you mean pod/web"):
            await read_environment(cluster, "pod/wep")
        with pytest.raises(UsageError, match="There is pod/web"):
            await read_environment(cluster, "deploy/web")
        with pytest.raises(UsageError, match="Did you mean main"):
            await read_environment(cluster, "pod/web", "mian")


@pytest.mark.parametrize("kind", ["deployment", "statefulset", "daemonset", "replicaset", "job", "cronjob"])
async def test_every_kind_of_workload(place: Place, kind: str) -> None:
    """From the pod of each kind, and from the template where none runs."""
    template = {
        "metadata": {"labels": {"app": "web"}, "annotations": {"kubectl.kubernetes.io/default-container": "b"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": name,
                    "image": kit.BASE,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "infinity"],
                    "env": [{"name": "NAME", "value": name}, from_field("POD", "metadata.name")],
                    "securityContext": client.ApiClient().sanitize_for_serialization(kit.RESTRICTED),
                }
                for name in "ab"
            ],
        },
    }
    selector = {"matchLabels": {"app": "web"}}
    apps, batch = client.AppsV1Api(place.admin), client.BatchV1Api(place.admin)
    job = {"template": {**template, "spec": {**template["spec"], "restartPolicy": "Never"}}}
    create, spec = {
        "deployment": (apps.create_namespaced_deployment, {"selector": selector, "template": template}),
        "statefulset": (apps.create_namespaced_stateful_set, {"selector": selector, "template": template}),
        "daemonset": (apps.create_namespaced_daemon_set, {"selector": selector, "template": template}),
        "replicaset": (apps.create_namespaced_replica_set, {"selector": selector, "template": template}),
        "job": (batch.create_namespaced_job, job),
        "cronjob": (batch.create_namespaced_cron_job, {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": job}}),
    }[kind]
    await create(place.name, {"metadata": {"name": "web"}, "spec": spec})
    if kind != "cronjob":
        await kit.until(
            client.CoreV1Api(place.admin).list_namespaced_pod,
            place.name,
            ready=kit.is_ready,
            label_selector="app=web",
        )
    async with connected(place.namespace.developer, place.name) as cluster:
        workload, found = await read_environment(cluster, f"{kind}/web")
    assert workload.container["name"] == "b"
    assert found.mapping()["NAME"] == "b"
    assert workload.running is (kind != "cronjob")
    if workload.running:
        assert found.mapping()["POD"] == workload.pod_name
        assert not found.stand_ins
    else:
        assert "POD" in found.stand_ins

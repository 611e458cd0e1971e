"""What the attachment tests say often: a Service with pods, a local service, a load, objects before and after."""

from __future__ import annotations

import asyncio
import inspect
import json
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from devloop.attach import Request, Wanted
from devloop.attach.attachments import Attachments
from devloop.remote.kubernetes.agent import KubernetesLink
from devloop.remote.kubernetes.kubeconfig import Kubeconfig

from . import attach_programs, kit
from .conftest import Namespace
from .kit import ApiClient, client

P = TypeVar("P", bound=asyncio.Protocol)
SOURCE = inspect.getsource(attach_programs)
SERVICE = "api"
PORT = 8080
PORTS = [
    client.V1ServicePort(name="http", port=PORT, target_port="http", app_protocol="http"),
    client.V1ServicePort(name="tcp-echo", port=PORT + 1, target_port=PORT + 1),
]
VOLATILE = ("resourceVersion", "managedFields", "generation")


def answering(labels: dict[str, str], probe: Any, *, listen: str = "", **pod: Any) -> Any:
    """A pod that answers with its name, on PORT and the next; `listen` "::" in IPv6 alone."""
    field = client.V1ObjectFieldSelector(field_path="metadata.name")
    container = client.V1Container(
        name="main",
        image=kit.BASE,
        image_pull_policy="IfNotPresent",
        command=["sh", "-c", 'exec python3 -c "$SOURCE" serve $NAME 8080'],
        env=[
            client.V1EnvVar(name="SOURCE", value=SOURCE),
            client.V1EnvVar(name="LISTEN", value=listen),
            client.V1EnvVar(name="NAME", value_from=client.V1EnvVarSource(field_ref=field)),
        ],
        security_context=kit.RESTRICTED,
        ports=[client.V1ContainerPort(container_port=8080, name="http")],
        readiness_probe=probe,
    )
    return client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels=labels),
        spec=client.V1PodSpec(containers=[container], termination_grace_period_seconds=1, **pod),
    )


async def run_service(
    admin: ApiClient, namespace: str, *, replicas: int = 2, ports: Any = None, listen: str = "", **service_spec: Any
) -> None:
    """A Deployment `api` and its Service; its pods answer with their names."""
    labels = {"app": SERVICE}
    # By its own loopback, as `listen` may leave out the address that the kubelet would ask at.
    probe = client.V1Probe(tcp_socket=client.V1TCPSocketAction(port=8080), period_seconds=1)
    if listen:
        command = ["sh", "-c", "ss -Hltn 'sport = 8080' | grep -q ."]
        probe = client.V1Probe(_exec=client.V1ExecAction(command=command), period_seconds=1)
    template = answering(labels, probe, listen=listen)
    spec = client.V1DeploymentSpec(
        replicas=replicas, selector=client.V1LabelSelector(match_labels=labels), template=template
    )
    body = client.V1Deployment(metadata=client.V1ObjectMeta(name=SERVICE), spec=spec)
    apps, core = client.AppsV1Api(admin), client.CoreV1Api(admin)
    await apps.create_namespaced_deployment(namespace, body)
    service = client.V1Service(
        metadata=client.V1ObjectMeta(name=SERVICE, labels={"team": "shop"}, annotations={"owner": "shop@example.org"}),
        spec=client.V1ServiceSpec(selector=labels, ports=ports or PORTS, **service_spec),
    )
    await core.create_namespaced_service(namespace, service)
    await kit.until(
        apps.list_namespaced_deployment,
        namespace,
        ready=lambda found: (found.status.ready_replicas or 0) == replicas,
        field_selector=f"metadata.name={SERVICE}",
    )


async def run_stateful(admin: ApiClient, namespace: str, name: str, *, replicas: int = 2, **pod: Any) -> None:
    """A StatefulSet behind a headless Service of its name: clients connect to its pods, which answer with their names.

    The kubelet's probes ask for `/ready`, so that they can be told from clients.
    """
    labels = {"app": name}
    probe = client.V1Probe(
        http_get=client.V1HTTPGetAction(path="/ready", port=8080), period_seconds=1, failure_threshold=2
    )
    if pod.get("listen"):
        probe = client.V1Probe(
            _exec=client.V1ExecAction(command=["sh", "-c", "ss -Hltn 'sport = 8080' | grep -q ."]), period_seconds=1
        )
    template = answering(labels, probe, **pod)
    spec = client.V1StatefulSetSpec(
        replicas=replicas,
        selector=client.V1LabelSelector(match_labels=labels),
        service_name=name,
        pod_management_policy="Parallel",
        template=template,
    )
    apps, core = client.AppsV1Api(admin), client.CoreV1Api(admin)
    service = client.V1Service(
        metadata=client.V1ObjectMeta(name=name, labels={"team": "shop"}),
        spec=client.V1ServiceSpec(selector=labels, ports=PORTS, cluster_ip="None", ip_family_policy="PreferDualStack"),
    )
    await core.create_namespaced_service(namespace, service)
    body = client.V1StatefulSet(metadata=client.V1ObjectMeta(name=name), spec=spec)
    await apps.create_namespaced_stateful_set(namespace, body)
    await kit.until(
        apps.list_namespaced_stateful_set,
        namespace,
        ready=lambda found: (found.status.ready_replicas or 0) == replicas,
        field_selector=f"metadata.name={name}",
    )


def plain(admin: ApiClient, each: Any) -> dict[str, Any]:
    """An object, without its status and what the API server counts for itself."""
    found: dict[str, Any] = admin.sanitize_for_serialization(each)
    for key in VOLATILE:
        found["metadata"].pop(key, None)
    found.pop("status", None)
    return found


async def objects_of(admin: ApiClient, namespace: str) -> dict[str, Any]:
    """Every Service, lease and Deployment, field by field, without what the API server counts for itself."""
    core, apps, leases = client.CoreV1Api(admin), client.AppsV1Api(admin), client.CoordinationV1Api(admin)
    found: dict[str, Any] = {}
    for kind, items in (
        ("service", (await core.list_namespaced_service(namespace)).items),
        ("deployment", (await apps.list_namespaced_deployment(namespace)).items),
        ("lease", (await leases.list_namespaced_lease(namespace)).items),
    ):
        for each in items:
            found[f"{kind}/{each.metadata.name}"] = plain(admin, each)
    return found


class Here:
    """A local service: a server in this process that can be there, reload, or be down."""

    def __init__(self, name: str = "here") -> None:
        self.name = name
        self.seen: list[Any] = []
        self.running = True
        self.deaf: dict[int, str] = {}
        self.stopped = False
        self.reloading = asyncio.Event()
        self.reloading.set()  # set: there
        self.port = 0
        self.tcp_port = 0
        self._listeners: list[Callable[[], None]] = []
        self._servers: list[asyncio.Server] = []
        self._open: set[Any] = set()

    async def __aenter__(self) -> Here:
        await self.begin()
        return self

    async def begin(self) -> None:
        """The (next) process."""

        async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._open.add(writer)
            try:
                await attach_programs.http(reader, writer, self.name, self.seen)
            finally:
                self._open.discard(writer)

        async def tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await attach_programs.tcp(reader, writer, self.name)

        one = await asyncio.start_server(http, "127.0.0.1", self.port, backlog=1024)
        other = await asyncio.start_server(tcp, "127.0.0.1", self.tcp_port)
        self._servers = [one, other]
        self.port, self.tcp_port = (each.sockets[0].getsockname()[1] for each in self._servers)

    def end(self) -> None:
        """The process is killed: its connections end in the middle of whatever they are in."""
        for each in self._servers:
            each.close()
        for writer in list(self._open):
            writer.transport.abort()

    def set_running(self, running: bool) -> None:
        """Up or down; whoever asked to hear of it hears."""
        self.running = running
        for each in self._listeners:
            each()

    async def __aexit__(self, *_: object) -> None:
        self.end()

    async def connect(self, factory: Callable[[], P], port: int) -> tuple[asyncio.Transport, P]:
        """See LocalEnd."""
        if not self.running:
            raise ConnectionRefusedError("it is down")
        await self.reloading.wait()
        transport, protocol = await asyncio.get_running_loop().create_connection(factory, "127.0.0.1", port)
        return transport, protocol

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """See LocalEnd."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def stop(self) -> Callable[[], None]:
        """See LocalEnd."""
        self.stopped = True
        return lambda: None


class Engine:
    """A developer's engine, as far as attachments go."""

    def __init__(self, link: KubernetesLink, attachments: Attachments) -> None:
        self.link = link
        self.attachments = attachments
        self.states: list[str] = []
        self.requests: list[Request] = []
        attachments.subscribe(lambda found: self.states.append(f"{found.state.phase}: {found.state.reason}"))
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.holders: dict[str, str] = {}
        attachments.subscribe_requests(self._heard)

    def _heard(
        self, requests: list[Request], counts: Mapping[str, Mapping[str, int]], holders: Mapping[str, str]
    ) -> None:
        self.requests += requests
        self.holders.update(holders)
        for service, answered in counts.items():
            self.counts[service].update(answered)

    def wanted(self, here: Here, **more: Any) -> Wanted:
        return Wanted(**{"kind": "intercept", "service": SERVICE, "ports": {PORT: here.port}, **more})

    def crash(self) -> None:
        """As `kill -9`: nothing is said, every connection is gone."""
        link: Any = self.link
        for task in self.attachments._tasks:
            task.cancel()
        for each in self.attachments.held:
            if each.task:
                each.task.cancel()
        link._task.cancel()
        link._carrier.abort("crashed")


@asynccontextmanager
async def engine(kubeconfig: Path, folder: Path, user: str = "ada", **more: Any) -> AsyncIterator[Engine]:
    """A link and attachments, as that user; a machine of their own."""
    link = KubernetesLink(Kubeconfig(kubeconfig), key_file=folder / f"{user}_key", way="agent")
    link.start()
    made = Attachments(link, link.api, user=user, host="laptop", **more)
    try:
        await link.ready(60)
        made.start()
        yield Engine(link, made)
    finally:
        await made.close()
        await link.close()


async def client_pod(admin: ApiClient, namespace: str) -> None:
    """A pod to ask from."""
    await kit.run_pod(admin, namespace, "client")


async def ask(space: Namespace, *arguments: str, service: str = SERVICE, path: str = "/") -> str:
    """Who answers one request from a pod; or what curl says instead."""
    url = f"http://{service}:{PORT}{path}"
    command = ("curl", "-s", "--max-time", "15", *arguments, url)
    ran = await kit.execute(space.developer, space.name, "client", *command)
    try:
        return str(json.loads(ran.stdout)["who"])
    except (ValueError, KeyError):
        return f"{ran.code}: {ran.stdout}{ran.stderr}"


class Load:
    """A load from the pod `client`, until it is stopped or its time is over."""

    def __init__(self, space: Namespace, **plan: Any) -> None:
        self._space = space
        self._file = f"/tmp/stop-{secrets.token_hex(4)}"
        self._plan = {"host": SERVICE, "port": PORT, "seconds": 60, "file": self._file, **plan}
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> dict[str, Any]:
        space = self._space
        ran = await kit.execute(
            space.developer, space.name, "client", "python3", "-c", SOURCE, "load", json.dumps(self._plan)
        )
        assert ran.code == 0, ran
        found: dict[str, Any] = json.loads(ran.stdout)
        return found

    async def stop(self) -> dict[str, Any]:
        await kit.execute(self._space.developer, self._space.name, "client", "touch", self._file)
        return await self._task

    async def done(self) -> dict[str, Any]:
        return await self._task

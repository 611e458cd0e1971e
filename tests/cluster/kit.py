"""What the cluster's tests say often: connect, wait for an object, run a pod, look into it, reach it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from kubernetes.aio import client as generated
from kubernetes.aio import config as configuring
from kubernetes.aio import utils as creating
from kubernetes.aio import watch as watching
from kubernetes.aio.stream import ws_client as streaming

# Without types: the generated models call every field optional, and each use of one would need an assertion
# that says nothing; the rest of the package has none. What is asked for wrongly fails at the API server.
client: Any = generated
config: Any = configuring
utils: Any = creating
watch: Any = watching
WsApiClient: Any = streaming.WsApiClient
ApiClient = generated.ApiClient

BASE = "devloop.test/base:1"
WAIT_SECONDS = 60.0
RESTRICTED = client.V1SecurityContext(
    allow_privilege_escalation=False,
    capabilities=client.V1Capabilities(drop=["ALL"]),
    run_as_non_root=True,
    run_as_user=65532,
    seccomp_profile=client.V1SeccompProfile(type="RuntimeDefault"),
)


@asynccontextmanager
async def connect(kubeconfig: Path) -> AsyncIterator[ApiClient]:
    """A client of the API server, as the user of that kubeconfig."""
    async with await config.new_client_from_config(str(kubeconfig)) as api:
        yield api


@asynccontextmanager
async def connect_streams(kubeconfig: Path) -> AsyncIterator[Any]:
    """The same for exec and port-forward, whose requests become websockets."""
    settings = client.Configuration()
    await config.load_kube_config(str(kubeconfig), client_configuration=settings)
    async with WsApiClient(settings) as api:
        yield api


async def apply(api: ApiClient, namespace: str, *manifests: Path) -> None:
    """Create every object of these files in a namespace."""
    for manifest in manifests:
        for each in yaml.safe_load_all(manifest.read_text()):
            await utils.create_from_dict(api, each, namespace=namespace)


async def until(
    listing: Callable[..., Awaitable[Any]],
    *arguments: Any,
    ready: Callable[[Any], object],
    gone: bool = False,
    seconds: float = WAIT_SECONDS,
    **selectors: str,
) -> Any:
    """Watch until an object is as `ready` asks, or until one is deleted; returns that object.

    A TimeoutError names the last state that was seen.
    """
    last: Any = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    async with watch.Watch() as events:
                        async for event in events.stream(listing, *arguments, **selectors):
                            last = event["object"]
                            if (event["type"] == "DELETED") == gone and ready(last):
                                return last
                except client.ApiException as problem:
                    # A watch may be told to come back: 410 Gone, or 504 while the watch cache catches up with
                    # etcd ("Too large resource version"), which Debian's etcd 3.4 lets happen.
                    if problem.status not in (410, 429, 504):
                        raise
                    await asyncio.sleep(0.2)
    except TimeoutError:
        raise TimeoutError(f"{selectors or listing} not within {seconds:g} s; last seen: {last}") from None


async def until_gone(
    reading: Callable[..., Awaitable[Any]], *arguments: str, uid: str, seconds: float = WAIT_SECONDS
) -> None:
    """Ask for an object until it has gone, or another one has its name."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                found = await reading(*arguments)
            except client.ApiException as problem:
                if problem.status != 404:
                    raise
                return
            if found.metadata.uid != uid:
                return
            await asyncio.sleep(0.05)


def is_ready(pod: Any) -> bool:
    """All containers of a pod are ready, and it is not on its way out."""
    conditions = {each.type: each.status for each in pod.status.conditions or []}
    return conditions.get("Ready") == "True" and pod.metadata.deletion_timestamp is None


async def pod_ready(api: ApiClient, namespace: str, name: str) -> Any:
    """Wait for a pod by its name."""
    return await until(
        client.CoreV1Api(api).list_namespaced_pod,
        namespace,
        ready=is_ready,
        field_selector=f"metadata.name={name}",
    )


async def run_pod(
    api: ApiClient,
    namespace: str,
    name: str,
    command: Sequence[str] = ("sleep", "infinity"),
    **spec: Any,
) -> Any:
    """Run a pod of the base image as the `restricted` standard wants it, and wait until it is ready."""
    labels = {"app": name}
    container = client.V1Container(
        name="main",
        image=BASE,
        image_pull_policy="IfNotPresent",
        command=list(command),
        security_context=RESTRICTED,
        ports=[client.V1ContainerPort(container_port=8080, name="http")],
        volume_mounts=spec.pop("volume_mounts", None),
        readiness_probe=spec.pop("readiness_probe", None),
    )
    pod = client.V1Pod(
        metadata=client.V1ObjectMeta(name=name, labels=labels),
        spec=client.V1PodSpec(containers=[container], termination_grace_period_seconds=0, **spec),
    )
    await client.CoreV1Api(api).create_namespaced_pod(namespace, pod)
    return await pod_ready(api, namespace, name)


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command in a pod has printed, and its exit code."""

    code: int
    stdout: str
    stderr: str


async def execute(kubeconfig: Path, namespace: str, pod: str, *command: str, container: str = "") -> Ran:
    """Run a command in a pod through `pods/exec`, as the user of that kubeconfig; in the agent's, where it has two."""
    if not container and pod.startswith("devloop-agent"):
        container = "agent"
    output = {1: b"", 2: b""}
    code = -1
    async with connect_streams(kubeconfig) as api:
        request = await client.CoreV1Api(api).connect_get_namespaced_pod_exec_without_preload_content(
            pod,
            namespace,
            **({"container": container} if container else {}),
            command=list(command),
            stdin=False,
            stdout=True,
            stderr=True,
            tty=False,
        )
        async with request as socket:
            async for message in socket:
                channel, data = message.data[0], message.data[1:]
                if channel == 3:
                    code = WsApiClient.parse_error_data(data.decode())
                elif channel in output:
                    output[channel] += data
    return Ran(code, output[1].decode(), output[2].decode())


class Forwarded:
    """One connection to a port of a pod: a port-forward's data channel."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, port: int) -> None:
        self.socket = socket
        self.port = port

    async def begin(self) -> None:
        """Read what comes first on either channel: its port, in two bytes, little-endian."""
        for channel in (0, 1):
            message = await self.socket.receive_bytes()
            assert message == bytes([channel]) + struct.pack("<H", self.port), message

    async def send(self, data: bytes) -> None:
        await self.socket.send_bytes(b"\0" + data)

    async def receive(self) -> bytes:
        """The next bytes from the pod; empty at the end. An OSError is what the kubelet says on channel 1."""
        while True:
            message = await self.socket.receive()
            if message.type is not aiohttp.WSMsgType.BINARY:
                return b""
            if message.data[0] == 1:
                raise OSError(message.data[1:].decode())
            if len(message.data) > 1:
                return bytes(message.data[1:])

    async def get(self, path: str) -> tuple[int, bytes]:
        """GET a path over HTTP/1.0: the status and the body."""
        await self.send(f"GET {path} HTTP/1.0\r\nHost: test\r\n\r\n".encode())
        answer = b""
        while data := await self.receive():
            answer += data
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body


@asynccontextmanager
async def forward(kubeconfig: Path, namespace: str, pod: str, port: int) -> AsyncIterator[Forwarded]:
    """A port-forward through `kubernetes.aio`, as the user of that kubeconfig.

    Its client offers the one subprotocol v4.channel.k8s.io; `Forwarded.begin` sees that it is spoken.
    """
    async with connect_streams(kubeconfig) as api:
        request = await client.CoreV1Api(api).connect_get_namespaced_pod_portforward_without_preload_content(
            pod, namespace, ports=str(port)
        )
        async with request as socket:
            forwarded = Forwarded(socket, port)
            transport = socket._response.connection.transport
            try:
                await forwarded.begin()
                yield forwarded
            finally:
                await socket.close()
                # A wire that a test has cut does not answer the end of TLS, which would be waited for longer than
                # this event loop lasts.
                transport.abort()


async def eventually(ask: Callable[[], Awaitable[Any]], wanted: Any, seconds: float = WAIT_SECONDS) -> None:
    """Ask until the answer is the one wanted. For what no watch tells of: DNS, the proxy's rules."""
    answer: Any = None
    try:
        async with asyncio.timeout(seconds):
            # Nothing in this process signals it.
            while (answer := await ask()) != wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"still {answer!r} after {seconds:g} s, and {wanted!r} is wanted") from None

"""The agent's image in a namespace that enforces `restricted`, made and reached with a developer's rights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from . import kit
from .conftest import Namespace
from .kit import ApiClient, client
from .kube.settings import CHECKOUT

MANIFEST = CHECKOUT / "devloop" / "remote" / "manifests" / "agent.yaml"
POD = "devloop-agent"


@dataclass(frozen=True)
class Agent:
    namespace: Namespace
    host_key: asyncssh.SSHKey
    key: asyncssh.SSHKey  # the developer's


@pytest.fixture
async def agent(namespace: Namespace) -> AsyncIterator[Agent]:
    """The agent as devloop installs it: by a developer, from the manifest."""
    host_key, key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    secret = client.V1Secret(
        metadata=client.V1ObjectMeta(name=POD),
        string_data={
            "host_key": host_key.export_private_key().decode(),
            "authorized_keys": key.export_public_key().decode(),
        },
    )
    async with kit.connect(namespace.developer) as api:
        await client.CoreV1Api(api).create_namespaced_secret(namespace.name, secret)
        await kit.apply(api, namespace.name, MANIFEST)
        await kit.pod_ready(api, namespace.name, POD)
    yield Agent(namespace, host_key, key)


@asynccontextmanager
async def relayed(agent: Agent) -> AsyncIterator[int]:
    """A port of this machine's that leads to the agent's, one port-forward for each connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        namespace = agent.namespace
        async with kit.forward(namespace.developer, namespace.name, POD, 2222) as far:

            async def there() -> None:
                while data := await reader.read(1 << 16):
                    await far.send(data)
                await far.socket.close()

            async def back() -> None:
                while data := await far.receive():
                    writer.write(data)
                    await writer.drain()
                writer.close()

            await asyncio.gather(there(), back(), return_exceptions=True)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def login(agent: Agent, **options: Any) -> AsyncIterator[asyncssh.SSHClientConnection]:
    known = asyncssh.import_known_hosts(f"* {agent.host_key.export_public_key().decode()}")
    settings: dict[str, Any] = {
        "known_hosts": known,
        "client_keys": [agent.key],
        "username": "ada",
        "config": None,
        "agent_path": None,
        **options,
    }
    async with relayed(agent) as port, asyncssh.connect("127.0.0.1", port, **settings) as connection:
        yield connection


async def test_it_forwards_to_what_the_pod_reaches_and_to_nothing_else(admin: ApiClient, agent: Agent) -> None:
    name = agent.namespace.name
    await kit.run_pod(admin, name, "server", ("python3", "-m", "http.server", "8080", "--directory", "/etc/apt"))
    spec = client.V1ServiceSpec(selector={"app": "server"}, ports=[client.V1ServicePort(port=80, target_port=8080)])
    service = client.V1Service(metadata=client.V1ObjectMeta(name="page"), spec=spec)
    await client.CoreV1Api(admin).create_namespaced_service(name, service)
    async with login(agent) as connection:

        async def fetch() -> bytes:
            # By the Service's name, which the agent's pod resolves.
            try:
                reader, writer = await connection.open_connection("page", 80)
            except asyncssh.ChannelOpenError:
                return b""
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            writer.write_eof()
            answer: bytes = await reader.read()
            return answer.split(b"\r\n")[0]

        await kit.eventually(fetch, b"HTTP/1.0 200 OK")
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_connection("page", 81)
        # Neither a shell, nor a command, nor files, nor a port of the agent's own.
        for refused in (connection.create_process(), connection.run("id"), connection.start_sftp_client()):
            with pytest.raises(asyncssh.Error):
                await refused
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_port("", 0, "127.0.0.1", 1)


async def test_only_a_key_that_it_knows_opens_it(agent: Agent) -> None:
    stranger = asyncssh.generate_private_key("ssh-ed25519")
    with pytest.raises(asyncssh.PermissionDenied):
        async with login(agent, client_keys=[stranger]):
            pass
    with pytest.raises(asyncssh.PermissionDenied):
        async with login(agent, client_keys=[], password="secret"):
            pass


async def test_a_developer_who_joins_later_gets_in_without_a_restart(agent: Agent) -> None:
    ben = asyncssh.generate_private_key("ssh-ed25519")
    both = agent.key.export_public_key().decode() + ben.export_public_key().decode()
    async with kit.connect(agent.namespace.other_developer) as api:
        core = client.CoreV1Api(api)
        patch = {"stringData": {"authorized_keys": both}}
        await core.patch_namespaced_secret(POD, agent.namespace.name, patch)

    async def enters() -> bool:
        try:
            async with login(agent, client_keys=[ben], username="ben"):
                return True
        except asyncssh.PermissionDenied:
            return False

    await kit.eventually(enters, True)  # the kubelet writes the volume anew within seconds


async def test_its_port_is_on_the_loopback_alone(admin: ApiClient, agent: Agent) -> None:
    name = agent.namespace.name
    address = (await client.CoreV1Api(admin).read_namespaced_pod(POD, name)).status.pod_ip
    await kit.run_pod(admin, name, "other")
    ran = await kit.execute(
        agent.namespace.developer, name, "other", "curl", "-s", "--max-time", "2", f"telnet://{address}:2222"
    )
    assert ran.code == 7  # curl's "failed to connect"


async def test_envoy_is_there_and_runs_as_that_user(agent: Agent) -> None:
    ran = await kit.execute(
        agent.namespace.developer, agent.namespace.name, POD, "sh", "-c", '"$ENVOY" --version; id -u'
    )
    assert ran.code == 0, ran
    assert "version:" in ran.stdout
    assert ran.stdout.endswith("65532\n")


def test_the_dockerfile_makes_the_same_agent() -> None:
    """What the image maker of this suite says, the Dockerfile says too."""
    dockerfile = Path(CHECKOUT / "devloop" / "agent" / "Dockerfile").read_text()
    for each in (
        "devloop/agent/requirements.txt",
        "PYTHONPATH=/opt/devloop/code:/opt/devloop/site",
        "ENVOY=/opt/devloop/site/envoy/_bin/envoy",
        "USER 65532:65532",
        'CMD ["python3", "-m", "devloop.agent"]',
        "COPY devloop/agent /opt/devloop/code/devloop/agent",
    ):
        assert each in dockerfile

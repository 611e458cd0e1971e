"""The agent's image in a namespace that enforces `restricted`, made and reached with a developer's rights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from devloop.agent import keys
from devloop.agent.objects import KEPT

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
    user: str
    uid: str


async def enter(developer: Path, namespace: str, key: asyncssh.SSHKey, uid: str, who: str) -> str:
    """Put a key beside the agent, as a developer; the user name that goes with it."""
    suffix = keys.new_suffix()
    async with kit.connect(developer) as api:
        entry = keys.entry(key.public_data, suffix, who, POD, uid)
        await client.CoreV1Api(api).create_namespaced_config_map(namespace, entry)
    return keys.user(who, suffix)


@pytest.fixture
async def agent(namespace: Namespace) -> Agent:
    """The agent as devloop installs it: by a developer, from the manifest."""
    async with kit.connect(namespace.developer) as api:
        await kit.apply(api, namespace.name, MANIFEST)
        await kit.pod_ready(api, namespace.name, POD)
        core = client.CoreV1Api(api)
        uid = (await core.read_namespaced_pod(POD, namespace.name)).metadata.uid
        published = (await core.read_namespaced_config_map(POD, namespace.name)).data
    assert published[keys.POD_UID] == uid
    key = asyncssh.generate_private_key("ssh-ed25519")
    user = await enter(namespace.developer, namespace.name, key, uid, "ada")
    return Agent(namespace, asyncssh.import_public_key(published[keys.HOST_KEY]), key, user, uid)


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
        "username": agent.user,
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


async def test_a_developer_who_joins_later_gets_in_at_once(agent: Agent) -> None:
    ben = asyncssh.generate_private_key("ssh-ed25519")
    user = await enter(agent.namespace.other_developer, agent.namespace.name, ben, agent.uid, "ben")
    async with login(agent, client_keys=[ben], username=user):
        pass


async def entering(agent: Agent, key: asyncssh.SSHKey, user: str) -> bool:
    try:
        async with login(agent, client_keys=[key], username=user):
            return True
    except asyncssh.PermissionDenied:
        return False


async def refused(call: Awaitable[Any]) -> int:
    """The status that a call is refused with."""
    with pytest.raises(client.ApiException) as problem:
        await call
    return int(problem.value.status)


async def test_a_developer_patches_replaces_and_removes_nobodys_key(agent: Agent) -> None:
    """With all that the Roles give, and no devloop."""
    eve = asyncssh.generate_private_key("ssh-ed25519")
    name, space = keys.entry_name(agent.key.public_data, keys.suffix_of(agent.user)), agent.namespace.name
    async with kit.connect(agent.namespace.other_developer) as api:
        core = client.CoreV1Api(api)
        for each in (name, POD):
            data = {"data": {keys.HOST_KEY: eve.export_public_key().decode(), keys.POD_UID: agent.uid}}
            assert await refused(core.patch_namespaced_config_map(each, space, data)) == 403
            body = {"metadata": {"name": each}, **data}
            assert await refused(core.replace_namespaced_config_map(each, space, body)) == 403
            assert await refused(core.delete_namespaced_config_map(each, space)) == 403
            assert await refused(core.create_namespaced_config_map(space, body)) == 409
        assert await refused(core.delete_collection_namespaced_config_map(space)) == 403
    assert await entering(agent, agent.key, agent.user)
    assert not await entering(agent, eve, agent.user)


async def test_a_copy_of_a_key_and_what_is_no_key_open_nothing(admin: ApiClient, agent: Agent) -> None:
    eve = asyncssh.generate_private_key("ssh-ed25519")
    space = agent.namespace.name
    mine = keys.entry(eve.public_data, "1" * 16, "eve", POD, agent.uid)
    # Ada's entry under another name of Eve's choice, hostile ones, and one that Kubernetes is to remove at once.
    copied = keys.entry(agent.key.public_data, "2" * 16, "eve", POD, agent.uid)
    unlabelled = {**mine, "metadata": {**mine["metadata"], "labels": {}}}
    orphan = keys.entry(agent.key.public_data, "3" * 16, "eve", POD, "00000000-0000-0000-0000-000000000000")
    large = keys.entry(agent.key.public_data, "4" * 16, "eve", POD, agent.uid)
    large["metadata"]["annotations"] = {"x": "<" * (250 << 10)}
    large["data"] = {"y": "z" * (700 << 10)}
    async with kit.connect(agent.namespace.other_developer) as api:
        core = client.CoreV1Api(api)
        for each in (copied, unlabelled, orphan, large):
            await core.create_namespaced_config_map(space, each)
        for user in (agent.user, keys.user("eve", "1" * 16), keys.user("eve", "2" * 16), keys.user("eve", "4" * 16)):
            assert not await entering(agent, eve, user), user
    assert await entering(agent, agent.key, agent.user)


async def test_a_flood_of_keys_locks_nobody_out(admin: ApiClient, agent: Agent) -> None:
    space = agent.namespace.name
    async with kit.connect(agent.namespace.other_developer) as api:
        core = client.CoreV1Api(api)
        limit = asyncio.Semaphore(20)

        async def put(number: int) -> None:
            made = keys.entry(agent.key.public_data, f"{number:016x}", "eve", POD, agent.uid)
            made["metadata"]["annotations"]["x"] = "y" * 4096
            async with limit:
                await core.create_namespaced_config_map(space, made)

        await asyncio.gather(*(put(number) for number in range(1000)))
    assert await entering(agent, agent.key, agent.user)
    ben = asyncssh.generate_private_key("ssh-ed25519")
    user = await enter(agent.namespace.developer, space, ben, agent.uid, "ben")
    async with login(agent, client_keys=[ben], username=user) as connection:
        # Reading all of them is part of the answer.
        assert int(str((await connection.run("goodbye", check=True)).stdout)) >= 1
    found = await client.CoreV1Api(admin).list_namespaced_config_map(space, label_selector=keys.SELECTOR)
    assert len(found.items) == 1001, "Ada's, and Eve's"
    statuses = (await core_of(admin).read_namespaced_pod(POD, space)).status.container_statuses
    assert not any(each.restart_count for each in statuses)


def core_of(api: ApiClient) -> Any:
    return client.CoreV1Api(api)


async def test_who_reads_all_that_a_developer_may_has_nothing_of_the_host_key(agent: Agent) -> None:
    space = agent.namespace.name
    async with kit.connect(agent.namespace.other_developer) as api:
        core = client.CoreV1Api(api)
        maps, secrets = await core.list_namespaced_config_map(space), await core.list_namespaced_secret(space)
        pod = await core.read_namespaced_pod(POD, space)
        log = [await core.read_namespaced_pod_log(POD, space, container=each) for each in ("agent", "envoy")]
    assert "PRIVATE KEY" not in f"{maps} {secrets} {pod} {log}"
    assert not any(each.metadata.name.startswith(POD) for each in secrets.items)
    assert any(each.metadata.name == POD for each in maps.items)


async def test_a_container_that_starts_anew_has_the_same_host_key_and_knows_whom_it_knew(
    admin: ApiClient, agent: Agent
) -> None:
    space = agent.namespace.name
    # Its first process is the agent.
    kill = ("python3", "-c", "import os; os.kill(1, 15)")
    await kit.execute(agent.namespace.developer, space, POD, *kill)

    async def again() -> bool:
        statuses = (await core_of(admin).read_namespaced_pod(POD, space)).status.container_statuses
        [own] = [each for each in statuses if each.name == "agent"]
        return bool(own.restart_count and own.ready)

    await kit.eventually(again, True, 60)
    assert await entering(agent, agent.key, agent.user), "its host key was checked too"


async def test_a_name_that_a_developer_has_taken_first_is_the_agents_again(namespace: Namespace) -> None:
    """Eve may create what is not there: also a ConfigMap of the agent's name, immutable, and with a finalizer."""
    eve = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    squat = {
        "metadata": {"name": POD, "finalizers": ["eve.example/stays"], "annotations": {KEPT: "true"}},
        "data": {keys.HOST_KEY: eve, keys.POD_UID: "any"},
        "immutable": True,
    }
    async with kit.connect(namespace.other_developer) as api:
        await client.CoreV1Api(api).create_namespaced_config_map(namespace.name, squat)
    async with kit.connect(namespace.developer) as api:
        await kit.apply(api, namespace.name, MANIFEST)
        await kit.pod_ready(api, namespace.name, POD)
        core = client.CoreV1Api(api)
        uid = (await core.read_namespaced_pod(POD, namespace.name)).metadata.uid
        published = await core.read_namespaced_config_map(POD, namespace.name)
        assert published.data[keys.POD_UID] == uid and published.data[keys.HOST_KEY] != eve


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

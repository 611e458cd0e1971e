"""NetworkPolicies that are in force: nobody waits in vain because of an attachment, and the policy's name is said."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from devloop.attach import AttachError, Phase, personal

from . import kit
from .attaching import PORT, SERVICE, Engine, Here, Load, ask, client_pod, engine, objects_of, run_service
from .conftest import Namespace, Target, unavailable
from .kit import ApiClient, client

MINE = ("-H", "baggage: devloop=ada")
AGENT = {"devloop.dev/agent": "true"}
ANY: dict[str, Any] = {"podSelector": {}}
DNS = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}


def pods(**labels: str) -> dict[str, Any]:
    return {"podSelector": {"matchLabels": labels}}


def of(name: str) -> dict[str, Any]:
    return pods(app=name)


REST = f"""
import socket
with socket.create_connection(("{SERVICE}", {PORT})) as connection:
    connection.sendall(b"GET /rest HTTP/1.1\\r\\nHost: {SERVICE}\\r\\n\\r\\n")
    print(connection.recv(65536).split()[1].decode(), flush=True)
    connection.settimeout(20)
    print("more" if connection.recv(1) else "ended")
"""
"""A client of HTTP/1.1 that keeps its connection after an answer, until the server ends it."""
ONLY_CLIENT = {**of(SERVICE), "ingress": [{"from": [of("client")], "ports": [{"port": "http"}]}]}
"""The original's pods admit their client, at a port by its name."""
TO_API = {**of("client"), "policyTypes": ["Egress"], "egress": [DNS, {"to": [of(SERVICE)]}]}
"""The client is let out to the original alone."""


async def make(admin: ApiClient, space: Namespace, **policies: dict[str, Any]) -> None:
    """Policies, by name; and wait until they are seen to be in force is for who asks."""
    for name, spec in policies.items():
        body = {"metadata": {"name": name.replace("_", "-")}, "spec": spec}
        await client.NetworkingV1Api(admin).create_namespaced_network_policy(space.name, body)


async def clear(admin: ApiClient, space: Namespace) -> None:
    await client.NetworkingV1Api(admin).delete_collection_namespaced_network_policy(space.name)


async def reaches(space: Namespace, pod: str, address: str, port: int = PORT) -> bool:
    """Whether a pod can connect there now."""
    connect = f"import socket; socket.create_connection(({address!r}, {port}), 1)"
    ran = await kit.execute(space.developer, space.name, pod, "python3", "-c", connect)
    return ran.code == 0


async def original(admin: ApiClient, space: Namespace) -> str:
    """The address of an original pod."""
    found = await client.CoreV1Api(admin).list_namespaced_pod(space.name, label_selector=f"app={SERVICE}")
    return str(found.items[0].status.pod_ip)


@pytest.fixture
def enforced(cluster: Target) -> None:
    if cluster.own is not None and "policies" not in cluster.own.sandbox.running():
        unavailable(f"nothing enforces NetworkPolicies here: {cluster.own.log_tail('policies', 3)}")


@asynccontextmanager
async def prepared(admin: ApiClient, space: Namespace, folder: Path) -> AsyncIterator[tuple[Engine, Here]]:
    """An original pod, its client, somebody else, a developer and a local service."""

    async def run(pod: str, container: str, command: Sequence[str]) -> bytes:
        return (await kit.execute(space.developer, space.name, pod, *command)).stdout.encode()

    await asyncio.gather(
        run_service(admin, space.name, replicas=1),
        client_pod(admin, space.name),
        kit.run_pod(admin, space.name, "stranger"),
    )
    async with engine(space.developer, folder, run=run) as ada, Here() as here:
        yield ada, here


@pytest.mark.usefixtures("enforced")
async def test_the_cluster_enforces_policies_and_leaves_other_namespaces_alone(
    admin: ApiClient, namespace: Namespace, cluster: Target
) -> None:
    await asyncio.gather(run_service(admin, namespace.name, replicas=1), client_pod(admin, namespace.name))
    await kit.run_pod(admin, namespace.name, "stranger")
    there = await original(admin, namespace)
    assert await reaches(namespace, "client", there) and await reaches(namespace, "stranger", there)
    await make(admin, namespace, only_client=ONLY_CLIENT)
    await kit.eventually(lambda: reaches(namespace, "stranger", there), False)
    assert await reaches(namespace, "client", there)
    await kit.eventually(lambda: reaches(namespace, "client", there, PORT + 1), False)
    await clear(admin, namespace)
    await kit.eventually(lambda: reaches(namespace, "stranger", there), True)


async def agent_of(admin: ApiClient, space: Namespace) -> str:
    """The agent's address."""
    found = await client.CoreV1Api(admin).list_namespaced_pod(space.name, label_selector="devloop.dev/agent=true")
    return str(found.items[0].status.pod_ip)


DENY = {**ANY, "policyTypes": ["Ingress"]}
ELSEWHERE = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
BARRED: dict[str, tuple[dict[str, dict[str, Any]], str, dict[str, Any]]] = {
    # What: the policies; what is said; what is asked for.
    "the agent, from the original": (
        {"only_client": ONLY_CLIENT},
        "the NetworkPolicy only-client does not admit it",
        {},
    ),
    "a client's way out": ({"to_api": TO_API}, r"pod client can't connect to the agent \(the NetworkPolicy to-api", {}),
    "a copy": ({"to_api": TO_API}, "the NetworkPolicy to-api does not let them out to it", {"kind": "wiretap"}),
    "a replacement": (
        {"to_api": TO_API},
        "the NetworkPolicy to-api does not let them out to it",
        {"kind": "replace", "workload": f"deployment/{SERVICE}", "routes": None},
    ),
    "the agent's way in": (
        {"deny": DENY, "api": {**of(SERVICE), "ingress": [{"from": [of("client"), pods(**AGENT)]}]}},
        r"pod client can't connect to the agent \(the NetworkPolicy deny does not admit them",
        {},
    ),
    "clients of another namespace": (
        {"deny": {**ANY, "ingress": [{"from": [ANY]}]}, "api": {**of(SERVICE), "ingress": [{"from": [ELSEWHERE]}]}},
        "the namespace kube-system may connect to its pods, and the NetworkPolicy deny admits them to the agent's not",
        {},
    ),
}
PRIVATE = 2223
"""The agent's port for direct connections: it listens there as long as a developer is connected."""


@pytest.mark.usefixtures("enforced")
async def test_a_policy_that_keeps_somebody_away_refuses_and_is_named(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    async with prepared(admin, namespace, tmp_path) as (ada, here):
        there, agent = await original(admin, namespace), await agent_of(admin, namespace)
        before = await objects_of(admin, namespace.name)
        for what, (policies, words, more) in BARRED.items():
            shows = ("stranger", there, PORT) if "only_client" in policies else ("client", agent, PRIVATE)
            await kit.eventually(lambda: reaches(namespace, *shows), True)  # noqa: B023
            await make(admin, namespace, **policies)
            if "api" not in policies or policies["deny"] == DENY:
                await kit.eventually(lambda: reaches(namespace, *shows), False)  # noqa: B023
            load = Load(namespace, seconds=30)
            wanted = ada.wanted(here, **{"routes": (personal("ada"),), **more})
            if more.get("routes", wanted.routes) is None:
                wanted = ada.wanted(here, **{key: value for key, value in more.items() if key != "routes"})
            with pytest.raises(AttachError, match=words) as problem:
                await ada.attachments.attach(wanted, here)
            hint = problem.value.hint or ""
            assert "Nothing was changed" in hint and "Let " in hint
            assert ("--way pods" in hint) is (policies.get("deny") != DENY), (what, hint)
            done = await load.stop()
            if what != "clients of another namespace":  # of which this one is none
                assert done["failed"] == 0 and done["answered"] and not here.seen, (what, done)
            assert await objects_of(admin, namespace.name) == before, what
            await clear(admin, namespace)
        found = await ada.attachments.attach(ada.wanted(here, routes=(personal("ada"),)), here)
        assert found.state.phase is Phase.ATTACHED
        assert await ask(namespace, *MINE) == "here" and (await ask(namespace)).startswith(SERVICE)


@pytest.mark.usefixtures("enforced")
async def test_policies_that_know_the_agent_are_in_nobodys_way(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    await make(
        admin,
        namespace,
        deny={**ANY, "policyTypes": ["Ingress"]},
        api={**of(SERVICE), "ingress": [{"from": [of("client"), pods(**AGENT)]}]},
        agent={**pods(**AGENT), "ingress": [{}]},
        client={**of("client"), "policyTypes": ["Egress"], "egress": [DNS, {"to": [of(SERVICE), pods(**AGENT)]}]},
    )
    async with prepared(admin, namespace, tmp_path) as (ada, here):
        found = await ada.attachments.attach(ada.wanted(here, routes=(personal("ada"),)), here)
        assert found.state.phase is Phase.ATTACHED
        assert await ask(namespace, *MINE) == "here" and (await ask(namespace)).startswith(SERVICE)


@pytest.mark.usefixtures("enforced")
@pytest.mark.parametrize("name", ["to_api", "only_client"])
async def test_a_policy_that_comes_while_attached_gives_the_service_back_until_it_goes(
    admin: ApiClient, namespace: Namespace, tmp_path: Path, name: str
) -> None:
    policy = {"to_api": TO_API, "only_client": ONLY_CLIENT}[name]
    async with prepared(admin, namespace, tmp_path) as (ada, here):
        found = await ada.attachments.attach(ada.wanted(here, routes=(personal("ada"),)), here)

        async def state() -> tuple[Phase, bool]:
            return found.state.phase, name.replace("_", "-") in found.state.reason

        load = Load(namespace, seconds=120)
        resting = asyncio.create_task(kit.execute(namespace.developer, namespace.name, "client", "python3", "-c", REST))

        async def rests() -> bool:
            return any(each.path == "/rest" for each in ada.requests)

        await kit.eventually(rests, True)
        began = time.monotonic()
        await make(admin, namespace, **{name: policy})
        await kit.eventually(state, (Phase.OPEN, True), 20)
        print(f"\n{name}: led back {time.monotonic() - began:.2f} s after the policy was made: {found.state.reason}")
        assert (await resting).stdout.split() == ["200", "ended"], "its next request would be answered by nobody"
        assert found.state.reason.endswith("; the original answers")
        assert (await ask(namespace, *MINE)).startswith(SERVICE), "his own requests too"
        await clear(admin, namespace)
        await kit.eventually(state, (Phase.ATTACHED, False), 30)
        await kit.eventually(lambda: ask(namespace, *MINE), "here")
        done = await load.stop()
        print(f"{name}: {done['answered']} answered, {done['failed']} failed, the slowest after {done['max']:.0f} ms")
        assert done["failed"] == 0 and set(done["counts"]) <= {await ask(namespace)}, done


@pytest.mark.usefixtures("enforced")
async def test_the_pods_way_works_under_a_policy_that_admits_clients_alone(
    admin: ApiClient, open_namespace: Namespace, tmp_path: Path
) -> None:
    space = open_namespace
    async with prepared(admin, space, tmp_path) as (ada, here):
        there = await original(admin, space)
        await make(admin, space, only_client=ONLY_CLIENT)
        await kit.eventually(lambda: reaches(space, "stranger", there), False)
        load = Load(space, seconds=120)
        found = await ada.attachments.attach(ada.wanted(here, routes=(personal("ada"),), way="pods"), here)
        assert found.state.phase is Phase.ATTACHED
        assert await ask(space, *MINE) == "here"
        for _ in range(20):
            assert (await ask(space)).startswith(SERVICE)
        assert not await reaches(space, "stranger", there), "the policy is kept"
        # It goes, and comes again, while it is attached.
        await clear(admin, space)
        await kit.eventually(lambda: reaches(space, "stranger", there), True)
        await make(admin, space, only_client=ONLY_CLIENT)
        await kit.eventually(lambda: reaches(space, "stranger", there), False)
        await ada.attachments.leave(found)
        assert (await ask(space, *MINE)).startswith(SERVICE)
        done = await load.stop()
        assert done["failed"] == 0, done


@pytest.mark.usefixtures("enforced")
async def test_the_pods_way_is_refused_where_the_pods_are_not_let_out_to_the_agent(
    admin: ApiClient, open_namespace: Namespace, tmp_path: Path
) -> None:
    space = open_namespace
    async with prepared(admin, space, tmp_path) as (ada, here):
        await make(admin, space, inside={**of(SERVICE), "policyTypes": ["Egress"], "egress": [DNS]})

        async def refused() -> str:
            try:
                await ada.attachments.leave(await ada.attachments.attach(ada.wanted(here, way="pods"), here))
            except AttachError as problem:
                return problem.what
            return ""

        agent = await agent_of(admin, space)
        (pod,) = (await client.CoreV1Api(admin).list_namespaced_pod(space.name, label_selector=f"app={SERVICE}")).items
        await kit.eventually(lambda: reaches(space, pod.metadata.name, agent, PRIVATE), False)
        assert "the NetworkPolicy inside does not let them out to it" in await refused()
        (pod,) = (await client.CoreV1Api(admin).list_namespaced_pod(space.name, label_selector=f"app={SERVICE}")).items
        assert not pod.spec.ephemeral_containers, "no door was made"

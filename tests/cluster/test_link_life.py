"""What happens to a link and to the agent: faults, developers who come and go, and rights that are missing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from devloop.agent.keys import HOST_KEY, SELECTOR
from devloop.remote.kubernetes.agent import KubernetesLink
from devloop.remote.kubernetes.api import Api
from devloop.remote.kubernetes.kubeconfig import Kubeconfig
from devloop.remote.kubernetes.rights import review
from devloop.remote.link import LinkState, Phase
from devloop.remote.roles import Role

from ..integration.remote import target
from ..integration.remote.contract import ended, until
from . import kit
from .conftest import Namespace
from .kit import ApiClient, client
from .kube.gate import Gate
from .test_link_contract import FIRST, HOST, connected, run_target

AGENT = "devloop-agent"


async def says_bye(link: KubernetesLink) -> bool:
    """One whole connection through the link."""
    reader, writer = await link.open(HOST, FIRST + target.CLOSER)
    try:
        return await reader.read() == b"bye"
    finally:
        await ended(writer)


async def agent_uid(admin: ApiClient, namespace: str) -> str:
    uid: str = (await client.CoreV1Api(admin).read_namespaced_pod(AGENT, namespace)).metadata.uid
    return uid


async def entries(admin: ApiClient, namespace: str) -> list[Any]:
    """Developers' keys."""
    found = await client.CoreV1Api(admin).list_namespaced_config_map(namespace, label_selector=SELECTOR)
    return list(found.items)


async def count(admin: ApiClient, namespace: str) -> int:
    """How many there are."""
    return len(await entries(admin, namespace))


async def nothing_left(admin: ApiClient, namespace: str) -> None:
    """Neither the pod nor a ConfigMap of its, or of a developer's key.

    A connection that went silent still counts until the agent's keepalive has given it up (20 s); then nobody is
    there to remove the agent, and it does so itself when it has lingered (60 s).
    """
    core = client.CoreV1Api(admin)

    async def left() -> list[str]:
        pods = (await core.list_namespaced_pod(namespace)).items
        maps = (await core.list_namespaced_config_map(namespace)).items
        return [each.metadata.name for each in (*pods, *maps) if each.metadata.name.startswith(AGENT)]

    await kit.eventually(left, [], 120)


@pytest.mark.parametrize("mode", ["refuse", "silent"])
@pytest.mark.parametrize("way", ["agent", "portforward"])
async def test_a_cut_api_server_is_noticed_waited_for_and_got_over(
    admin: ApiClient,
    namespace: Namespace,
    gate: Gate,
    behind_gate: Callable[[Path], Path],
    tmp_path: Path,
    mode: Any,
    way: Any,
) -> None:
    await run_target(admin, namespace.name)
    async with connected(behind_gate(namespace.developer), tmp_path, way) as link:
        states: list[LinkState] = []
        link.subscribe(states.append)
        assert await says_bye(link)
        began = time.monotonic()
        with gate.closed(7, mode):
            await until(link, lambda state: state.phase is not Phase.CONNECTED, 6.5)
            noticed = time.monotonic() - began
            # Opened in the gap: it waits, and then works.
            assert await says_bye(link)
            assert time.monotonic() - began >= 6.9
        assert noticed < (1 if mode == "refuse" else 6)
        assert time.monotonic() - began < 20
        waiting = [each for each in states if each.next_attempt is not None]
        assert waiting and all(each.reason for each in waiting)
        assert link.state.phase is Phase.CONNECTED
    await nothing_left(admin, namespace.name)


async def test_a_killed_agent_is_made_anew(
    admin: ApiClient, namespace: Namespace, kill_pod: Callable[[str, str], Awaitable[None]], tmp_path: Path
) -> None:
    await run_target(admin, namespace.name)
    async with connected(namespace.developer, tmp_path, "agent") as link:
        before = await agent_uid(admin, namespace.name)
        for _ in range(2):
            gap = asyncio.Event()
            stop = link.subscribe(lambda state: gap.set() if state.phase is not Phase.CONNECTED else None)  # noqa: B023
            await kill_pod(namespace.name, AGENT)
            # Its process outlives the object by a moment.
            await asyncio.wait_for(gap.wait(), 10)
            stop()
            assert await says_bye(link)
        assert await agent_uid(admin, namespace.name) != before
    await nothing_left(admin, namespace.name)


async def test_developers_share_an_agent_and_the_last_one_takes_it_away(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    async with connected(namespace.developer, tmp_path / "ada", "agent"):
        uid = await agent_uid(admin, namespace.name)
        began = time.monotonic()
        async with connected(namespace.other_developer, tmp_path / "ben", "agent") as second:
            # The agent asks for a new key when it is shown it.
            assert time.monotonic() - began < 10
            assert len(await entries(admin, namespace.name)) == 2
            assert second.state.kind == "agent"
        assert await agent_uid(admin, namespace.name) == uid
        # Ben's engine has said goodbye, and its key is good no more.
        await kit.eventually(lambda: count(admin, namespace.name), 1)
    await nothing_left(admin, namespace.name)


async def test_two_who_start_at_the_same_time_make_one_agent(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        links = [
            connected(namespace.developer, tmp_path / "ada", "agent"),
            connected(namespace.other_developer, tmp_path / "ben", "agent"),
        ]
        await asyncio.gather(*(stack.enter_async_context(each) for each in links))
        pods = await client.CoreV1Api(admin).list_namespaced_pod(namespace.name)
        assert len(pods.items) == 1
    await nothing_left(admin, namespace.name)


async def test_an_agent_whose_last_client_has_crashed_removes_itself(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    link = KubernetesLink(Kubeconfig(namespace.developer), key_file=tmp_path / "key", linger=2)
    link.start()
    await link.ready(60)
    carrier: Any = link._carrier
    assert carrier.agent.pod == AGENT
    # As after `kill -9`: nothing is said, the connection is gone.
    link._task.cancel()  # type: ignore[union-attr]
    carrier.abort("crashed")
    await nothing_left(admin, namespace.name)
    link._carrier = None
    await link.close()


async def test_another_host_key_than_the_published_one_is_refused(
    admin: ApiClient, namespace: Namespace, gate: Gate, behind_gate: Callable[[Path], Path], tmp_path: Path
) -> None:
    core = client.CoreV1Api(admin)
    async with connected(behind_gate(namespace.developer), tmp_path, "agent") as link:
        other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        await core.patch_namespaced_config_map(AGENT, namespace.name, {"data": {HOST_KEY: other}})
        gate.sever()

        async def reason() -> bool:
            return "host key" in link.state.reason

        await kit.eventually(reason, True, 20)
        assert link.state.phase is not Phase.CONNECTED


async def take_away(admin: ApiClient, namespace: str, resource: str, *verbs: str) -> None:
    """Edit the developers' Roles."""
    rbac = client.RbacAuthorizationV1Api(admin)
    given = {each.metadata.name: each for each in (await rbac.list_namespaced_role(namespace)).items}
    for each in Role:
        if (role := given.get(each.object_name)) is None:
            continue
        for rule in role.rules or ():
            if resource in rule.resources:
                rule.verbs = [verb for verb in rule.verbs if verb not in verbs]
        role.rules = [rule for rule in role.rules or () if rule.verbs]
        await rbac.replace_namespaced_role(each.object_name, namespace, role)


async def test_who_may_not_create_pods_gets_port_forwards_and_is_told(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    await run_target(admin, namespace.name)
    await take_away(admin, namespace.name, "pods", "create")
    async with connected(namespace.developer, tmp_path) as link:
        assert link.state.kind == link.kind == "portforward"
        assert "create" in link.state.notes[0]
        assert "pods" in link.state.notes[0]
        assert await says_bye(link)


async def test_the_role_grants_all_and_each_missing_right_is_named_with_its_cost(
    admin: ApiClient, namespace: Namespace
) -> None:
    api = Api(Kubeconfig(namespace.developer))
    try:
        assert [each.need.purpose for each in await review(api) if not each.granted] == []
        await take_away(admin, namespace.name, "pods", "create")

        async def missing() -> list[tuple[str, ...]]:
            return [each.missing for each in await review(api) if not each.granted]

        await kit.eventually(missing, [("create pods",)])
    finally:
        await api.close()


async def test_either_way_gives_the_same_dns_answers(admin: ApiClient, namespace: Namespace, tmp_path: Path) -> None:
    await run_target(admin, namespace.name)
    core = client.CoreV1Api(admin)
    spec = client.V1ServiceSpec(
        cluster_ip="None", selector={"app": HOST}, ports=[client.V1ServicePort(name="web", port=FIRST)]
    )
    headless = client.V1Service(metadata=client.V1ObjectMeta(name="headless"), spec=spec)
    await core.create_namespaced_service(namespace.name, headless)
    external = client.V1ServiceSpec(type="ExternalName", external_name="node.vpc.test")
    service = client.V1Service(metadata=client.V1ObjectMeta(name="outside"), spec=external)
    await core.create_namespaced_service(namespace.name, service)
    zone = f"{namespace.name}.svc.cluster.local"
    address = (await core.read_namespaced_service(HOST, namespace.name)).spec.cluster_ip
    pod = (await core.read_namespaced_pod(HOST, namespace.name)).status.pod_ip

    def backward(ip: str) -> str:
        return f"{'.'.join(reversed(ip.split('.')))}.in-addr.arpa"

    questions = [
        (f"{HOST}.{zone}", "A"),
        (f"{HOST}.{zone}", "AAAA"),
        (f"headless.{zone}", "A"),
        (f"{pod.replace('.', '-')}.headless.{zone}", "A"),
        (f"_web._tcp.headless.{zone}", "SRV"),
        (f"_p{FIRST}._tcp.{HOST}.{zone}", "SRV"),
        (f"nobody.{zone}", "A"),
        (f"nobody.{HOST}.{zone}", "A"),
        (backward(address), "PTR"),
        (backward(pod), "PTR"),
    ]

    async with (
        connected(namespace.developer, tmp_path, "agent") as agent,
        connected(namespace.developer, tmp_path, "portforward") as plain,
    ):

        async def answers(link: KubernetesLink) -> list[Any]:
            found = []
            for name, kind in questions:
                answer = await link.lookup(name, kind)
                records = sorted(str(each) for rrset in answer.answer for each in rrset)
                found.append((name, kind, answer.rcode(), records))
            return found

        async def differences() -> list[Any]:
            pairs = zip(await answers(agent), await answers(plain), strict=True)
            return [pair for pair in pairs if pair[0] != pair[1]]

        # CoreDNS hears of new objects a moment later.
        await kit.eventually(differences, [], 20)
        rcodes = [each[2] for each in await answers(plain)]
        assert rcodes == [0, 0, 0, 0, 0, 0, 3, 3, 0, 0]
        cname = (await plain.lookup(f"outside.{zone}")).answer[0][0]
        assert str(cname) == "node.vpc.test."
        # A name that the cluster's resolver alone knows needs the agent.
        assert (await agent.lookup("node.vpc.test")).answer
        assert (await plain.lookup("node.vpc.test")).rcode() == 5  # REFUSED: ask somebody else

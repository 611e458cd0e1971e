"""Traffic that does not pass a Service's address: headless Services, the pods of a StatefulSet, pods' own addresses."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from devloop.agent import rules
from devloop.attach import ALL, AttachError, HeldError, Phase, Route, personal
from devloop.remote.roles import Role

from . import kit
from .attaching import Engine, Here, Load, ask, client_pod, engine, objects_of, plain, run_stateful
from .conftest import Namespace, Target
from .kit import ApiClient, client
from .test_attach_traffic import TCP, WEBSOCKET, grpc_and_http2, python

pytestmark = pytest.mark.role("attach")

WEB = "web"
MINE = ("-H", "baggage: devloop=ada")
PODS = ("web-0", "web-1")


def host(pod: str) -> str:
    """A pod of the StatefulSet, by its name in DNS."""
    return f"{pod}.{WEB}"


async def addresses(admin: ApiClient, space: Namespace) -> dict[str, str]:
    found = (await client.CoreV1Api(admin).list_namespaced_pod(space.name, label_selector=f"app={WEB}")).items
    return {each.metadata.name: each.status.pod_ip for each in found}


async def doors(admin: ApiClient, space: Namespace) -> dict[str, list[str]]:
    """By pod, how each of its doors stands."""
    found = (await client.CoreV1Api(admin).list_namespaced_pod(space.name, label_selector=f"app={WEB}")).items
    return {
        each.metadata.name: [
            next(key for key in ("running", "waiting", "terminated") if getattr(status.state, key) is not None)
            for status in each.status.ephemeral_container_statuses or []
        ]
        for each in found
    }


async def probes(admin: ApiClient, space: Namespace) -> dict[str, int]:
    """How many probes of each pod its kubelet says were answered well."""
    core = client.CoreV1Api(admin)
    node = (await core.list_node()).items[0].metadata.name
    text = await core.connect_get_node_proxy_with_path(node, "metrics/probes")
    found = dict.fromkeys(PODS, 0)
    for line in text.splitlines():
        if line.startswith("prober_probe_total") and f'namespace="{space.name}"' in line and '"successful"' in line:
            pod = line.partition(',pod="')[2].partition('"')[0]
            found[pod] = found.get(pod, 0) + int(float(line.split()[-1]))
    return found


async def everything(admin: ApiClient, space: Namespace) -> dict[str, Any]:
    """Every object that attaching could touch, field by field; of the pods, all but their ephemeral containers."""
    found = await objects_of(admin, space.name)
    core, apps = client.CoreV1Api(admin), client.AppsV1Api(admin)
    for kind, items in (
        ("statefulset", (await apps.list_namespaced_stateful_set(space.name)).items),
        ("pod", (await core.list_namespaced_pod(space.name, label_selector=f"app={WEB}")).items),
    ):
        for each in items:
            document = found[f"{kind}/{each.metadata.name}"] = plain(admin, each)
            document["spec"].pop("ephemeralContainers", None)
    return found


@asynccontextmanager
async def prepared(admin: ApiClient, space: Namespace, folder: Path, **more: Any) -> AsyncIterator[tuple[Engine, Here]]:
    """The StatefulSet, a pod to ask from, a developer and a local service."""
    await asyncio.gather(run_stateful(admin, space.name, WEB), client_pod(admin, space.name))
    async with Here() as here, engine(space.developer, folder, "ada", **more) as ada:
        yield ada, here


def wanted(ada: Engine, here: Here, *routes: Route, **more: Any) -> Any:
    return ada.wanted(here, **{"service": WEB, "routes": routes or (personal("ada"),), "way": "pods", **more})


async def answers(space: Namespace, who: dict[str, str], *arguments: str) -> None:
    """Each host is answered by that."""
    for name, expected in who.items():
        assert await ask(space, *arguments, service=name) == expected, (name, arguments)


async def test_what_a_route_takes_comes_here_and_the_rest_is_answered_by_the_pod_that_was_asked(
    admin: ApiClient, open_namespace: Namespace, tmp_path: Path
) -> None:
    space = open_namespace
    async with prepared(admin, space, tmp_path) as (ada, here):
        before = await everything(admin, space)
        by_address = {address: name for name, address in (await addresses(admin, space)).items()}
        originals = {**{host(each): each for each in PODS}, **by_address}
        found = await ada.attachments.attach(wanted(ada, here), here)
        assert found.spec.way == "pods" and found.state.phase is Phase.ATTACHED
        assert "web-0, web-1" in found.state.notes[0]
        # The Service is not touched. The one that is new stands for the attachment and leads nowhere.
        now = await everything(admin, space)
        new = {key: now.pop(key) for key in set(now) - set(before) if not key.startswith("lease/")}
        assert {key: each for key, each in now.items() if not key.startswith("lease/")} == before
        assert [each["spec"].get("selector") for each in new.values()] == [None]
        for _ in range(3):
            await answers(space, originals)
            await answers(space, dict.fromkeys(originals, "here"), *MINE)
        assert await python(space, WEBSOCKET, host("web-1"), "baggage: devloop=ada") == ["here:one", "here:two"]
        assert await python(space, WEBSOCKET, host("web-1")) == ["web-1:one", "web-1:two"]

        # What went through is told under the Service's name.
        async def told() -> set[tuple[str, str]]:
            return {(each.service, each.answered) for each in ada.requests}

        await kit.eventually(told, {(WEB, "local"), (WEB, "original")}, 10)
        # A port that nobody has asked for is not caught at all.
        assert (await python(space, TCP, host("web-0")))[0] == "hello from web-0"
        # The local service is down: the same pod answers.
        here.set_running(False)
        await kit.eventually(lambda: ask(space, *MINE, service=host("web-1")), "web-1", 10)
        here.set_running(True)
        await kit.eventually(lambda: ask(space, *MINE, service=host("web-1")), "here", 10)
        await ada.attachments.leave(found)
        await answers(space, originals, *MINE)
        assert await everything(admin, space) == before
        # What can't be undone: the containers' entries. Their processes have ended.
        ended = {each: ["terminated"] for each in PODS}
        await kit.eventually(lambda: doors(admin, space), ended, 60)
        await answers(space, originals, *MINE)


async def test_all_of_it_and_plain_connections_come_here_and_the_kubelet_still_asks_the_pods(
    admin: ApiClient, open_namespace: Namespace, tmp_path: Path
) -> None:
    space = open_namespace
    async with prepared(admin, space, tmp_path) as (ada, here):
        ports = {"http": here.port, "tcp-echo": here.tcp_port}
        await ada.attachments.attach(wanted(ada, here, ALL, ports=ports), here)
        for pod in PODS:
            await answers(space, {host(pod): "here"})
            assert await python(space, TCP, host(pod)) == ["hello from here", "ping", "b''"]
        # Nobody there: a plain connection goes to the pod that it was for.
        here.end()
        for pod in PODS:
            for _ in range(3):
                assert (await python(space, TCP, host(pod)))[0] == f"hello from {pod}"
        await here.begin()
        # The kubelet has asked each pod, after all had come here for a while; and nobody here has seen it.
        began = await probes(admin, space)

        async def probed() -> bool:
            now = await probes(admin, space)
            return all(now[pod] > began[pod] + 1 for pod in PODS)

        await kit.eventually(probed, True, 30)
        await answers(space, {host(pod): "here" for pod in PODS})
        assert [each[1] for each in here.seen] and all(each[1] != "/ready" for each in here.seen)


async def test_grpc_and_http2(admin: ApiClient, open_namespace: Namespace, tmp_path: Path) -> None:
    await grpc_and_http2(admin, open_namespace, tmp_path, "pods")


LASTING = """
import json, os, select, socket, sys
made = socket.create_connection((sys.argv[1], 8080), 10)
made.settimeout(10)
extra = "".join(f"{each}\\r\\n" for each in sys.argv[2:])
made.sendall(f"GET /ws HTTP/1.1\\r\\nHost: api\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
    f"Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n{extra}\\r\\n".encode())
assert made.recv(4096).startswith(b"HTTP/1.1 101")
heard, text = [], b"x"
while text == b"x":
    if os.path.exists("/tmp/enough"): text = b"last"
    made.sendall(text)
    heard.append(made.recv(100).decode())
    open(f"/tmp/{heard[0]}", "w").close()
    select.select([made], [], [], 0.2)  # nothing comes unasked, but the end
print(json.dumps([len(heard), sorted(set(heard[:-1])), heard[-1]]))
"""


async def test_websockets_outlive_a_reload_of_others_and_who_leaves(
    admin: ApiClient, open_namespace: Namespace, tmp_path: Path
) -> None:
    space = open_namespace
    async with prepared(admin, space, tmp_path) as (ada, here):
        found = await ada.attachments.attach(wanted(ada, here), here)
        await answers(space, {host("web-0"): "here"}, *MINE)

        def lasting(*headers: str) -> asyncio.Task[kit.Ran]:
            command = ("python3", "-c", LASTING, host("web-0"), *headers)
            return asyncio.create_task(kit.execute(space.developer, space.name, "client", *command))

        held = {"here": lasting(MINE[1]), "web-0": lasting()}

        async def answered() -> list[str]:
            ran = await kit.execute(space.developer, space.name, "client", "sh", "-c", "cd /tmp && ls *:x")
            return sorted(ran.stdout.split())

        await kit.eventually(answered, ["here:x", "web-0:x"], 30)
        # A reload of the local service: who comes meanwhile waits, in the pods too.
        here.reloading.clear()
        waiting = asyncio.create_task(python(space, WEBSOCKET, host("web-1"), MINE[1]))
        await answers(space, {host("web-1"): "web-1"})
        assert not waiting.done()
        here.reloading.set()
        assert await waiting == ["here:one", "here:two"]
        # Leaving: those that are open stay where they are, for longer than a door lingers that has lost its agent.
        await ada.attachments.leave(found)
        assert await python(space, WEBSOCKET, host("web-0"), MINE[1]) == ["web-0:one", "web-0:two"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(25):
                await asyncio.wait(held.values(), return_when=asyncio.FIRST_COMPLETED)
        await kit.execute(space.developer, space.name, "client", "touch", "/tmp/enough")
        for who, task in held.items():
            ran = await task
            count, heard, last = json.loads(ran.stdout)
            assert (heard, last) == ([f"{who}:x"], f"{who}:last") and count > 60, ran
        ended = {each: ["terminated"] for each in PODS}
        await kit.eventually(lambda: doors(admin, space), ended, 60)


async def test_developers_share_a_pods_door_and_one_can_have_a_copy(
    admin: ApiClient, open_namespace: Namespace, tmp_path: Path
) -> None:
    space = open_namespace
    async with (
        prepared(admin, space, tmp_path) as (ada, here),
        engine(space.other_developer, tmp_path, "ben") as ben,
        Here("copy") as copied,
    ):
        before = await everything(admin, space)
        mine = await ada.attachments.attach(wanted(ada, here), here)
        with pytest.raises(HeldError, match="ada@laptop holds"):
            await ben.attachments.attach(wanted(ben, copied), copied)
        tap = await ben.attachments.attach(wanted(ben, copied, ALL, kind="wiretap"), copied)
        assert await doors(admin, space) == {each: ["running"] for each in PODS}
        await answers(space, {host("web-0"): "here"}, *MINE)
        for pod in PODS:
            assert await ask(space, service=host(pod), path=f"/for-{pod}") == pod
        paths = {f"/for-{pod}" for pod in PODS}

        async def copies() -> set[str]:
            return paths & {each[1] for each in copied.seen}

        await kit.eventually(copies, paths, 10)
        await ada.attachments.leave(mine)
        await answers(space, {host("web-0"): "web-0"}, *MINE)
        await ben.attachments.leave(tap)
        assert await everything(admin, space) == before


@pytest.mark.parametrize("transparent", [True, False])
async def test_the_kernel_takes_the_rules_of_either_kind(cluster: Target, transparent: bool) -> None:
    cluster.need_own("The node's kernel is this machine's")
    made = rules.rules("devloop_a1", {8080: 40001}, ["192.0.2.1", "2001:db8::1"], transparent=transparent)
    text = made + rules.alive("devloop_a1", [8080], [40001]) + made
    for script, there in ((text, True), (text + rules.gone("devloop_a1"), False)):
        process = await asyncio.create_subprocess_exec(
            *("unshare", "--user", "--map-root-user", "--net", "sh", "-c", "nft -f - && nft list ruleset"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, said = await process.communicate(script.encode())
        assert process.returncode == 0, said
        assert ("elements = { 8080 expires" in out.decode()) is there, out


async def test_a_load_notices_nothing_of_attaching_and_leaving(
    admin: ApiClient, open_namespace: Namespace, tmp_path: Path
) -> None:
    space = open_namespace
    async with prepared(admin, space, tmp_path) as (ada, here):
        before = await everything(admin, space)
        headers = {"baggage": "devloop=ada"}
        load = Load(space, host=host("web-0"), headers=headers, connections=4, rate=100, requests_per_connection=20)
        other = Load(space, host=host("web-1"), connections=2, rate=50, requests_per_connection=20)
        await kit.eventually(lambda: ask(space, service=host("web-0")), "web-0", 10)
        for _ in range(2):
            found = await ada.attachments.attach(wanted(ada, here), here)
            seen = len(here.seen)

            async def more(seen: int = seen) -> bool:
                return len(here.seen) > seen + 100

            await kit.eventually(more, True, 30)
            await ada.attachments.leave(found)
            await answers(space, {host("web-0"): "web-0"}, *MINE)
        mine, others = await load.stop(), await other.stop()
        assert mine["failed"] == others["failed"] == 0, (mine, others)
        assert mine["counts"].keys() == {"here", "web-0"} and mine["counts"]["here"] > 150
        assert others["counts"].keys() == {"web-1"}
        assert await everything(admin, space) == before


async def test_a_crashed_developer_is_failed_open_and_the_doors_end_with_the_lease(
    admin: ApiClient, open_namespace: Namespace, tmp_path: Path
) -> None:
    space = open_namespace
    async with prepared(admin, space, tmp_path, lease_seconds=6) as (ada, here):
        before = await everything(admin, space)
        await ada.attachments.attach(wanted(ada, here, ALL), here)
        await answers(space, {host("web-0"): "here"})
        ada.crash()
        await kit.eventually(lambda: ask(space, service=host("web-0")), "web-0", 10)
        await answers(space, {host("web-1"): "web-1"})
        await kit.eventually(lambda: everything(admin, space), before, 60)
        await kit.eventually(lambda: doors(admin, space), {each: ["terminated"] for each in PODS}, 60)
        await answers(space, {host(each): each for each in PODS})


def door_process(pod_uid: str) -> int:
    """The process of a pod's door that runs, as this machine sees it."""
    for each in Path("/proc").iterdir():
        if each.name.isdecimal():
            try:
                command, environment = (each / "cmdline").read_bytes(), (each / "environ").read_bytes()
            except OSError:
                continue
            if b"devloop.agent.door" in command and f"DEVLOOP_DOOR_POD={pod_uid}".encode() in environment:
                return int(each.name)
    raise AssertionError(f"no door for {pod_uid}")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_door_that_dies_or_hangs_lets_the_pod_answer_and_another_one_comes(
    cluster: Target, admin: ApiClient, open_namespace: Namespace, tmp_path: Path, how: signal.Signals
) -> None:
    cluster.need_own("Killing a container's first process")
    space = open_namespace
    async with prepared(admin, space, tmp_path) as (ada, here):
        await ada.attachments.attach(wanted(ada, here, ALL), here)
        await answers(space, {host("web-0"): "here"})
        pod = await client.CoreV1Api(admin).read_namespaced_pod("web-0", space.name)
        # Without an engine nobody makes another door, and what answers is what the kernel does.
        ada.crash()
        process = door_process(pod.metadata.uid)
        os.kill(process, how)
        try:
            await kit.eventually(lambda: ask(space, "--max-time", "1", service=host("web-0")), "web-0", 10)
        finally:
            if how is signal.SIGSTOP:
                os.kill(process, signal.SIGCONT)
    async with engine(space.developer, tmp_path, "ada") as again, Here() as here:
        await again.attachments.attach(wanted(again, here, ALL), here)
        await answers(space, {host(each): "here" for each in PODS})
        os.kill(door_process(pod.metadata.uid), signal.SIGKILL)
        await kit.eventually(lambda: ask(space, service=host("web-0")), "here", 60)

        async def one_runs() -> list[str]:
            return sorted((await doors(admin, space))["web-0"])[:1]

        await kit.eventually(one_runs, ["running"], 60)


async def test_a_pod_that_comes_back_is_intercepted_again(
    admin: ApiClient, open_namespace: Namespace, tmp_path: Path, kill_pod: Callable[[str, str], Any]
) -> None:
    space = open_namespace
    async with prepared(admin, space, tmp_path) as (ada, here):
        found = await ada.attachments.attach(wanted(ada, here), here)
        await answers(space, {host("web-0"): "here"}, *MINE)
        await kill_pod(space.name, "web-0")
        await kit.pod_ready(admin, space.name, "web-0")
        await kit.eventually(lambda: ask(space, *MINE, service=host("web-0")), "here")
        await answers(space, {host(each): each for each in PODS})
        assert found.state.phase is Phase.ATTACHED
        # One more replica, as an autoscaler would.
        scale = {"spec": {"replicas": 3}}
        await client.AppsV1Api(admin).patch_namespaced_stateful_set_scale(WEB, space.name, scale)
        await kit.pod_ready(admin, space.name, "web-2")
        await kit.eventually(lambda: ask(space, *MINE, service=host("web-2")), "here")
        await answers(space, {host("web-2"): "web-2"})


@pytest.mark.role("self-service")
async def test_an_agent_that_is_lost_leaves_the_pods_to_themselves_and_the_next_one_has_doors_of_its_own(
    admin: ApiClient, open_namespace: Namespace, tmp_path: Path, kill_pod: Callable[[str, str], Any]
) -> None:
    space = open_namespace
    async with prepared(admin, space, tmp_path) as (ada, here):
        found = await ada.attachments.attach(wanted(ada, here), here)
        await answers(space, {host("web-0"): "here"}, *MINE)
        load = Load(space, host=host("web-1"), connections=2, rate=50, requests_per_connection=1)
        await kill_pod(space.name, "devloop-agent")
        await kit.eventually(lambda: ask(space, *MINE, service=host("web-0")), "web-0", 15)
        await kit.eventually(lambda: ask(space, *MINE, service=host("web-0")), "here")

        async def phase() -> Phase:
            return found.state.phase

        await kit.eventually(phase, Phase.ATTACHED, 10)
        result = await load.stop()
        assert result["counts"].keys() == {"web-1"}
        # Those that were in the agent's hands when it was killed are lost with it, and no others.
        assert result["failed"] <= 2, result


async def test_where_no_door_may_be_it_is_refused_and_nothing_is_left(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    async with prepared(admin, namespace, tmp_path) as (ada, here):
        before = await everything(admin, namespace)
        with pytest.raises(AttachError, match=r"PodSecurity.*NET_ADMIN") as problem:
            await ada.attachments.attach(wanted(ada, here), here)
        assert "privileged" in str(problem.value.hint)
        assert await everything(admin, namespace) == before
        assert await doors(admin, namespace) == {each: [] for each in PODS}
        await answers(namespace, {host(each): each for each in PODS}, *MINE)
        with pytest.raises(AttachError, match="no pods in which it could be"):
            kind = {"kind": "replace", "workload": "statefulset/web"}
            await ada.attachments.attach(wanted(ada, here, ALL, **kind), here)
        assert await everything(admin, namespace) == before


async def test_without_the_right_and_with_the_nodes_network_it_is_refused(
    admin: ApiClient, open_namespace: Namespace, tmp_path: Path
) -> None:
    space = open_namespace
    rbac = client.RbacAuthorizationV1Api(admin)
    role = await rbac.read_namespaced_role(Role.ATTACH.object_name, space.name)
    async with prepared(admin, space, tmp_path) as (ada, here):
        before = await everything(admin, space)
        rules = [each for each in role.rules if "pods/ephemeralcontainers" not in each.resources]
        await rbac.patch_namespaced_role(Role.ATTACH.object_name, space.name, {"rules": rules})

        async def refused() -> bool:
            try:
                await ada.attachments.attach(wanted(ada, here), here)
            except AttachError as problem:
                return "ephemeralcontainers" in problem.what and "--role attach" in str(problem.hint)
            await ada.attachments.close()
            return False

        await kit.eventually(refused, True, 20)
        assert await everything(admin, space) == before
        assert await doors(admin, space) == {each: [] for each in PODS}
        # Pods with their node's network: the rules would be the whole node's.
        labels = {"app": "node"}
        await kit.run_pod(admin, space.name, "node", host_network=True)
        service = client.V1Service(
            metadata=client.V1ObjectMeta(name="node"),
            spec=client.V1ServiceSpec(
                selector=labels, cluster_ip="None", ports=[client.V1ServicePort(name="http", port=8080)]
            ),
        )
        await client.CoreV1Api(admin).create_namespaced_service(space.name, service)
        with pytest.raises(AttachError, match="hostNetwork"):
            await ada.attachments.attach(ada.wanted(here, service="node", way="pods"), here)

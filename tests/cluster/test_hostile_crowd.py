"""Hostile clients at every port of the agent's pod, while requests go through an intercept: none of these fails.

Issue 14's third demonstration. In the suite it is DEVLOOP_HOSTILE_CLIENTS (50) for each port and
DEVLOOP_HOSTILE_SECONDS (15); for the record, with 200 and 60:

    DEVLOOP_HOSTILE_CLIENTS=200 DEVLOOP_HOSTILE_SECONDS=60 pytest -s -m cluster tests/cluster/test_hostile_crowd.py
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from pathlib import Path
from typing import Any

import pytest

from devloop.agent.back import BACK_PORT
from devloop.agent.doors import PORT as DOORS_PORT
from devloop.attach import Phase, personal
from tests import hostile

from . import kit
from .attaching import Here, Load, engine, run_service, run_stateful
from .conftest import Namespace
from .kit import ApiClient, client

AGENT = "devloop-agent"
SSH_PORT, DIRECT_PORT = 2222, 2223
ORIGINALS_PORT = "20001"
"""Leads straight to the TCP port of the original, which nobody has attached: that server alone ends connections."""
CLIENTS = int(os.environ.get("DEVLOOP_HOSTILE_CLIENTS", "50"))
SECONDS = float(os.environ.get("DEVLOOP_HOSTILE_SECONDS", "15"))
RATE = 100
FRAMES = 50
"""That a flood sends a second, on one connection."""
SOURCE = inspect.getsource(hostile)
LISTENING = """
for name in ("tcp", "tcp6", "udp", "udp6"):
    for line in open(f"/proc/net/{name}").read().splitlines()[1:]:
        _, local, remote, state = line.split()[:4]
        address, port = local.split(":")
        if state == ("0A" if name.startswith("tcp") else "07"):
            print(name[:3], "all" if set(address) == {"0"} else "one", int(port, 16))
"""
MEMORY = """cd /sys/fs/cgroup
if [ -e memory.peak ]; then cat memory.peak memory.max memory.current; exit; fi
cd memory && cat memory.max_usage_in_bytes memory.limit_in_bytes memory.usage_in_bytes
"""


async def listening(space: Namespace) -> set[tuple[str, str, int]]:
    """(tcp or udp, at all addresses or at one, port) of the pod's network namespace."""
    ran = await kit.execute(space.developer, space.name, AGENT, "python3", "-c", LISTENING)
    assert ran.code == 0, ran
    rows = (line.split() for line in ran.stdout.splitlines())
    return {(kind, where, int(port)) for kind, where, port in rows}


async def memory(space: Namespace) -> dict[str, tuple[int, int, int]]:
    """MiB by container: the most so far, the limit, and now."""
    found = {}
    for name in ("agent", "envoy"):
        ran = await kit.execute(space.developer, space.name, AGENT, "sh", "-c", MEMORY, container=name)
        if ran.code:
            pytest.skip(f"the node does not tell a container's memory: {ran.stderr}")
        peak, limit, now = (int(each) >> 20 for each in ran.stdout.split())
        found[name] = (peak, limit, now)
    return found


def kind(port: int) -> str:
    """What is tried there: Envoy's ports get HTTP."""
    return "http" if port >= 20000 else "other"


async def crowd(space: Namespace, targets: list[tuple[str, int, str]]) -> dict[str, dict[str, int]]:
    """From a pod."""
    plan = {"targets": targets, "clients": CLIENTS, "seconds": SECONDS, "frames": FRAMES}
    ran = await kit.execute(space.developer, space.name, "crowd", "python3", "-c", SOURCE, json.dumps(plan))
    assert ran.code == 0, ran
    found: dict[str, dict[str, int]] = json.loads(ran.stdout)
    return found


async def crowd_inside(admin: ApiClient, space: Namespace, ports: list[int]) -> dict[str, dict[str, int]]:
    """From within the agent's pod: to what listens on its loopback."""
    targets = [("127.0.0.1", port, kind(port)) for port in ports]
    plan = {"targets": targets, "clients": CLIENTS, "seconds": SECONDS, "frames": FRAMES}
    container = {
        "name": "crowd",
        "image": kit.BASE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", SOURCE, json.dumps(plan)],
        "securityContext": admin.sanitize_for_serialization(kit.RESTRICTED),
    }
    core = client.CoreV1Api(admin)
    body = {"spec": {"ephemeralContainers": [container]}}
    await core.patch_namespaced_pod_ephemeralcontainers(AGENT, space.name, body)

    async def ended() -> Any:
        pod = await core.read_namespaced_pod(AGENT, space.name)
        [status] = pod.status.ephemeral_container_statuses or [None]
        return status.state.terminated.exit_code if status and status.state.terminated else None

    await kit.eventually(ended, 0, SECONDS + 60)
    found: dict[str, dict[str, int]] = json.loads(
        (await core.read_namespaced_pod_log(AGENT, space.name, container="crowd")).replace("'", '"')
    )
    return found


async def test_a_crowd_at_every_port_fails_no_request(
    admin: ApiClient, open_namespace: Namespace, tmp_path: Path
) -> None:
    space = open_namespace
    names = ("client", "crowd")
    await asyncio.gather(
        run_service(admin, space.name),
        run_stateful(admin, space.name, "web", replicas=1),
        *(kit.run_pod(admin, space.name, each) for each in names),
    )
    async with engine(space.developer, tmp_path) as ada, Here() as here:
        taken = await ada.attachments.attach(ada.wanted(here), here)
        # Doors, so that the ports that they come to are open, too.
        more = ada.wanted(here, service="web", routes=(personal("ada"),), way="pods")
        beside = await ada.attachments.attach(more, here)
        assert {taken.state.phase, beside.state.phase} == {Phase.ATTACHED}
        pod = await client.CoreV1Api(admin).read_namespaced_pod(AGENT, space.name)
        before, ports = await memory(space), await listening(space)
        assert not {each for each in ports if each[0] == "udp"}, "nobody has looked at these yet"
        outside = sorted(port for _, where, port in ports if where == "all")
        loopback = sorted(port for _, where, port in ports if where == "one")
        assert {DIRECT_PORT, BACK_PORT, DOORS_PORT, 20000} <= set(outside) and max(outside) >= 30000, outside
        assert SSH_PORT in loopback, loopback

        load = Load(space, rate=RATE, connections=20, seconds=SECONDS + 90)
        targets = [(pod.status.pod_ip, port, kind(port)) for port in outside]
        came = await asyncio.gather(
            crowd(space, targets), crowd_inside(admin, space, loopback), self_login(space, tmp_path)
        )
        result = await load.stop()
        after = await memory(space)

        where = f"{len(outside)} ports of the pod and {len(loopback)} of its loopback"
        print(f"\n{CLIENTS} clients at each of {where}, {SECONDS:g} s")
        print({key: value for key, value in result.items() if key not in ("failures", "changes")})
        for where, found in zip(("pod", "loopback"), came, strict=False):
            for port, ends in sorted(found.items(), key=lambda each: int(each[0])):
                print(f"{where}:{port}  {ends}")
        for name, (peak, limit, now) in after.items():
            print(f"{name}: {peak} MiB at most, {now} MiB now, {before[name][2]} MiB before; its limit is {limit} MiB")
        assert result["failed"] == 0, str(result)
        assert set(result["counts"]) == {"here"}, str(result["counts"])
        assert result["answered"] > 0.9 * RATE * SECONDS
        for peak, limit, _ in after.values():
            assert peak < 0.9 * limit
        for found in came[:2]:
            for port, ends in found.items():
                assert sum(ends.values()) >= CLIENTS, port
                assert ends.get("ended", 0) + ends.get("refused", 0) or port == ORIGINALS_PORT, port
        # Nothing has ended meanwhile, neither a container nor Envoy in its own.
        core = client.CoreV1Api(admin)
        now = await core.read_namespaced_pod(AGENT, space.name)
        assert now.metadata.uid == pod.metadata.uid
        assert [each.restart_count for each in now.status.container_statuses] == [0, 0]
        log = await core.read_namespaced_pod_log(AGENT, space.name, container="envoy")
        assert "has ended" not in log, log
        assert {taken.state.phase, beside.state.phase} == {Phase.ATTACHED}


async def self_login(space: Namespace, folder: Path) -> None:
    """Another developer comes meanwhile, by the port that the crowd is at, and is let in."""
    await asyncio.sleep(SECONDS / 2)
    async with engine(space.other_developer, folder, "ben") as ben:
        assert (await ben.link.best()) is not None

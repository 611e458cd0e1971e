"""How long from `devloop up` to a link that is connected, and from a toggle to the first request answered here.

On the cluster of the tests, with examples/shop in it. It needs root and the cluster of docs/cluster-tests.md, up
(DEVLOOP_TEST_CLUSTER says which).
"""

from __future__ import annotations

import asyncio
import http.client
import json
import secrets
import shlex
import socket
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.figures import Result, Table, ms, percentile
from benchmarks.rig import Fifo, flood, workspace
from tests.cluster import kit
from tests.cluster.kit import client
from tests.cluster.kube import access
from tests.cluster.kube.settings import Settings
from tests.cluster.project import MANIFESTS, Project, Running, a_project, the_shop

HERE = socket.gethostname()
FLOOD = 100_000
"""Lines a second."""
PINGS = """
import json, socket, sys, time
s = socket.create_connection(("store", 6379), 10)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
found, clock = [], time.perf_counter
end = clock() + float(sys.argv[1])
while clock() < end:
    begin = clock()
    s.sendall(b"PING\\r\\n")
    answer = s.recv(64)
    found.append(clock() - begin)
    assert answer == b"+PONG\\r\\n", answer
print(json.dumps(found))
"""
NAMESPACE = f"bench-{secrets.token_hex(4)}"


@asynccontextmanager
async def shop(settings: Settings, folder: Path) -> AsyncIterator[Path]:
    """The shop, deployed and ready in a namespace of its own; a developer's kubeconfig."""
    admin_file = settings.state / "etc" / "admin.conf"
    async with kit.connect(admin_file) as admin:
        core, apps = client.CoreV1Api(admin), client.AppsV1Api(admin)
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        await core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=NAMESPACE, labels=labels)))
        try:
            await access.grant(admin, NAMESPACE, [access.subject("ada", NAMESPACE, token=False)])
            await kit.apply(admin, NAMESPACE, *MANIFESTS)
            for each in ("api", "web"):
                await kit.until(
                    apps.list_namespaced_deployment,
                    NAMESPACE,
                    ready=lambda it: (it.status.ready_replicas or 0) == it.spec.replicas,
                    field_selector=f"metadata.name={each}",
                )
            config = folder / "ada.conf"
            config.write_text(yaml.safe_dump(access.by_certificate(settings, "ada", NAMESPACE)))
            yield config
        finally:
            await core.delete_namespace(NAMESPACE)


async def up_once(project: Project) -> dict[str, int]:
    """Nanoseconds from the command to the link and to the local service."""
    begin = time.monotonic_ns()
    async with project.up() as running:
        await running.connected()
        connected = time.monotonic_ns() - begin
        await running.until(lambda: running.services["web"].state.value == "ready", "web is ready")
        ready = time.monotonic_ns() - begin
    return {"connected": connected, "ready": ready}


def served_by(connection: http.client.HTTPConnection) -> str:
    connection.request("GET", "/healthz")
    answer = connection.getresponse()
    answer.read()
    return answer.getheader("X-Served-By") or ""


def ask_until(port: int, *, local: bool) -> int:
    """Ask, each time on a new connection, until this machine answers, or another does; when that was."""
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            found = served_by(connection)
        finally:
            connection.close()
        if (HERE in found) is local:
            return time.monotonic_ns()


async def toggles(project: Project, rounds: int) -> dict[str, list[int]]:
    """Nanoseconds from the call to the first answer of `api` here, and back; and what of that is its own boot."""
    here: list[int] = []
    boot: list[int] = []
    back: list[int] = []
    async with project.up() as running:
        await running.connected()
        await running.until(lambda: running.services["web"].state.value == "ready", "web is ready")
        port = running.services["api"].published["http"]
        for number in range(rounds + 1):
            here_, boot_ = await _toggle(running, port, "local")
            back_, _ = await _toggle(running, port, "remote")
            if number:  # the first opens its world
                here.append(here_)
                boot.append(boot_)
                back.append(back_)
            else:
                first = here_
    return {"here": here, "boot": boot, "back": back, "first": [first]}


async def _toggle(running: Running, port: int, mode: str) -> tuple[int, int]:
    assert running.client is not None
    begin = time.monotonic_ns()
    await running.client.call("toggle", service="api", mode=mode)
    ended = await asyncio.to_thread(partial(ask_until, port, local=mode == "local"))
    if mode == "remote":
        return ended - begin, 0
    await running.until(lambda: running.services["api"].state.value == "ready", "api is ready")
    loop = running.services["api"].last_loop
    assert loop is not None
    return ended - begin, loop.stamps["ready"] - loop.stamps["spawned"]


async def trips(project: Project, seconds: float) -> list[float]:
    """Round trips of one connection from a local service to the store in the cluster, in seconds."""
    ran = await project.run("web", "python3", "-c", PINGS, str(seconds))
    return list(json.loads(ran.stdout))


async def watched(project: Project, seconds: float) -> dict[str, list[float]]:
    """The same three times: by itself, with the TUI open, and with a service that floods its log as well."""
    floods = Fifo(project.folder / "floods")
    file = project.folder / "devloop.toml"
    file.write_text(
        f'{file.read_text()}\n[services.flood]\ncommand = ["{flood()}", "{floods.path}", "{FLOOD}", "600"]\n'
        'mode = "off"\nwatch = []\nready = false\nworkload = false\n'
    )
    found = {}
    await project("up", "--detach")
    try:
        await trips(project, 1)
        found["headless"] = await trips(project, seconds)
        tui = await asyncio.create_subprocess_exec(
            *("script", "-qfc", f"stty cols 160 rows 50; exec {shlex.join(project.command('up'))}", "/dev/null"),
            cwd=project.folder,
            env={**project.environ, "TERM": "xterm-256color"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            await asyncio.sleep(3)
            found["TUI open"] = await trips(project, seconds)
            await project("toggle", "flood", "local")
            await asyncio.sleep(2)
            found[f"TUI open, {FLOOD:,} log lines/s"] = await trips(project, seconds)
            assert tui.returncode is None, "the TUI has ended"
        finally:
            tui.terminate()
            await tui.wait()
        found[f"headless, {FLOOD:,} log lines/s"] = await trips(project, seconds)
    finally:
        await project("down")
        file.write_text(file.read_text().partition("\n[services.flood]")[0])
    return found


def run(*, quick: bool) -> Result:
    rounds = 2 if quick else 9
    settings = Settings.of_environment()
    raw: dict[str, Any] = {}
    folder = workspace() / "passthrough"

    async def measure() -> None:
        folder.mkdir(parents=True)
        async with shop(settings, folder) as kubeconfig:
            with a_project(folder / "project", kubeconfig, NAMESPACE) as project:
                the_shop(project)
                raw["without an agent"] = [await up_once(project) for _ in range(rounds)]
                await project("agent", "install")
                try:
                    raw["with an agent"] = [await up_once(project) for _ in range(rounds)]
                    raw["toggles"] = await toggles(project, rounds * 2)
                    raw["watched"] = await watched(project, 2 if quick else 8)
                finally:
                    await project("agent", "uninstall")

    asyncio.run(measure())
    up = Table("devloop up", ["", "command to connected, p50", "worst", "command to the local service ready, p50"])
    for name in ("with an agent", "without an agent"):
        found = raw[name]
        connected = [each["connected"] for each in found]
        ready = statistics.median(each["ready"] for each in found)
        up.rows.append([name, ms(statistics.median(connected), 0), ms(max(connected), 0), ms(ready, 0)])
    up.notes.append("the aims: 1.5 s with an agent there, 4 s with none")
    found = raw["toggles"]
    own = [here - boot for here, boot in zip(found["here"], found["boot"], strict=True)]
    toggle = Table("A toggle, to the first answer from the other side", ["", "p50", "p95"])
    for name, values in (
        ("remote to local", found["here"]),
        ("of that, without the service's own boot", own),
        ("local to remote", found["back"]),
    ):
        toggle.rows.append([name, ms(statistics.median(values), 0), ms(percentile(values, 95), 0)])
    toggle.notes.append(
        f"the first one, which reads its workload: {ms(found['first'][0], 0)}; the aim: 300 ms plus boot"
    )
    beside = Table("Round trips through the tunnel while somebody looks", ["", "p50, ms", "p99, ms"])
    for name, values in raw["watched"].items():
        beside.rows.append([name, f"{percentile(values, 50) * 1e3:.2f}", f"{percentile(values, 99) * 1e3:.2f}"])
    beside.notes.append("a Redis PING from a local service to the cluster's store, one after the other")
    return Result("passthrough", [up, toggle, beside], raw)

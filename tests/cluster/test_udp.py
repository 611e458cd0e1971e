"""UDP of a local service: to a Service and a pod of the cluster, to a local one, and what a link can't carry."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devloop.protocol import State

from . import kit
from .conftest import Namespace
from .kit import ApiClient, client
from .project import Project, Running, a_project

pytestmark = pytest.mark.role("attach")

ECHO = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 9125))
while True:
    data, source = s.recvfrom(70000)
    s.sendto(sys.argv[1].encode() + data, source)
"""
ASK = """
import json, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(3)
s.connect((sys.argv[1], int(sys.argv[2])))
found = []
for size in json.loads(sys.argv[3]):
    s.send(b"x" * size)
    try: data = s.recv(70000)
    except OSError as error: found.append(type(error).__name__)
    else: found.append([data[:5].decode(), len(data)])
print(json.dumps(found))
"""
TWO = """
import json, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(3)
for address in sys.argv[1:]:
    host, _, port = address.partition(":")
    s.sendto(address.encode(), (host, int(port)))
print(json.dumps(sorted([data.decode(), *source] for data, source in (s.recvfrom(1000) for _ in sys.argv[1:]))))
"""
CALL = """
import json, os, select, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect((sys.argv[1], int(sys.argv[2])))
s.settimeout(3)
runs, lost, number = [], 0, 0
while not os.path.exists("/tmp/enough"):
    number += 1
    said = b"%d" % number
    try:
        s.send(said)
        while not (found := s.recv(1000)).endswith(b":" + said):  # a late answer to another one
            pass
        who = found.partition(b":")[0].decode()
    except OSError:
        lost += 1
        who = "nobody"
    if not runs or runs[-1][0] != who:
        runs.append([who, 0])
    runs[-1][1] += 1
    select.select([s], [], [], 0.02)  # nothing comes unasked, so this is the pace
print(json.dumps([runs, lost]))
"""
NAMED = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", int(sys.argv[2])))
print("bound", flush=True)
while True:
    data, source = s.recvfrom(70000)
    name = source[0] if data == b"who" else sys.argv[1]
    s.sendto(name.encode() + b":" + data, source)
"""
SERVICE = {
    "selector": {"app": "echo"},
    "ports": [
        {"name": "statsd", "port": 8125, "targetPort": 9125, "protocol": "UDP"},
        {"name": "dns", "port": 53, "targetPort": 9125, "protocol": "UDP"},
    ],
}


async def deployed(admin: ApiClient, namespace: str) -> tuple[str, str]:
    """The address of a Service, and that of its pod, which answers "there" and what it was sent."""
    body = {"metadata": {"name": "echo"}, "spec": SERVICE}
    made = await client.CoreV1Api(admin).create_namespaced_service(namespace, body)
    pod = await kit.run_pod(admin, namespace, "echo", ["python3", "-c", ECHO, "there"])
    return made.spec.cluster_ip, pod.status.pod_ip


@pytest.fixture
def project(namespace: Namespace, tmp_path: Path) -> Iterator[Project]:
    with a_project(tmp_path / "ada", namespace.developer, namespace.name) as made:
        (made.folder / "echo.py").write_text(ECHO)
        yield made


@pytest.fixture
def open_project(open_namespace: Namespace, tmp_path: Path) -> Iterator[Project]:
    with a_project(tmp_path / "ada", open_namespace.developer, open_namespace.name) as made:
        (made.folder / "named.py").write_text(NAMED)
        yield made


def configure(project: Project, web: str, before: str = "") -> None:
    python = json.dumps(sys.executable)
    project.config(
        f"{before}\n[services.web]\ncommand = {web}\nworkload = false\nwatch = []\n"
        f'[services.echo]\ncommand = [{python}, "echo.py", "local"]\nmode = "remote"\n'
        'workload = "pod/echo"\nwatch = []\n'
    )


async def ask(project: Project, host: str, port: int, *sizes: int) -> Any:
    ran = await project.run("web", "python3", "-c", ASK, host, str(port), json.dumps(sizes))
    return json.loads(ran.line)


async def test_datagrams_go_to_a_service_and_a_pod_and_follow_a_toggle(
    admin: ApiClient, namespace: Namespace, project: Project
) -> None:
    address, pod = await deployed(admin, namespace.name)
    configure(project, f'[{json.dumps(sys.executable)}, "-m", "http.server", "8080"]')
    async with project.up() as running:
        await running.until_state("web", State.READY)
        await running.connected()

        async def answers() -> Any:
            return await ask(project, "echo", 8125, 1)

        await kit.eventually(answers, [["there", 6]])
        sizes = (0, 1, 1472, 8192, 65502)
        expected = [["there", size + 5] for size in sizes]
        assert await ask(project, "echo", 8125, *sizes) == expected
        assert await ask(project, pod, 9125, *sizes) == expected
        assert await ask(project, "echo", 53, 12) == [["there", 17]], "a DNS server's Service is asked itself"
        assert await ask(project, pod, 9126, 1) == ["ConnectionRefusedError"]
        two = await project.run("web", "python3", "-c", TWO, f"{address}:8125", f"{pod}:9125")
        assert json.loads(two.line) == sorted(
            [[f"there{host}:{port}", host, port] for host, port in ((address, 8125), (pod, 9125))]
        )

        await project("toggle", "echo")
        await running.until_state("echo", State.READY)
        await kit.eventually(answers, [["local", 6]])
        assert await ask(project, "echo", 8125, 0, 8192) == [["local", 5], ["local", 8197]]
        await project("toggle", "echo")
        await running.until_state("echo", State.REMOTE)
        await kit.eventually(answers, [["there", 6]])


async def test_plain_port_forwards_say_once_that_they_carry_none(
    admin: ApiClient, namespace: Namespace, project: Project
) -> None:
    address, _ = await deployed(admin, namespace.name)
    configure(project, f'[{json.dumps(sys.executable)}, "-m", "http.server", "8080"]', 'link = "portforward"')
    async with project.up() as running:
        await running.until_state("web", State.READY)
        await running.connected()
        assert await ask(project, "echo", 8125, 1) == ["ConnectionRefusedError"]
        line = f"UDP to {address}:8125 is refused: the link is plain port-forwards, which carry TCP alone"
        await running.until(lambda: ("web", line) in running.lines, line)
        assert await ask(project, "echo", 8125, 1) == ["ConnectionRefusedError"]
        assert running.lines.count(("web", line)) == 1


class Caller:
    """A client in the cluster with one socket, which asks again as soon as it is answered."""

    def __init__(self, space: Namespace, host: str, port: int) -> None:
        self._space = space
        command = ("python3", "-c", CALL, host, str(port))
        self._task = asyncio.create_task(kit.execute(space.developer, space.name, "client", *command))

    async def stop(self) -> tuple[list[tuple[str, int]], int]:
        """Who has answered, one after the other and how often; and how many nobody has."""
        await kit.execute(self._space.developer, self._space.name, "client", "touch", "/tmp/enough")
        runs, lost = json.loads((await self._task).stdout.splitlines()[-1])
        return [(who, number) for who, number in runs], lost


async def answers(space: Namespace, host: str, port: int, text: str = "x") -> str:
    """Who answers a new socket."""
    one = ONE.replace("TEXT", repr(text.encode()))
    ran = await kit.execute(space.developer, space.name, "client", "python3", "-c", one, host, str(port))
    return ran.stdout.strip()


ONE = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(1)
s.connect((sys.argv[1], int(sys.argv[2])))
try:
    s.send(TEXT)
    print(s.recv(70000).partition(b":")[0].decode())
except OSError as problem:
    print(type(problem).__name__)
"""
SIZES = ASK.replace("data[:5].decode(), len(data)", 'data.partition(b":")[0].decode(), len(data)')


async def test_udp_is_intercepted_in_the_pods_and_goes_back_to_them(
    admin: ApiClient, open_namespace: Namespace, open_project: Project
) -> None:
    space, project = open_namespace, open_project
    body = {"metadata": {"name": "echo"}, "spec": SERVICE}
    made = await client.CoreV1Api(admin).create_namespaced_service(space.name, body)
    address = made.spec.cluster_ip
    pod, caller = await asyncio.gather(
        kit.run_pod(admin, space.name, "echo", ["python3", "-c", NAMED, "pod", "9125"]),
        kit.run_pod(admin, space.name, "client"),
    )
    at_pod = pod.status.pod_ip
    python = json.dumps(sys.executable)
    project.config(
        f"""
[services.echo]
command = [{python}, "named.py", "here", "9300"]
workload = "pod/echo"
watch = ["named.py"]
ready = {{ log = "bound" }}

[services.echo.attach]
kind = "intercept"
way = "pods"
routes = "all"
ports = {{ statsd = 9300 }}
"""
    )

    async def who() -> list[str]:
        return [await answers(space, *each) for each in ((address, 8125), (at_pod, 9125))]

    assert await who() == ["pod", "pod"]
    asking = Caller(space, address, 8125)
    async with project.up() as running:
        await running.until_state("echo", State.READY)
        await attached(running)
        assert await who() == ["here", "here"]
        # As its pod would, it sees who asks. What nobody has asked for is the pod's: the other port, TCP of its number.
        assert await answers(space, at_pod, 9125, "who") == caller.status.pod_ip
        sizes = json.dumps([0, 1, 1472, 8192, 65_000])
        ran = await kit.execute(space.developer, space.name, "client", "python3", "-c", SIZES, address, "8125", sizes)
        assert json.loads(ran.stdout) == [["here", 5 + size] for size in json.loads(sizes)]

        # A reload: what comes meanwhile waits.
        before = running.services["echo"].pid
        (project.folder / "named.py").write_text(NAMED + "\n# saved\n")
        await running.until(lambda: running.services["echo"].pid not in (before, None), "it has reloaded")
        await running.until_state("echo", State.READY)
        assert await who() == ["here", "here"]

        # A crash: the pod has them until it runs again.
        (project.folder / "named.py").write_text("raise SystemExit(3)")
        await running.until(lambda: "failed open" in phases(running), "it fails open")
        assert await who() == ["pod", "pod"]
        (project.folder / "named.py").write_text(NAMED)
        await attached(running)
        assert await who() == ["here", "here"]

        await project("leave", "echo")
        assert await who() == ["pod", "pod"]
        await project("attach", "echo")
        await attached(running)
        assert await who() == ["here", "here"]
        await running.crash()
        await kit.eventually(who, ["pod", "pod"], 5)
    async with project.up() as running:  # the next engine finds its own, and what the killed one has left here
        await running.until_state("echo", State.READY)
        await attached(running)
        assert await who() == ["here", "here"]
    assert await who() == ["pod", "pod"]
    runs, lost = await asking.stop()
    print(runs, lost)
    answered = [name for name, _ in runs if name != "nobody"]
    turns = [name for name, _ in itertools.groupby(answered)]
    assert turns == ["pod", *["here", "pod"] * 4], runs
    # What a process had when it crashed, and the engine when it was killed.
    assert lost <= 3, (runs, lost)


def phases(running: Running) -> list[str]:
    return [each.phase for each in running.services["echo"].attachments]


async def attached(running: Running) -> None:
    await running.until(lambda: phases(running) == ["attached"], "attached")

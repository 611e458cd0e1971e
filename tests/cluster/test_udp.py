"""UDP of a local service: to a Service and a pod of the cluster, to a local one, and what a link can't carry."""

from __future__ import annotations

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
from .project import Project, a_project

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
TALK = """
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    try: s.sendto(b"x", ("echo", 8125))
    except OSError: pass  # the name, until the link is there
    time.sleep(0.2)
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
        (made.folder / "talk.py").write_text(TALK)
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
    configure(project, f'[{json.dumps(sys.executable)}, "talk.py"]', 'link = "portforward"')
    async with project.up() as running:
        await running.connected()
        line = f"UDP to {address}:8125 is refused: the link is plain port-forwards, which carry TCP alone"
        await running.until(lambda: ("web", line) in running.lines, line)
        assert await ask(project, "echo", 8125, 1) == ["ConnectionRefusedError"]
        assert running.lines.count(("web", line)) == 1

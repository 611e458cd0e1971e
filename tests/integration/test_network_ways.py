"""The ways `ports` and `hosts`: services on the host's network, and what they depend on elsewhere or here.

A sandbox is the cluster, a real OpenSSH server the host.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
import textwrap
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from devloop.errors import ServiceError
from devloop.net import hosts
from devloop.net.inside import Inside
from devloop.protocol import State
from devloop.state import StateFolder
from tests.ports import free_port

from .conftest import DEADLINE, Project
from .remote.conftest import target_ports as target_ports
from .remote.openssh import Sshd
from .remote.openssh import sshd as sshd
from .sandbox.conftest import namespaces as namespaces

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

# Says who it is; asks API_URL, finding names in the hosts file that FIND names, if it is set; reads a file.
SERVER = """
import http.server, json, os, pathlib, signal, sys, time, urllib.parse, urllib.request

if "LINGER" in os.environ:  # an answer takes as long
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(float(os.environ["LINGER"])), os._exit(0)))

def there(url):
    parts = urllib.parse.urlsplit(url)
    for line in pathlib.Path(os.environ["FIND"]).read_text("latin-1").splitlines() if "FIND" in os.environ else ():
        address, *names = line.partition("#")[0].split() or ("",)
        if parts.hostname in names:
            return url.replace(parts.hostname, address, 1)
    return url

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        answer = {"who": os.environ["WHO"], "pid": os.getpid()}
        if self.path.startswith("/ask"):
            url = os.environ[self.path.partition("?")[2] or "API_URL"]
            with urllib.request.urlopen(there(url), timeout=15) as found:
                answer = json.load(found)
        elif self.path == "/file":
            answer = pathlib.Path(os.environ["GREETING"]).read_text()
        elif self.path == "/env":
            answer = dict(os.environ)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())
    def log_message(self, *words): pass
http.server.ThreadingHTTPServer((os.environ.get("HOST", "127.0.0.1"), int(os.environ["PORT"])), Handler).serve_forever()
"""

MANIFESTS = """
apiVersion: v1
kind: ConfigMap
metadata: {name: words}
data: {greeting: hello from the cluster}
---
apiVersion: v1
kind: Service
metadata: {name: api}
spec:
  selector: {app: api}
  ports: [{name: http, port: SERVICE_PORT, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: other}
spec:
  selector: {app: other}
  ports: [{port: SERVICE_PORT, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: pods}
spec:
  clusterIP: None
  selector: {app: api}
"""


def deployment(name: str, more: str = "") -> str:
    return f"""
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: {name}
        image: ways:1
        command: [python3, server.py]
        env:
        - {{name: WHO, value: there}}
        - {{name: HOST, value: 0.0.0.0}}
        - {{name: PORT, value: "8080"}}
{textwrap.indent(more, "        ")}"""


WEB = """
- {name: API_URL, value: "http://api:SERVICE_PORT/"}
- {name: PODS_URL, value: "http://pods.cluster.svc.cluster.local:8080/"}
- {name: OTHER_URL, value: "http://other:SERVICE_PORT/"}
- {name: GREETING, value: /etc/words/greeting}
"""
VOLUME = """
        volumeMounts: [{name: words, mountPath: /etc/words}]
      volumes: [{name: words, configMap: {name: words}}]
"""


class Ways:
    """A project with a small cluster: `web` is here, `api` is there."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.web, self.api = free_port(), free_port()

    def configure(
        self, network: str, *, service_port: int = 8080, api: str = "127.0.0.1", more: str = "", linger: float = 0
    ) -> None:
        """`service_port` is that of the Services; `api` is where the local `api` listens, and `linger` how long it
        takes to end, in seconds."""
        self.project.write("image/server.py", SERVER)
        text = MANIFESTS + deployment("api") + deployment("other") + deployment("web", WEB) + VOLUME
        self.project.write("k8s/all.yaml", text.replace("SERVICE_PORT", str(service_port)))
        self.project.config(f"""
            [project]
            network = "{network}"
            [remote]
            kind = "sandbox"
            namespace = "cluster"
            manifests = "k8s"
            images = {{ "ways:1" = "image" }}
            [services.web]
            command = "{sys.executable} image/server.py"
            watch = []
            ports = {self.web}
            env = {{ WHO = "here", HOST = "127.0.0.1", PORT = "{self.web}" }}
            ready = {{ http = "/", period = "20ms" }}
            [services.api]
            command = "{sys.executable} image/server.py"
            watch = []
            mode = "remote"
            ports = {self.api}
            env = {{ WHO = "here", HOST = "{api}", PORT = "{self.api}", LINGER = "{linger}" }}
            ready = {{ http = "/", period = "20ms" }}
            {more}
        """)

    async def get(self, path: str = "/", port: int | None = None) -> Any:
        return await get(port or self.web, path)

    async def until_up(self) -> None:
        """`web` is here and ready, and the pods of the others answer: those of a sandbox have no probe to wait for."""
        await self.project.until_state("web", State.READY)
        async with asyncio.timeout(DEADLINE):
            for variable in ("API_URL", "OTHER_URL"):
                while await refused(self.web, f"/ask?{variable}"):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

    async def reload(self) -> None:
        """A new process of `api`, and not one request of `web` fails meanwhile."""
        before = (await self.get("/ask"))["pid"]
        await self.project.client.call("restart", services=["api"])
        while True:
            found = await self.get("/ask")
            assert found["who"] == "here"
            if found["pid"] != before:
                return

    async def toggle(self, mode: str) -> None:
        await self.project.client.call("toggle", service="api", mode=mode)
        await self.project.until_state("api", State.READY if mode == "local" else State.REMOTE)


async def get(port: int, path: str = "/", host: str = "127.0.0.1") -> Any:
    def ask() -> Any:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=15) as answer:
            return json.load(answer)

    return await asyncio.to_thread(ask)


@pytest.fixture
def ways(project: Project, namespaces: None) -> Ways:
    return Ways(project)


async def test_ports_lead_there_and_here_and_there_again(ways: Ways) -> None:
    project = ways.project
    ways.configure("ports")
    async with project.up():
        await ways.until_up()
        web = await ways.get()
        assert web["who"] == "here"
        assert (await ways.get("/ask"))["who"] == "there"
        assert (await ways.get("/ask?PODS_URL"))[
            "who"
        ] == "there"  # a headless Service, and a port that it does not list
        assert await ways.get("/file") == "hello from the cluster"
        assert (await get(ways.api))["who"] == "there"  # by the engine's front
        assert project.engine.snapshot().remote.network == "ports"  # type: ignore[union-attr]

        await ways.toggle("local")
        assert (await ways.get("/ask"))["who"] == "here"
        assert (await get(ways.api))["who"] == "here"
        assert (await ways.get())["pid"] == web["pid"]
        assert project.services["api"].published == {str(ways.api): ways.api}

        await ways.reload()

        await ways.toggle("remote")
        assert (await ways.get("/ask"))["who"] == "there"
        assert (await get(ways.api))["who"] == "there"
        assert (await ways.get())["pid"] == web["pid"]


async def test_to_and_fro_no_request_fails(ways: Ways) -> None:
    """Toggled again as soon as somebody has been answered from the other side, while the old process still ends."""
    project = ways.project
    ways.configure("namespace", linger=0.3)
    async with project.up():
        await ways.until_up()
        answers: list[str] = []
        over = asyncio.Event()

        async def ask() -> None:
            while not over.is_set():
                answers.append((await get(ways.api))["who"])

        async with asyncio.timeout(DEADLINE * 2), asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(ask())
            for mode, who in (("local", "here"), ("remote", "there")) * 4:
                await project.client.call("toggle", service="api", mode=mode)
                before = len(answers)
                while who not in answers[before:]:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            over.set()


async def test_env_and_exec_see_the_same_ports_and_files(ways: Ways) -> None:
    project = ways.project
    ways.configure("ports")
    async with project.up():
        await ways.until_up()
        runs = await ways.get("/env")
        answer = await project.client.call("env", service="web", reveal=True)
        told = {each["name"]: each for each in answer["variables"]}
        for name in ("API_URL", "PODS_URL", "GREETING", "DEVLOOP_VOLUMES"):
            assert told[name]["value"] == runs[name]
        assert told["API_URL"]["origin"].endswith(", rewritten")
        assert not told["WHO"]["origin"].endswith(", rewritten")
        assert Path(runs["DEVLOOP_VOLUMES"], "etc/words/greeting").read_text() == "hello from the cluster"  # noqa: ASYNC240
        assert any("/etc/words" in note for note in project.services["web"].notes)
        # A command is no process of the engine's: it must work as a stranger does.
        entered = await project.client.call("enter", service="web")
        assert entered["pid"] is None
        program = "import os, urllib.request as r; print(r.urlopen(os.environ['API_URL']).read().decode())"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, env=entered["env"], cwd=entered["cwd"], stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await process.communicate()
        assert json.loads(printed)["who"] == "there"
        # What is not here has its workload's variables as they are.
        answer = await project.client.call("env", service="api", reveal=True)
        assert all(not each["origin"].endswith("rewritten") for each in answer["variables"])


async def test_a_port_that_a_service_declares_is_its_own(ways: Ways) -> None:
    project = ways.project
    ways.configure("ports", service_port=ways.api)
    async with project.up():
        await ways.until_up()
        # The Service's own number is the one that `api` declares: it may not be taken for a dependency.
        assert (await ways.get("/env"))["API_URL"] != f"http://127.0.0.1:{ways.api}/"
        await ways.toggle("local")
        assert (await ways.get("/ask"))["who"] == "here"
        with socket.create_connection(("127.0.0.1", ways.api)):
            pass


def home_of(server: Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    shutil.copy(server.write_config(), home / ".ssh" / "config")
    monkeypatch.setenv("HOME", str(home))


def own_address() -> str:
    """An address of this machine that is not the loopback's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no network")
        return str(probe.getsockname()[0])


async def test_a_host_has_no_catalog_but_what_the_environment_names(
    project: Project, sshd: Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home_of(sshd, monkeypatch, tmp_path)
    web, api, there, name, address = free_port(), free_port(), free_port(), socket.gethostname(), own_address()
    env = f'NAMED = "http://{name}:{there}", BY_ADDRESS = "http://{address}:{there}", API_URL = "http://api:{api}"'
    project.write("server.py", SERVER)
    project.config(f"""
        [project]
        network = "ports"
        [remote]
        host = "bastion"
        networks = ["{address}/32"]
        [dns]
        remote = ["{name}"]
        [services.web]
        command = "{sys.executable} server.py"
        ports = {web}
        env = {{ WHO = "here", PORT = "{web}", {env} }}
        ready = {{ http = "/", period = "20ms" }}
        [services.api]
        command = "{sys.executable} server.py"
        ports = {api}
        env = {{ WHO = "api", PORT = "{api}" }}
        ready = {{ http = "/", period = "20ms" }}
    """)
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, str(project.root / "server.py")),
        env={**os.environ, "WHO": "there", "HOST": "0.0.0.0", "PORT": str(there)},
    )
    try:
        async with project.up():
            await project.until_state("web", State.READY)
            await project.until_state("api", State.READY)
            for variable, who in (("NAMED", "there"), ("BY_ADDRESS", "there"), ("API_URL", "api")):
                assert (await get(web, f"/ask?{variable}"))["who"] == who
            found = await get(web, "/env")
            assert str(there) not in found["NAMED"] + found["BY_ADDRESS"]
            await project.client.call("toggle", service="api", mode="off")
            await project.until_state("api", State.OFF)
            assert await refused(web, "/ask?API_URL")
            await project.client.call("toggle", service="api", mode="local")
            await project.until_state("api", State.READY)
            assert (await get(web, "/ask?API_URL"))["who"] == "api"
    finally:
        server.kill()
        await server.wait()


async def refused(port: int, path: str) -> bool:
    """Whether the service that is asked is reset or refused itself: it hangs up without an answer."""
    try:
        await get(port, path)
    except OSError:
        return True
    return False


async def test_without_namespaces_the_ports_are_taken_and_it_is_said_why(
    project: Project, sshd: Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home_of(sshd, monkeypatch, tmp_path)

    async def enter(self: Inside, *words: object) -> None:
        raise ServiceError("AppArmor keeps programs from it", hint="allow it")

    monkeypatch.setattr(Inside, "enter", enter)
    first, second = free_port(), free_port()
    project.write("server.py", SERVER)
    services = "".join(
        f"""
        [services.{name}]
        command = "{sys.executable} server.py"
        ports = {port}
        env = {{ WHO = "{name}", PORT = "{port}", API_URL = "http://two:{second}" }}
        ready = {{ http = "/", period = "20ms" }}
        """
        for name, port in (("one", first), ("two", second))
    )
    project.config('[remote]\nhost = "bastion"\n' + textwrap.dedent(services))
    async with project.up():
        await project.until_state("one", State.READY)
        await project.until_state("two", State.READY)
        told = [each for each in project.notices if "AppArmor" in each.text]
        assert [(each.level, each.hint) for each in told] == [("warning", "allow it")]
        assert "ports of localhost" in told[0].text
        assert project.engine.snapshot().remote.network == "ports"  # type: ignore[union-attr]
        assert (await get(first, "/ask"))["who"] == "two"
    # Who asks for namespaces gets the error, and nothing else instead.
    project.config('[project]\nnetwork = "namespace"\n[remote]\nhost = "bastion"\n' + textwrap.dedent(services))
    async with project.up():
        status = await project.until_state("one", State.FAILED)
        assert "AppArmor" in status.reason


@pytest.fixture
def hosts_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if os.geteuid() != 0:
        pytest.skip("the way `hosts` takes root")
    file = tmp_path / "hosts"
    file.write_bytes(b"127.0.0.1 localhost\n# caf\xe9\n10.9.9.9 mine other.cluster\n")
    monkeypatch.setattr(hosts, "HOSTS", file)
    return file


def lines_of(file: Path) -> dict[str, str]:
    """Name → address."""
    found = {}
    for line in file.read_bytes().decode("latin-1").splitlines():
        address, *names = line.partition("#")[0].split() or ("",)
        found.update(dict.fromkeys(names, address))
    return found


async def test_hosts_have_an_address_for_each_name(ways: Ways, hosts_file: Path, tmp_path: Path) -> None:
    project = ways.project
    before = hosts_file.read_bytes()  # noqa: ASYNC240
    # Of an engine that was killed, and of one that lives: a project beside this one.
    dead, alive = tmp_path / "dead", StateFolder(tmp_path, tmp_path / "alive")
    alive.create()
    alive.lock()
    theirs = hosts.block("beside", str(alive.path), {"127.99.9.9": ["beside"]})
    gone = hosts.block("gone", str(dead), {"127.99.9.8": ["gone"]})
    hosts_file.write_bytes(before + (gone + theirs).encode())  # noqa: ASYNC240
    ways.configure("hosts", more=f'[defaults]\nenv = {{ FIND = "{hosts_file}" }}')
    try:
        async with project.up():
            await ways.until_up()
            names = lines_of(hosts_file)
            assert "gone" not in names and names["beside"] == "127.99.9.9"
            assert names["mine"] == "10.9.9.9"
            at = names["api"]
            assert at.startswith("127.") and at != "127.0.0.1"
            assert {names[f"api{rest}"] for rest in (".cluster", ".cluster.svc", ".cluster.svc.cluster.local")} == {at}
            assert names["other"] not in (at, "10.9.9.9")
            assert names["other.cluster"] == "10.9.9.9"  # somebody's own line, which stays in force
            await project.until(lambda: any("other.cluster" in each.text for each in project.notices))
            env = await ways.get("/env")
            assert env["API_URL"] == "http://api:8080/"
            assert env["PODS_URL"] == "http://pods.cluster.svc.cluster.local:8080/"
            assert (await ways.get("/ask"))["who"] == "there"
            assert (await ways.get("/ask?PODS_URL"))["who"] == "there"
            assert await ways.get("/file") == "hello from the cluster"
            assert (await get(8080, host=at))["who"] == "there"
            assert (await get(ways.api))["who"] == "there"
            await ways.toggle("local")
            assert lines_of(hosts_file)["api"] == at
            assert (await ways.get("/ask"))["who"] == "here"
            assert (await get(ways.api))["who"] == "here"
            await ways.reload()
            await ways.toggle("remote")
            assert (await ways.get("/ask"))["who"] == "there"
    finally:
        alive.unlock()
    assert hosts_file.read_bytes() == before + theirs.encode()  # noqa: ASYNC240


async def test_who_listens_on_every_address_keeps_others_away_and_is_told(ways: Ways, hosts_file: Path) -> None:
    project = ways.project
    ways.configure("hosts", service_port=ways.api, api="0.0.0.0", more=f'[defaults]\nenv = {{ FIND = "{hosts_file}" }}')
    async with project.up():
        await ways.until_up()
        at = lines_of(hosts_file)
        assert (await ways.get("/ask?OTHER_URL"))["who"] == "there"
        await ways.toggle("local")
        assert (await get(ways.api, host=at["api"]))["who"] == "here"  # its own Service, directly
        await project.until(lambda: any("other" in note for note in project.services["api"].notes), "a note")
        # Better no name than one that leads to another service.
        assert "other" not in lines_of(hosts_file) and lines_of(hosts_file)["api"] == at["api"]
        await ways.toggle("remote")
        assert lines_of(hosts_file)["other"] == at["other"]
        assert (await ways.get("/ask?OTHER_URL"))["who"] == "there"
        assert (await ways.get("/ask"))["who"] == "there"


async def test_hosts_without_root_say_so(
    project: Project, sshd: Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home_of(sshd, monkeypatch, tmp_path)
    monkeypatch.setattr(hosts, "may_write", lambda: False)
    project.config('[project]\nnetwork = "hosts"\n[remote]\nhost = "bastion"\n[services.one]\ncommand = "sleep 60"\n')
    async with project.up():
        status = await project.until_state("one", State.FAILED)
        assert "takes root" in status.reason
        assert any("sudo" in each.hint and 'network = "ports"' in each.hint for each in project.notices)

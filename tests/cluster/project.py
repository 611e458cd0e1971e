"""A project whose remote is the cluster, run as a developer runs it: the real command line, in processes of its own.

The developer has the minimal Role in a namespace that enforces `restricted`, and is no root: see `ordinary`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from devloop.control.client import ControlClient
from devloop.errors import EngineError
from devloop.protocol import LogBatch, Notice, RemoteStatus, ServiceStatus, Snapshot, State
from devloop.state import StateFolder

from . import kit
from .conftest import SELF_SERVICE, Given, Namespace, Target, a_namespace
from .kit import ApiClient, client
from .kube.settings import CHECKOUT

DEADLINE = 90.0
"""Seconds until a test gives up waiting for an event: far above what any takes, on a busy machine too."""
MARK = "/no/such/folder/devloop-test-"
ENGINE_END = 60.0
"""Seconds that an engine has to end in before it is killed, and the test fails."""
SHOP = CHECKOUT / "examples" / "shop"
MANIFESTS = sorted((SHOP / "k8s").glob("*.yaml"))


def ordinary() -> list[str]:
    """What makes a command an ordinary user's, where the tests run as root.

    Its capabilities are taken away for good, so that it needs a user namespace like everybody else. The uid stays 0
    only because Python and the checkout may lie in root's home, where no other uid gets in; files of other users are
    closed to it all the same. CAP_SETFCAP alone is left: since Linux 5.12 the kernel wants it for a user namespace
    in which uid 0 is uid 0 (user_namespaces(7)). An ordinary user's own uid needs nothing.
    """
    if os.getuid() != 0:
        return []
    tool = shutil.which("setpriv")
    assert tool is not None, "setpriv (Debian: util-linux) makes an ordinary user of root"
    return [tool, "--bounding-set=-all,+setfcap", "--inh-caps=-all", "--ambient-caps=-all"]


@dataclass(frozen=True, slots=True)
class Ran:
    """A command's end."""

    code: int
    stdout: str
    stderr: str

    @property
    def line(self) -> str:
        """What it printed, which is one line."""
        (found,) = self.stdout.splitlines()
        return found


@dataclass
class Project:
    """A folder with a devloop.toml, and the environment of a developer's shell."""

    folder: Path
    kubeconfig: Path
    namespace: str
    runtime: Path
    """$XDG_RUNTIME_DIR, where the run's folder is made."""
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    """On the PATH of every process that comes of it."""

    @property
    def environ(self) -> dict[str, str]:
        """As the shell has it that commands are typed into."""
        shell = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {
            **shell,
            # The one variable that every process has that comes of it, holders too.
            "PATH": f"{shell['PATH']}:{MARK}{self.mark}",
            "KUBECONFIG": str(self.kubeconfig),
            "XDG_STATE_HOME": str(self.folder / "home"),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "TMPDIR": str(self.temporary),
            "DEVLOOP_REMOTE": "kubernetes",
            "DEVLOOP_NAMESPACE": self.namespace,
        }

    @property
    def temporary(self) -> Path:
        return self.runtime / "tmp"

    @property
    def state(self) -> StateFolder:
        return StateFolder(self.folder)

    def config(self, text: str) -> None:
        """Write a devloop.toml whose remote is the cluster; `text` begins with what else there is."""
        remote = f'kind = "kubernetes"\nkubeconfig = "{self.kubeconfig}"\nnamespace = "{self.namespace}"'
        (self.folder / "devloop.toml").write_text(f"[remote]\n{remote}\n{text}")
        # Its kubeconfig is named by the project: commands use it without `up` only once that was agreed to.
        subprocess.run(self.command("trust"), cwd=self.folder, env=self.environ, capture_output=True, check=False)

    def command(self, *args: str) -> list[str]:
        return [*ordinary(), sys.executable, "-m", "devloop.cli", *args]

    async def __call__(self, *args: str, code: int | None = 0, environ: Mapping[str, str] | None = None) -> Ran:
        """Run one command to its end; `code` is the exit code that it has to have."""
        process = await asyncio.create_subprocess_exec(
            *self.command(*args),
            cwd=self.folder,
            env={**self.environ, **(environ or {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(DEADLINE):
                stdout, stderr = (each.decode() for each in await process.communicate())
        except TimeoutError:
            process.kill()
            stdout, stderr = (each.decode() for each in await process.communicate())
            pytest.fail(f"still runs: devloop {' '.join(args)}\n{stdout}\n{stderr}")
        ran = Ran(process.returncode or 0, stdout, stderr)
        assert code is None or ran.code == code, f"devloop {' '.join(args)}: {ran.code}\n{stdout}\n{stderr}"
        assert "Traceback" not in stderr, stderr
        return ran

    async def run(self, service: str, *argv: str, code: int | None = 0) -> Ran:
        """`devloop exec SERVICE -- ARGV`."""
        return await self("exec", service, "--", *argv, code=code)

    @asynccontextmanager
    async def up(self, *services: str) -> AsyncIterator[Running]:
        """`devloop up --headless`, ended by SIGINT as Ctrl-C does; it has to end by itself."""
        running = Running(self)
        output = (self.folder / "up.log").open("wb")
        with output:
            running.process = subprocess.Popen(  # noqa: ASYNC220 - it takes milliseconds, and has to end without a loop
                self.command("up", "--headless", *services),
                cwd=self.folder,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            await running.connect()
            yield running
        finally:
            try:
                await running.end()
            finally:
                kill_marked(self.mark)
        text = running.output()
        assert "Traceback" not in text and "a fault in devloop itself" not in text, text

    # What must not be left behind.

    def processes(self) -> list[str]:
        """Processes that have come of it and live."""
        return [f"{each.pid} {each.info['cmdline']}" for each in marked(self.mark)]

    def left_on_this_machine(self) -> list[str]:
        """Processes, mounts and files that outlived their engine."""
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.folder) in line]
        mounts += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.runtime) in line]
        kept = [each for each in _within(self.runtime) if each != str(self.temporary)]
        return [*self.processes(), *mounts, *kept, *_within(self.state.path / "volumes")]


def _within(folder: Path) -> list[str]:
    """Everything in a folder, if there is one. It may be on its way out: `rglob` fails at a folder that goes then."""
    return [str(Path(at) / name) for at, folders, files in os.walk(folder) for name in (*folders, *files)]


class Running:
    """An engine that runs, as its clients see it."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.process: subprocess.Popen[bytes]
        self.client: ControlClient | None = None
        self.services: dict[str, ServiceStatus] = {}
        self.remote: RemoteStatus | None = None
        self.phases: list[str] = []
        """The link's, in the order in which it had them."""
        self.notices: list[Notice] = []
        self.lines: list[tuple[str, str]] = []
        self._news = asyncio.Condition()
        self._reading: asyncio.Task[None] | None = None

    def output(self) -> str:
        return (self.project.folder / "up.log").read_text()

    async def connect(self) -> None:
        """As soon as it takes clients."""

        async def connects() -> bool:
            assert self.process.poll() is None, self.output()
            if self.project.state.engine_pid() != self.process.pid:
                return False  # there may be a socket of one that was killed
            try:
                self.client = await ControlClient.connect(self.project.state.socket)
            except EngineError:
                return False
            return True

        await kit.eventually(connects, True, DEADLINE)
        assert self.client is not None
        await self.client.subscribe("*", 1000)
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.client is not None
        async for event in self.client.events():
            match event:
                case Snapshot():
                    self.services = {each.name: each for each in event.services}
                    self.notices = list(event.notices)
                    self._see(event.remote)
                case ServiceStatus():
                    self.services[event.name] = event
                case RemoteStatus():
                    self._see(event)
                case Notice():
                    self.notices.append(event)
                case LogBatch():
                    self.lines += [(line.service, line.text) for line in event.lines]
            async with self._news:
                self._news.notify_all()

    def _see(self, remote: RemoteStatus | None) -> None:
        self.remote = remote
        if remote is not None and self.phases[-1:] != [remote.phase]:
            self.phases.append(remote.phase)

    async def until(self, condition: Callable[[], Any], what: str, seconds: float = DEADLINE) -> None:
        """Wait until it holds; looked at after each event from the engine."""
        try:
            async with asyncio.timeout(seconds), self._news:
                await self._news.wait_for(condition)
        except TimeoutError:
            states = {each.name: (each.state.value, each.reason) for each in self.services.values()}
            pytest.fail(f"never so: {what}; {states}; {self.remote}; {self.notices}\n{self.output()}")

    async def until_state(self, service: str, *states: State) -> ServiceStatus:
        await self.until(
            lambda: service in self.services and self.services[service].state in states, f"{service} {states}"
        )
        return self.services[service]

    async def connected(self) -> None:
        await self.until(lambda: self.remote is not None and self.remote.phase == "connected", "connected")

    def url(self, service: str, port: str = "http") -> str:
        """Where a service is on this machine, wherever it runs."""
        return f"http://127.0.0.1:{self.services[service].published[port]}"

    async def end(self) -> None:
        """Ask it to end, and see that it does."""
        try:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGINT)
                code = await asyncio.to_thread(self.process.wait, ENGINE_END)
                assert code == 130, f"{code}\n{self.output()}"
        except subprocess.TimeoutExpired:
            pytest.fail(f"the engine does not end\n{self.output()}")
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            if self._reading is not None:
                self._reading.cancel()
                await asyncio.gather(self._reading, return_exceptions=True)
            if self.client is not None:
                await self.client.close()

    async def crash(self) -> None:
        """`kill -9` of the engine."""
        self.process.kill()
        await asyncio.to_thread(self.process.wait)


def marked(mark: str) -> list[psutil.Process]:
    """Processes with this mark; those that have ended and were not waited for don't count."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            path = process.environ().get("PATH", "")
            if path.endswith(MARK + mark) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_marked(mark: str, seconds: float = 10) -> None:
    """What must not happen: that anything is left. Give it time to end, then end it."""
    _, alive = psutil.wait_procs(marked(mark), timeout=seconds)
    for each in alive:
        each.kill()
    psutil.wait_procs(alive, timeout=seconds)


@contextmanager
def a_project(folder: Path, kubeconfig: Path, namespace: str) -> Iterator[Project]:
    """A project in an empty folder. At the end nothing of it may be left on this machine."""
    with ExitStack() as stack:
        # Not below pytest's folder: it has to be a tmpfs, as a login's is.
        runtime = Path(tempfile.mkdtemp(prefix="devloop-test-", dir="/dev/shm"))
        stack.callback(shutil.rmtree, runtime, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        project = Project(folder, kubeconfig, namespace, runtime)
        project.temporary.mkdir()
        stack.callback(kill_marked, project.mark, 0)
        yield project
        psutil.wait_procs(marked(project.mark), timeout=10)  # an engine of `exec` ends just after its command
        left = project.left_on_this_machine()
        assert not left, left


def the_shop(project: Project) -> None:
    """The example of this repository: its devloop.toml and its code, with nothing changed."""
    shutil.copy(CHECKOUT / "devloop.toml", project.folder)
    skipped = shutil.ignore_patterns("__pycache__", ".data", ".devloop")
    shutil.copytree(SHOP, project.folder / "examples" / "shop", ignore=skipped)


@asynccontextmanager
async def deployed_shop(cluster: Target, given: Given = SELF_SERVICE) -> AsyncIterator[Namespace]:
    """The shop, deployed from its plain manifests and ready, in a namespace of its own."""
    async with kit.connect(cluster.admin) as admin, a_namespace(cluster, admin, "restricted", given) as namespace:
        await kit.apply(admin, namespace.name, *MANIFESTS)
        apps, batch = client.AppsV1Api(admin), client.BatchV1Api(admin)
        await kit.until(
            batch.list_namespaced_job,
            namespace.name,
            ready=lambda job: job.status.succeeded,
            field_selector="metadata.name=seed",
        )
        for each in ("api", "web", "worker"):
            await kit.until(
                apps.list_namespaced_deployment,
                namespace.name,
                ready=lambda it: (it.status.ready_replicas or 0) == it.spec.replicas,
                field_selector=f"metadata.name={each}",
            )
        yield namespace


Inventory = list[tuple[str, str]]


async def inventory(admin: ApiClient, namespace: str) -> Inventory:
    """All that is in a namespace and that somebody has made: kind and name."""
    core, apps = client.CoreV1Api(admin), client.AppsV1Api(admin)
    listings = {
        "pod": core.list_namespaced_pod,
        "secret": core.list_namespaced_secret,
        "configmap": core.list_namespaced_config_map,
        "service": core.list_namespaced_service,
        "serviceaccount": core.list_namespaced_service_account,
        "claim": core.list_namespaced_persistent_volume_claim,
        "deployment": apps.list_namespaced_deployment,
        "statefulset": apps.list_namespaced_stateful_set,
        "lease": client.CoordinationV1Api(admin).list_namespaced_lease,
        "role": client.RbacAuthorizationV1Api(admin).list_namespaced_role,
        "rolebinding": client.RbacAuthorizationV1Api(admin).list_namespaced_role_binding,
        "networkpolicy": client.NetworkingV1Api(admin).list_namespaced_network_policy,
    }
    found = await asyncio.gather(*(each(namespace) for each in listings.values()))
    return sorted(
        (kind, each.metadata.name) for kind, items in zip(listings, found, strict=True) for each in items.items
    )

"""Fixtures of the cluster suite: a cluster, namespaces, developers, faults.

Every test here is marked `cluster`. A cluster is taken in this order:

1. DEVLOOP_TEST_KUBECONFIG names the kubeconfig of an administrator of any cluster (kind, k3d, …).
2. Our own, started by `make cluster`; if it is built and does not run, it is started and stopped here.

Without either, tests are skipped with the reason; under CI they fail with it.

Each of pytest-xdist's workers has a cluster of its own; at somebody else's they share it, with namespaces of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from devloop.remote.roles import Role

from . import kit
from .kit import ApiClient, client
from .kube import access, binaries
from .kube.cluster import Cluster
from .kube.errors import ClusterError
from .kube.gate import Gate
from .kube.link import Link
from .kube.settings import Settings

HERE = Path(__file__).parent
RUN = secrets.token_hex(4)  # on every namespace of this session, so that two sessions do not mix
LABEL = "devloop.test/run"
ENGINES = (
    *("test_trial.py", "test_attached.py", "test_dual_stack.py", "test_endurance.py", "test_network_ways.py"),
    *("test_shop.py", "test_tools.py", "test_udp.py", "test_up.py", "test_world.py", "test_agent_command.py"),
)
"""Their services listen on this machine, at the ports that their projects name: one worker has all of them."""
NEXT = "Run `make cluster`, or set DEVLOOP_TEST_KUBECONFIG; docs/cluster-tests.md has more."


@pytest.hookimpl(tryfirst=True)  # pytest-xdist's own reads the groups, and was registered after this file
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what lies in this folder. It gets more time than others: pods start and stop in it."""
    for each in items:
        if each.path.is_relative_to(HERE):
            each.add_marker(pytest.mark.cluster)
            each.add_marker(pytest.mark.slow)
            each.add_marker(pytest.mark.timeout(300))
            if config.pluginmanager.hasplugin("xdist"):
                group = "engines" if each.path.name in ENGINES else each.path.name
                each.add_marker(pytest.mark.xdist_group(group))
    # What takes longest comes first, so that neither of two workers waits for the other at the end.
    items.sort(key=lambda each: each.path.name not in ENGINES)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to run where two workers would share a group: each would find the other's services at its ports."""
    if session.config.getoption("dist", "no") == "loadgroup" and hasattr(session.config, "workerinput"):
        loose = [each.nodeid for each in session.items if each.path.is_relative_to(HERE) and "@" not in each.nodeid]
        if loose:
            raise pytest.UsageError(f"pytest-xdist does not know the group of {loose[0]}")


def pytest_configure(config: pytest.Config) -> None:
    """Give each further worker a cluster of its own: what restarts a kubelet would be felt by others' tests."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    if hasattr(config, "workerinput") and worker != "0":
        first = Settings.of_environment()
        os.environ["DEVLOOP_TEST_CLUSTER"] = f"{first.name}{worker}:{first.index + int(worker)}"


def unavailable(reason: str) -> Any:
    """Skip, or under CI fail: there, a part that can't be had must not pass for a part that works."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@dataclass(frozen=True)
class Target:
    """The cluster that the tests run against; `own` is None if it is somebody else's."""

    admin: Path
    own: Cluster | None
    folder: Path

    def need_own(self, why: str) -> Cluster:
        """Our own cluster, for tests that reach below the API; elsewhere the test is skipped."""
        if self.own is None:
            pytest.skip(f"{why}: not at a cluster that DEVLOOP_TEST_KUBECONFIG names")
        return self.own

    def kubeconfig(self, name: str, content: dict[str, Any]) -> Path:
        """Write a kubeconfig to a file of its own."""
        path = self.folder / f"{name}-{secrets.token_hex(4)}.conf"
        path.touch(0o600)
        path.write_text(json.dumps(content))
        return path

    def address(self) -> dict[str, Any]:
        """The `cluster` part of the administrator's kubeconfig: the server and its authority."""
        return access.current_cluster(self.read(self.admin), self.admin.parent)

    def read(self, kubeconfig: Path) -> dict[str, Any]:
        loaded: dict[str, Any] = yaml.safe_load(kubeconfig.read_text())
        return loaded


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The cluster. One that this fixture has started is stopped at the end; one that ran goes on."""
    folder = tmp_path_factory.mktemp("kubeconfigs")
    if foreign := os.environ.get("DEVLOOP_TEST_KUBECONFIG"):
        path = Path(foreign).expanduser().absolute()
        if not path.is_file():
            pytest.fail(f"DEVLOOP_TEST_KUBECONFIG names {path}, and there is no such file", pytrace=False)
        yield Target(path, None, folder)
        asyncio.run(all_gone(path))
        return
    started = False
    try:
        own = Cluster(Settings.of_environment())
        if not own.healthy():
            if not own.is_built():
                unavailable(f"There is no cluster, and none is built. {NEXT}")
            own.up()
            started = True
    except ClusterError as problem:
        unavailable(f"The cluster does not start: {problem}\n{NEXT}")
    try:
        yield Target(own.settings.admin, own, folder)
        asyncio.run(all_gone(own.settings.admin))
    finally:
        if started:
            own.down()


async def all_gone(admin: Path) -> None:
    """Every namespace of this session has gone, and with it all that the tests have made."""
    async with kit.connect(admin) as api:
        core = client.CoreV1Api(api)
        left = (await core.list_namespace(label_selector=f"{LABEL}={RUN}")).items
        for each in left:
            await kit.until_gone(core.read_namespace, each.metadata.name, uid=each.metadata.uid)


@pytest.fixture
async def admin(cluster: Target) -> AsyncIterator[ApiClient]:
    """A client with an administrator's rights, to prepare and to look with; not what is under test."""
    async with kit.connect(cluster.admin) as api:
        yield api


@dataclass(frozen=True)
class Namespace:
    """A namespace of a test's own, and the two developers who may work in it."""

    name: str
    developer: Path
    other_developer: Path


@dataclass(frozen=True)
class Given:
    """What an administrator has given a test's developers."""

    role: Role = Role.SELF_SERVICE
    agent: bool = True
    """With an agent, where they can't make one."""


SELF_SERVICE = Given()


@pytest.fixture
def given(request: pytest.FixtureRequest) -> Given:
    """By the test's mark: `role("attach")`, or `role("ingest", agent=False)` where nothing goes through a link. Without
    one it is the largest. DEVLOOP_TEST_ROLE stands in for all of that.
    """
    if forced := os.environ.get("DEVLOOP_TEST_ROLE"):
        return Given(Role(forced))
    mark = request.node.get_closest_marker("role")
    return Given(Role(mark.args[0]), **mark.kwargs) if mark is not None else SELF_SERVICE


@asynccontextmanager
async def a_namespace(
    cluster: Target, admin: ApiClient, level: str, given: Given = SELF_SERVICE
) -> AsyncIterator[Namespace]:
    """Make a namespace that enforces a Pod Security level, in which developers have a Role; delete it at the end."""
    core = client.CoreV1Api(admin)
    name = f"test-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": level, LABEL: RUN}
    await core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=name, labels=labels)))
    try:
        people = [f"ada-{name}", f"ben-{name}"]
        token = cluster.own is None
        subjects = [access.subject(each, name, token=token) for each in people]
        await access.grant(admin, name, subjects, given.role, agent=given.agent)
        configs = []
        for each in people:
            if cluster.own:
                content = access.by_certificate(cluster.own.settings, each, name)
            else:
                content = await access.by_token(admin, cluster.address(), each, name)
            configs.append(cluster.kubeconfig(each, content))
        # A pod needs its service account, and a namespace gets one a moment after it is made.
        await kit.until(
            core.list_namespaced_service_account,
            name,
            ready=lambda _: True,
            field_selector="metadata.name=default",
        )
        yield Namespace(name, *configs)
    finally:
        # Nobody waits for pods to end in order; the namespace itself goes while the next test runs.
        await core.delete_collection_namespaced_pod(name, grace_period_seconds=0)
        await core.delete_namespace(name)


@pytest.fixture
async def namespace(cluster: Target, admin: ApiClient, given: Given) -> AsyncIterator[Namespace]:
    """A namespace for one test, which enforces the `restricted` Pod Security Standard."""
    async with a_namespace(cluster, admin, "restricted", given) as made:
        yield made


@pytest.fixture
async def open_namespace(cluster: Target, admin: ApiClient, given: Given) -> AsyncIterator[Namespace]:
    """A namespace for one test that lets any pod in (`privileged`)."""
    async with a_namespace(cluster, admin, "privileged", given) as made:
        yield made


@pytest.fixture
def developer(namespace: Namespace) -> Path:
    """The kubeconfig of a developer who may do what the test's Role allows in `namespace`, and nothing else."""
    return namespace.developer


@pytest.fixture
def other_developer(namespace: Namespace) -> Path:
    """A second developer with the same rights in the same namespace."""
    return namespace.other_developer


@pytest.fixture
def gate(cluster: Target) -> Iterator[Gate]:
    """A gate before the API server, open; see `behind_gate`. Cut it with `gate.closed(SECONDS)`."""
    made = Gate(cluster.address()["server"])
    made.start()
    yield made
    made.close()


@pytest.fixture
def behind_gate(cluster: Target, gate: Gate) -> Callable[[Path], Path]:
    """Turns a kubeconfig into one that goes through the gate: that client, and no other, is cut by it."""

    def through(kubeconfig: Path) -> Path:
        # Our own API server's certificate, like kind's, is good for the loopback too.
        name = None if cluster.own else gate.target[0]
        return cluster.kubeconfig("gate", access.with_server(cluster.read(kubeconfig), gate.server, name))

    return through


@pytest.fixture
def link(cluster: Target) -> Iterator[Link]:
    """A wire to the node with a delay, a loss and a rate of its own; perfect until `link.set(...)`."""
    own = cluster.need_own("A slow link needs the node's network")
    made = Link(own.settings, binaries.build())
    try:
        made.start()
    except ClusterError as problem:
        unavailable(f"{problem}")
    yield made
    made.close()


@pytest.fixture
def over_link(cluster: Target, link: Link) -> Callable[[Path], Path]:
    """Turns a kubeconfig into one that goes over the slow link."""

    def over(kubeconfig: Path) -> Path:
        return cluster.kubeconfig("link", access.with_server(cluster.read(kubeconfig), link.server))

    return over


@pytest.fixture
def kill_pod(admin: ApiClient) -> Callable[[str, str], Any]:
    """`await kill_pod(NAMESPACE, NAME)`: the pod is deleted with no time to end in, and has gone."""

    async def kill(namespace: str, name: str) -> None:
        core = client.CoreV1Api(admin)
        pod = await core.read_namespaced_pod(name, namespace)
        await core.delete_namespaced_pod(name, namespace, grace_period_seconds=0)
        await kit.until_gone(core.read_namespaced_pod, name, namespace, uid=pod.metadata.uid)

    return kill


@pytest.fixture
def kill_container(admin: ApiClient, cluster: Target) -> Callable[[str, str, str], Any]:
    """`await kill_container(NAMESPACE, POD, CONTAINER)`: all its processes, as the kernel does without memory."""
    cluster.need_own("Killing a container's processes")

    async def kill(namespace: str, name: str, container: str) -> None:
        pod = await client.CoreV1Api(admin).read_namespaced_pod(name, namespace)
        [status] = [each for each in pod.status.container_statuses if each.name == container]
        number = status.container_id.rpartition("/")[2]
        assert _kill(number), f"no process of {container}"

    return kill


def _kill(number: str) -> int:
    """All processes in the cgroup of a container; how many there were."""
    found = [each for each in Path("/proc").glob("[0-9]*") if number in _text(each / "cgroup")]
    for each in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(each.name), signal.SIGKILL)
    return len(found)


def _text(file: Path) -> str:
    with contextlib.suppress(OSError):
        return file.read_text()
    return ""


@pytest.fixture
def restart_kubelet(cluster: Target) -> Callable[[], None]:
    """`restart_kubelet()`: the kubelet ends and starts anew; streams through it break, pods go on."""
    return cluster.need_own("Restarting the kubelet").restart_kubelet

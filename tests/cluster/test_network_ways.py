"""The example with the host's network, by ports and by the hosts file: `web` here and the rest in the cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from devloop.net.hosts import HostsFile
from devloop.protocol import State

from .conftest import Namespace, Target
from .project import DEADLINE, Project, Running, a_project, deployed_shop, the_shop

# The shop takes seconds to start: one for all the tests here, which therefore share a loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")
HERE = socket.gethostname()
HOSTS = Path("/etc/hosts")
FETCH = "import os, urllib.request as r; print(r.urlopen(os.environ['API_URL'] + '/products').headers['X-Served-By'])"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(cluster: Target) -> AsyncIterator[Namespace]:
    async with deployed_shop(cluster) as namespace:
        yield namespace


class RootProject(Project):
    """Run as root, as `sudo devloop` is."""

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "devloop.cli", *args]


@pytest.fixture
def project(shop: Namespace, tmp_path: Path) -> Iterator[Project]:
    with a_project(tmp_path / "ada", shop.developer, shop.name) as made:
        the_shop(made)
        yield made


@pytest.fixture
def root_project(project: Project) -> Iterator[RootProject]:
    """The same run by root. The machine's hosts file is put back whatever happens."""
    if os.getuid() != 0:
        pytest.skip("the way `hosts` takes root")
    # A run of these tests that was killed has left its lines, as any engine that is killed does.
    HostsFile("shop", project.folder, lambda _: False).remove()
    before = HOSTS.read_bytes()
    yield RootProject(project.folder, project.kubeconfig, project.namespace, project.runtime, project.mark)
    after = HOSTS.read_bytes()
    if after != before:
        HOSTS.write_bytes(before)
    assert after == before


def hosts() -> str:
    return HOSTS.read_text()


def use(project: Project, network: str) -> None:
    file = project.folder / "devloop.toml"
    text = file.read_text()
    assert text.count('name = "shop"\n') == 1
    file.write_text(text.replace('name = "shop"\n', f'name = "shop"\nnetwork = "{network}"\n'))


async def get(url: str) -> tuple[str, str]:
    """The body and who has served it; on a connection of its own."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(DEADLINE)) as session,
        session.get(url, headers={"Connection": "close"}) as answer,
    ):
        assert answer.status == 200
        return await answer.text(), answer.headers.get("X-Served-By", "")


async def data_by(running: Running) -> str:
    """Who has given the page its data."""
    body, _ = await get(running.url("web"))
    found = re.search(r"page by (.*) · data by (.*)<", body)
    assert found, body
    assert found[1] == f"web on {HERE}, pid {running.services['web'].pid}"
    return found[2]


async def the_api_moves(project: Project, running: Running) -> None:
    """From the cluster to here and back: for the page, for a command, and for who asks at localhost."""
    web = await running.until_state("web", State.READY)
    await running.connected()
    assert (await data_by(running)).startswith("api on api-"), "a pod of the Deployment"
    assert running.url("api").endswith(":7081")
    assert (await get(running.url("api") + "/products"))[1].startswith("api on api-")
    assert (await project.run("web", "python3", "-c", FETCH)).line.startswith("api on api-")

    await project("toggle", "api")
    # The very next request, though it is only starting: the page's connection waits.
    here = await data_by(running)
    api = await running.until_state("api", State.READY)
    assert here == f"api on {HERE}, pid {api.pid}"
    assert (await get(running.url("api") + "/products"))[1] == here
    assert (await project.run("web", "python3", "-c", FETCH)).line == here
    assert running.url("api").endswith(":7081")

    await project("toggle", "api")
    assert (await data_by(running)).startswith("api on api-")
    await running.until_state("api", State.REMOTE)
    assert (await get(running.url("api") + "/products"))[1].startswith("api on api-")
    assert running.services["web"].pid == web.pid, "nothing restarts for it"


async def test_by_ports(project: Project) -> None:
    use(project, "ports")
    async with project.up() as running:
        await the_api_moves(project, running)
        assert running.remote is not None and running.remote.network == "ports"
        env = json.loads((await project("env", "web", "--format", "json")).stdout)
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", env["API_URL"])
        assert env["API_URL"] != "http://127.0.0.1:8080", "the port that every one of these workloads listens on"
        # The store's data lie in the cluster: here it would be a copy, with paths to it.
        store = json.loads((await project("env", "store", "--format", "json")).stdout)
        assert store["STORE_DATA"] == ".data"
    # Without an engine: one of its own, for as long as the command takes.
    assert (await project.run("api", "python3", "-c", "import os; print(os.environ['STORE_URL'])")).line.startswith(
        "redis://127.0.0.1:"
    )


async def test_by_the_hosts_file(root_project: RootProject) -> None:
    use(root_project, "hosts")
    before = hosts()
    async with root_project.up() as running:
        await the_api_moves(root_project, running)
        assert running.remote is not None and running.remote.network == "hosts"
        env = json.loads((await root_project("env", "web", "--format", "json")).stdout)
        assert env["API_URL"] == "http://api:8080"
        for name in ("api", f"api.{root_project.namespace}.svc.cluster.local", "store-nodes"):
            assert (await root_project.run("web", "getent", "hosts", name)).line.startswith("127.")
        assert hosts().startswith(before)
    assert hosts() == before


async def test_the_hosts_file_is_as_it_was_even_after_a_crash(root_project: RootProject) -> None:
    use(root_project, "hosts")
    before = hosts()
    async with root_project.up() as running:
        await running.until_state("web", State.READY)
        await running.crash()
        root_project.state.socket.unlink()  # a dead one; `up` would take it for the new engine's
        shutil.rmtree(root_project.temporary)  # the Kubernetes client's own files, which it removes at an orderly end
        root_project.temporary.mkdir()
        assert hosts() != before
        async with root_project.up() as again:
            await again.until_state("web", State.READY)
            assert (await data_by(again)).startswith("api on api-")
            assert hosts().count(" begin, ") == 1
    assert hosts() == before

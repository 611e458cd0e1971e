"""`devloop up` at the cluster: the example as it stands in this repository, `web` here and the rest there.

Issue 4's first demonstration. As the developer of the minimal Role, and as no root.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from devloop.protocol import State
from tests.ports import free_port

from . import kit
from .conftest import Namespace, Target
from .kit import ApiClient, client
from .project import DEADLINE, Inventory, Project, Running, a_project, deployed_shop, inventory, the_shop

# The shop takes seconds to start: one for all the tests here, which therefore share a loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")
HERE = socket.gethostname()
LINGER = 200.0
"""Seconds until an agent that nobody uses has gone: it lingers for 60, and a dead connection counts for 20 more."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(cluster: Target) -> AsyncIterator[Namespace]:
    async with deployed_shop(cluster) as namespace:
        yield namespace


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def untouched(cluster: Target, shop: Namespace) -> Inventory:
    """What is in the namespace before anybody has run devloop there."""
    async with kit.connect(cluster.admin) as admin:
        return await inventory(admin, shop.name)


@pytest.fixture
def project(shop: Namespace, tmp_path: Path) -> Iterator[Project]:
    with a_project(tmp_path / "ada", shop.developer, shop.name) as made:
        the_shop(made)
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def admin(cluster: Target) -> AsyncIterator[ApiClient]:
    async with kit.connect(cluster.admin) as api:
        yield api


async def get(url: str) -> tuple[int, str, str]:
    """Status, body and who has served it; on a connection of its own."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(DEADLINE)) as session,
        session.get(url, headers={"Connection": "close"}) as answer,
    ):
        return answer.status, await answer.text(), answer.headers.get("X-Served-By", "")


async def page(running: Running) -> tuple[str, str]:
    """Who has made the page, and who has given it its data."""
    status, body, _ = await get(running.url("web"))
    assert status == 200
    found = re.search(r"page by (.*) · data by (.*)<", body)
    assert found, body
    return found[1], found[2]


async def test_the_page_works_and_one_key_moves_the_api(
    admin: ApiClient, shop: Namespace, untouched: Inventory, project: Project
) -> None:
    async with project.up() as running:
        web = await running.until_state("web", State.READY)
        by, data = await page(running)
        assert by == f"web on {HERE}, pid {web.pid}"
        assert data.startswith("api on api-"), "a pod of the Deployment"
        # An order goes through the cluster's queue to the cluster's worker.
        status, body, _ = await get(running.url("web"))
        assert status == 200
        assert "Green tea" in body
        # A remote service's port on this machine leads to the cluster.
        status, body, by = await get(running.url("api") + "/products")
        assert status == 200
        assert by.startswith("api on api-")

        ran = await project("toggle", "api")
        assert ran.stdout == "api is local now\n"
        # The very next request, though it is only starting.
        _, data = await page(running)
        api = await running.until_state("api", State.READY)
        assert data == f"api on {HERE}, pid {api.pid}"
        assert (await get(running.url("api") + "/products"))[2] == data
        assert running.services["web"].pid == web.pid, "nothing restarts for it"

        assert (await project("toggle", "api")).stdout == "api is remote now\n"
        _, data = await page(running)
        assert data.startswith("api on api-")
        assert (await get(running.url("api") + "/products"))[2].startswith("api on api-")
        await running.until_state("api", State.REMOTE)
        assert running.services["web"].pid == web.pid
    await kit.eventually(lambda: inventory(admin, shop.name), untouched)


async def test_no_request_fails_while_the_page_is_edited(project: Project) -> None:
    file = project.folder / "examples/shop/web/page.py"
    async with project.up() as running:
        first = await running.until_state("web", State.READY)
        answers: list[int | str] = []
        seen: asyncio.Queue[str] = asyncio.Queue()

        async def poll() -> None:
            while True:
                try:
                    status, body, _ = await get(running.url("web"))
                except aiohttp.ClientError as error:
                    answers.append(repr(error))
                else:
                    answers.append(status)
                    found = re.search(r"<h1>(.*)</h1>", body)
                    seen.put_nowait(found[1] if found else body)

        polling = [asyncio.create_task(poll()) for _ in range(4)]
        title = "The corner shop"
        for number in range(5):
            new = f"The corner shop, number {number}"
            file.write_text(file.read_text().replace(title, new))
            title = new
            async with asyncio.timeout(DEADLINE):
                while await seen.get() != new:
                    pass
        for each in polling:
            each.cancel()
        await asyncio.gather(*polling, return_exceptions=True)
        assert set(answers) == {200}, [each for each in answers if each != 200]
        assert running.services["web"].restarts >= 5
        assert running.services["web"].pid != first.pid


async def test_kill_9_of_the_engine_leaves_nothing(
    admin: ApiClient, shop: Namespace, untouched: Inventory, project: Project
) -> None:
    async with project.up() as running:
        await running.until_state("web", State.READY)
        await running.connected()
        assert ("pod", "devloop-agent") in await inventory(admin, shop.name)
        assert len(project.processes()) > 2, "the engine, a holder, web"
        await running.crash()

        async def processes() -> list[str]:
            return project.processes()

        await kit.eventually(processes, [])
    # The agent goes by itself; the next run, of any project, takes away the files.
    await kit.eventually(lambda: inventory(admin, shop.name), untouched, LINGER)
    assert project.left_on_this_machine() != []
    await project("exec", "web", "--", "true")
    assert project.left_on_this_machine() == []


WRONG = """
[services.web]
command = "python3 -m http.server 8080"
cwd = "examples/shop"
ports = {{ http = {port} }}
watch = []
{more}
"""


async def broken(admin: ApiClient, namespace: str) -> None:
    """A Deployment whose pod can't start, because a Secret is missing."""
    container = {
        "name": "main",
        "image": kit.BASE,
        "securityContext": client.ApiClient().sanitize_for_serialization(kit.RESTRICTED),
        "env": [{"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "no-such-secret", "key": "password"}}}],
        "volumeMounts": [{"name": "files", "mountPath": "/files"}],
    }
    volumes = [{"name": "files", "secret": {"secretName": "no-such-secret"}}]
    labels = {"app": "broken"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container], "volumes": volumes}}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    await client.AppsV1Api(admin).create_namespaced_deployment(
        namespace, {"metadata": {"name": "broken"}, "spec": spec}
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def with_broken(cluster: Target, shop: Namespace) -> None:
    async with kit.connect(cluster.admin) as admin:
        await broken(admin, shop.name)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('workload = "deployment/wep"', ("deployment/wep", "deployment/web")),
        ('workload = "deployment/web"\ncontainer = "main"', ("deployment/web", "container 'main'", "It has web")),
        (
            'workload = "deployment/broken"',
            ("deployment/broken", "PASSWORD", "volume files", "no-such-secret"),
        ),
    ],
    ids=["workload", "container", "secret"],
)
@pytest.mark.usefixtures("with_broken")
async def test_what_is_wrong_is_named(project: Project, more: str, words: tuple[str, ...]) -> None:
    project.config(WRONG.format(port=free_port(), more=more))
    ran = await project("up", "--detach", code=1)
    await project("down")
    for word in words:
        assert word in ran.stdout + ran.stderr, ran
    ran = await project("exec", "web", "--", "true", code=None)
    assert ran.code in (2, 3), ran
    for word in words:
        assert word in ran.stderr, ran

"""Attachments by devloop.toml and by command, in the whole of devloop: what `devloop/attach` is wired to."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import tomllib
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from devloop.protocol import State

from . import kit
from .attaching import Load, client_pod
from .conftest import Namespace, Target
from .kit import ApiClient, client
from .project import Project, Running, a_project, deployed_shop, the_shop

pytestmark = pytest.mark.asyncio(loop_scope="module")
HERE = socket.gethostname()
ASK = """
import json, sys, urllib.request
request = urllib.request.Request("http://api:8080/healthz", headers=json.loads(sys.argv[1]))
print(urllib.request.urlopen(request, timeout=15).headers["X-Served-By"])
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(cluster: Target) -> AsyncIterator[Namespace]:
    async with deployed_shop(cluster) as namespace:
        yield namespace


@pytest.fixture
def project(shop: Namespace, tmp_path: Path) -> Iterator[Project]:
    with a_project(tmp_path / "ada", shop.developer, shop.name) as made:
        the_shop(made)
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def admin(cluster: Target) -> AsyncIterator[ApiClient]:
    async with kit.connect(cluster.admin) as api:
        yield api


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clients(cluster: Target, shop: Namespace) -> None:
    """A pod to ask from."""
    async with kit.connect(cluster.admin) as api:
        await client_pod(api, shop.name)


def attach(project: Project, service: str, how: str) -> None:
    """Write it into the example's devloop.toml, and make the service local."""
    file = project.folder / "devloop.toml"
    text, table = file.read_text(), f"[services.{service}]\n"
    assert table in text
    mode = "" if tomllib.loads(text)["services"][service].get("mode") == "local" else 'mode = "local"\n'
    file.write_text(text.replace(table, f"{table}{mode}attach = {how}\n"))


async def asked(shop: Namespace, **headers: str) -> bool:
    """Whether a request that is made in the cluster is answered here."""
    found = await kit.execute(shop.developer, shop.name, "store-0", "python3", "-c", ASK, json.dumps(headers))
    assert found.code == 0, found
    return HERE in found.stdout


async def service_of(admin: ApiClient, shop: Namespace) -> dict[str, Any]:
    """The Service `api`, without what changes by itself."""
    found = await client.CoreV1Api(admin).read_namespaced_service("api", shop.name)
    whole = admin.sanitize_for_serialization(found)
    for key in ("resourceVersion", "managedFields"):
        whole["metadata"].pop(key, None)
    return dict(whole)


async def attached(running: Running, service: str, phase: str = "attached") -> None:
    def so() -> bool:
        status = running.services.get(service)
        return status is not None and [each.phase for each in status.attachments] == [phase]

    await running.until(so, f"{service} is {phase}")


async def test_an_intercept_by_devloop_toml_from_up_to_the_end(
    admin: ApiClient, shop: Namespace, project: Project
) -> None:
    attach(project, "api", '{ kind = "intercept", routes = "all" }')
    before = await service_of(admin, shop)
    async with project.up() as running:
        await attached(running, "api")
        await kit.eventually(lambda: asked(shop), True)

        async def seen() -> bool:
            lines = (await project("requests", "api", "--json")).stdout.splitlines()
            requests = [json.loads(line) for line in lines]
            return any(each["answered"] == "local" and each["path"] == "/healthz" for each in requests)

        await kit.eventually(seen, True)
        await running.until(
            lambda: (loop := running.services["api"].last_loop) is not None and "served" in loop.stamps,
            "the loop has its first request",
        )
        # Its traffic goes with it when it moves, and comes back with it.
        await project("toggle", "api", "remote")
        assert not await asked(shop)
        assert await service_of(admin, shop) == before
        await project("toggle", "api", "local")
        await attached(running, "api")
        await kit.eventually(lambda: asked(shop), True)
    assert not await asked(shop)
    assert await service_of(admin, shop) == before


async def test_a_personal_route_by_command_takes_the_developers_requests_alone(
    shop: Namespace, project: Project
) -> None:
    async with project.up() as running:
        await running.until_state("web", State.READY)
        await project("toggle", "api", "local")
        await running.until_state("api", State.READY)
        assert running.services["api"].attachments == ()
        await project("attach", "api")
        await attached(running, "api")
        (found,) = running.services["api"].attachments
        ((route),) = found.routes
        entry = route.partition("baggage:")[2]
        await kit.eventually(lambda: asked(shop, baggage=f"a=b,{entry}"), True)
        assert not await asked(shop)
        assert not await asked(shop, baggage="devloop=somebody-else")
        # Asked for again in another way, it takes that instead.
        await project("attach", "api", "--all")
        await attached(running, "api")
        assert running.services["api"].attachments[0].routes == ("all requests",)
        await kit.eventually(lambda: asked(shop), True)
        await project("leave", "api")
        await running.until(lambda: not running.services["api"].attachments, "left")
        assert not await asked(shop, baggage=f"a=b,{entry}")


KEEP = """
import http.client, os, time
kept = [http.client.HTTPConnection("api", 8080) for _ in range(2)]
while not os.path.exists("/dev/shm/enough"):
    for each in kept:
        each.request("GET", "/healthz")
        each.getresponse().read()
    time.sleep(0.1)
"""


async def test_connections_from_before_are_told_with_what_moves_them(shop: Namespace, project: Project) -> None:
    """The namespace lets no NET_ADMIN in, so what moves them is a restart of the client."""
    keeping = asyncio.create_task(kit.execute(shop.developer, shop.name, "store-0", "python3", "-c", KEEP))
    try:
        async with project.up() as running:
            await running.until_state("web", State.READY)
            await project("toggle", "api", "local")
            await running.until_state("api", State.READY)
            said = (await project("attach", "api", "--all")).stdout
            text = (
                r"2 connections from before still lead to the original{}: 2 from store-0. `devloop move api` moves them"
            )
            assert re.search(text.format("(, with about .*)?"), said), said
            await running.until(
                lambda: any(each.earlier_rate for each in running.services["api"].attachments), "what they carry"
            )
            said = (await project("status")).stdout
            assert re.search(text.format(r", with about \d+(\.\d)? requests/s"), said), said
            services = {
                each["name"]: each for each in json.loads((await project("status", "--json")).stdout)["services"]
            }
            (held,) = services["api"]["attachments"]
            assert held["earlier"] == [{"client": "store-0", "count": 2, "leads_to": "original"}]
            assert 4 < held["earlier_rate"] < 26  # each asks ten times a second, if it is let
            refused = await project("move", "api", code=3)
            assert "allows no NET_ADMIN" in refused.stderr
            assert f"kubectl -n {shop.name} rollout restart statefulset/store" in refused.stderr
            await kit.execute(shop.developer, shop.name, "store-0", "touch", "/dev/shm/enough")
            assert (await keeping).code == 0
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_what_its_pods_do_not_allow_is_told_and_the_rest_is_attached(shop: Namespace, project: Project) -> None:
    """The store has a Service with an address and a headless one; the pods' way was not asked for."""
    async with project.up() as running:
        await running.until_state("web", State.READY)
        await project("toggle", "store", "local")
        await running.until_state("store", State.READY)
        await project("attach", "store", "--all")
        await running.until(lambda: len(running.services["store"].attachments) == 2, "both are told of")
        found = {each.target: each for each in running.services["store"].attachments}
        assert found["store"].phase == "attached"
        assert found["store-nodes"].phase == "refused"
        assert "NET_ADMIN" in found["store-nodes"].reason


async def test_while_it_reloads_requests_wait_and_when_it_crashes_the_original_answers(
    shop: Namespace, project: Project
) -> None:
    attach(project, "api", '{ kind = "intercept", routes = "all" }')
    async with project.up() as running:
        await attached(running, "api")
        await running.until_state("api", State.READY)
        await kit.eventually(lambda: asked(shop), True)
        file = project.folder / "examples/shop/api/__init__.py"
        starts = running.services["api"].restarts
        file.write_text(file.read_text() + "# another\n")
        assert await asked(shop), "whichever process it was, it was one of ours"
        await running.until(lambda: running.services["api"].restarts > starts, "reloaded")
        file.write_text("raise SystemExit('broken')\n")
        await running.until_state("api", State.CRASH_LOOP, State.BACKOFF)
        await attached(running, "api", "failed open")
        assert not await asked(shop)


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("clients")
async def test_no_request_fails_in_a_minute_of_load_and_edits(
    admin: ApiClient, shop: Namespace, project: Project
) -> None:
    """300 requests a second from a pod, and an edit every 3 s: the new code answers, and nobody is turned away."""
    attach(project, "web", '{ kind = "intercept", routes = "all" }')
    async with project.up() as running:
        await attached(running, "web")
        await running.until_state("web", State.READY)
        load = Load(shop, host="web", path="/healthz", rate=300, connections=16, seconds=200)
        file = project.folder / "examples/shop/web/page.py"
        answered_here = 0.0
        clock = asyncio.get_running_loop().time
        began = clock()
        for number in range(20):
            starts = running.services["web"].restarts
            # By the clock: always so long after a start would look like a service that writes its own files.
            await asyncio.sleep(max(0.0, began + 3 * (number + 1) - clock()))
            file.write_text(f"{file.read_text()}# {number}\n")
            await running.until(lambda: running.services["web"].restarts > starts, "reloaded")  # noqa: B023
            answered_here = max(answered_here, *(each.local_rate for each in running.services["web"].attachments))
        result = await load.stop()
    assert result["failed"] == 0, str(result)
    # Two clusters share two cores in CI: how many a second is for the benchmarks, that they never stop is this test's.
    assert result["answered"] > 60 * 300 / 10, str(result)
    assert answered_here > 0


async def test_what_pods_print_is_shown_and_followed_through_a_rollout(
    admin: ApiClient, shop: Namespace, project: Project
) -> None:
    apps = client.AppsV1Api(admin)
    lines = (await project("logs", "--remote", "api", "-n", "5")).stdout.splitlines()
    assert lines and all(each.startswith("api-") and " | " in each for each in lines)
    pods = {each.split(" ")[0] for each in lines}
    following = await asyncio.create_subprocess_exec(
        *project.command("logs", "--remote", "-f", "-n", "1", "--json", "deployment/api"),
        cwd=project.folder,
        env=project.environ,
        stdout=asyncio.subprocess.PIPE,
    )
    assert following.stdout is not None
    try:
        await following.stdout.readline()
        patch = {"spec": {"template": {"metadata": {"annotations": {"rolled": "1"}}}}}
        await apps.patch_namespaced_deployment(
            "api", shop.name, patch, _content_type="application/strategic-merge-patch+json"
        )
        async with asyncio.timeout(60):
            while json.loads(await following.stdout.readline())["service"] in pods:
                pass
    finally:
        following.kill()
        await following.wait()


async def test_a_replaced_workload_ends_before_its_stand_in_starts_and_comes_back_after_it(
    admin: ApiClient, shop: Namespace, project: Project
) -> None:
    attach(project, "worker", '"replace"')
    apps = client.AppsV1Api(admin)

    async def replicas() -> int:
        return int((await apps.read_namespaced_deployment("worker", shop.name)).spec.replicas)

    async def pods() -> int:
        selector = "app.kubernetes.io/name=worker"
        found = await client.CoreV1Api(admin).list_namespaced_pod(shop.name, label_selector=selector)
        # One that has ended does nothing any more, though its object is there a moment longer.
        return sum(each.status.phase not in ("Succeeded", "Failed") for each in found.items)

    assert await replicas() == 1
    async with project.up() as running:
        await running.until_state("worker", State.READY)
        assert await replicas() == 0
        assert await pods() == 0, "two consumers of one queue"
        await attached(running, "worker")
        await project("toggle", "worker", "remote")
        assert await replicas() == 1
        await project("toggle", "worker", "local")
        await running.until_state("worker", State.READY)
        assert await pods() == 0
    await kit.eventually(replicas, 1)
    await kit.eventually(partial(pods), 1)


@pytest.mark.usefixtures("clients")
async def test_requests_wait_while_a_replaced_workload_comes_back(
    admin: ApiClient, shop: Namespace, project: Project
) -> None:
    """Its stand-in has ended before the pods start, and nobody is told."""
    attach(project, "web", '"replace"')
    apps = client.AppsV1Api(admin)
    async with project.up() as running:
        await attached(running, "web")
        await running.until_state("web", State.READY)
        load = Load(shop, host="web", path="/healthz", rate=20, connections=4, seconds=120)
        await running.until(lambda: any(each.local_rate > 0 for each in running.services["web"].attachments), "load")
        said = (await project("leave", "web")).stdout
        assert said == "web: stopped here, and what it replaced runs again\n"
        assert running.services["web"].mode == "remote"
        assert (await apps.read_namespaced_deployment("web", shop.name)).spec.replicas > 0
        await asyncio.sleep(2)  # what comes after it
        result = await load.stop()
    assert result["failed"] == 0, str(result)
    assert result["answered"] > 0


async def test_a_replaced_workload_that_is_applied_anew_is_stopped_again_and_in_the_end_its_stand_in(
    admin: ApiClient, shop: Namespace, project: Project
) -> None:
    attach(project, "worker", '"replace"')
    apps = client.AppsV1Api(admin)

    async def replicas() -> int:
        return int((await apps.read_namespaced_deployment("worker", shop.name)).spec.replicas)

    async def apply(size: int) -> None:
        await apps.patch_namespaced_deployment(
            "worker",
            shop.name,
            {"spec": {"replicas": size}},
            field_manager="argocd-controller",
            _content_type="application/merge-patch+json",
        )

    try:
        async with project.up() as running:
            await attached(running, "worker")
            for _ in range(3):
                await apply(2)
                await kit.eventually(replicas, 0)
                await attached(running, "worker")
                assert running.services["worker"].state is State.READY
            await apply(2)
            await attached(running, "worker", "contested")
            (status,) = running.services["worker"].attachments
            assert "argocd-controller has set the size of deployment/worker to 2" in status.reason
            await running.until(lambda: running.services["worker"].mode == "remote", "its stand-in is stopped")
            assert await replicas() == 2
    finally:
        await apply(1)
    await kit.eventually(replicas, 1)


ELSEWHERE = """
import http.server, socket, threading

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("X-Served-By", socket.gethostname())
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass

def serve(port):
    http.server.ThreadingHTTPServer(("", port), Handler).serve_forever()

threading.Thread(target=serve, args=(9090,), daemon=True).start()
open("also").read()  # a pipe: until somebody writes to it
serve(8080)
"""


async def test_a_port_that_nothing_listens_on_is_the_originals_until_something_does(
    shop: Namespace, project: Project
) -> None:
    """The issue's: it said "attached", and every request waited for 10 s."""
    (project.folder / "elsewhere.py").write_text(ELSEWHERE)
    os.mkfifo(project.folder / "also")
    project.config("""
[services.api]
command = "python3 elsewhere.py"
watch = []
ports = { http = 8080 }
ready = false
attach = { kind = "intercept", routes = "all" }
""")
    async with project.up() as running:
        await attached(running, "api", "failed open")
        (status,) = running.services["api"].attachments
        assert "nothing listens on port 8080; it listens on 9090; the original answers" in status.reason
        clock = asyncio.get_running_loop().time
        began = clock()
        assert [await asked(shop) for _ in range(3)] == [False] * 3
        assert clock() - began < 8, "no request waited for what does not come"
        told = await project("attach", "api", "--all", code=None)
        assert "it listens on 9090" in told.stdout + told.stderr, told
        (project.folder / "also").write_text("now")
        await attached(running, "api")
        await kit.eventually(lambda: asked(shop), True)


async def test_a_workload_by_its_name_alone_and_one_that_is_not_there(shop: Namespace, project: Project) -> None:
    found = await project("env", "-w", "api", "--format", "json", "--namespace", shop.name)
    assert "PORT" in found.stdout or "STORE" in found.stdout, found
    lost = await project("env", "-w", "apii", "--namespace", shop.name, code=2)
    assert "no workload is called apii" in lost.stderr and "Did you mean" in lost.stderr and "api" in lost.stderr

"""examples/shop, run by its own Kubernetes manifests."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from devloop.local.process import Holders
from devloop.remote.link import OpenError, Phase, Refusal
from devloop.remote.workload import references as kinds
from devloop.remote.workload.view import Options, open_view
from devloop.sandbox.sandbox import Sandbox

from .conftest import DEADLINE, SHOP, SHOP_IMAGES, Start, processes_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


async def test_an_order_goes_through_all_services(start: Start) -> None:
    shop = await start(SHOP / "k8s", SHOP_IMAGES)
    assert (await shop.link()).state.phase is Phase.CONNECTED
    assert (await shop.link()).state.kind == "sandbox"
    await shop.says("6 products are in")
    page = await shop.get("web", 8080)
    assert page.startswith("HTTP/1.1 200")
    assert "Green tea" in page  # web asked api, and api the store
    assert "303" in (await shop.get("web.shop.svc.cluster.local", 8080, "/buy", "product=honey")).split("\r\n")[0]
    worker = await shop.says("1 honey shipped")
    assert shop.sandbox.workload_of(worker) == "deployment/worker"
    order = json.loads((await shop.get("api", 8080, "/orders/1")).partition("\r\n\r\n")[2])
    assert (order["product"], order["status"]) == ("honey", "shipped")
    job = await shop.sandbox.cluster.get(kinds.JOB, "seed")
    assert job["status"]["succeeded"] == 1


async def test_names_are_a_clusters(start: Start) -> None:
    shop = await start(SHOP / "k8s", SHOP_IMAGES)
    link = await shop.link()
    suffix = "shop.svc.cluster.local"
    resolver = await link.resolver()
    assert (resolver.search[0], resolver.ndots) == (suffix, 5)

    async def answers(name: str, kind: str = "A") -> list[str]:
        answer = await link.lookup(name, kind)
        return sorted(each.to_text() for rrset in answer.answer for each in rrset)

    web = await answers(f"web.{suffix}")
    service = await shop.sandbox.cluster.get(kinds.SERVICE, "web")
    assert web == [service["spec"]["clusterIP"]]
    assert await answers(f"_http._tcp.web.{suffix}", "SRV") == [f"0 100 8080 web.{suffix}."]
    store = (await shop.pods("store"))[0]["status"]["podIP"]
    assert await answers(f"store-nodes.{suffix}") == [store]
    assert await answers(f"store-0.store-nodes.{suffix}") == [store]
    assert await answers(f"_redis._tcp.store-nodes.{suffix}", "SRV") == [f"0 100 6379 store-0.store-nodes.{suffix}."]
    backward = ".".join(reversed(web[0].split("."))) + ".in-addr.arpa"
    assert await answers(backward, "PTR") == [f"web.{suffix}."]
    assert (await link.lookup(f"nobody.{suffix}")).rcode() == 3  # NXDOMAIN
    assert (await link.lookup("example.org")).rcode() == 5  # REFUSED: the host's resolvers know
    # And in a pod, by its resolv.conf's search domains.
    for name, wanted in (("web", web[0]), ("web.shop", web[0]), ("store-0.store-nodes", store)):
        assert (await shop.run("worker", "getent", "ahostsv4", name)).split()[0] == wanted
    # By address, by name and straight to a pod: the same server.
    for host in (web[0], "web", (await shop.pods("web"))[0]["status"]["podIP"]):
        assert (await shop.get(host, 8080, "/healthz")).startswith("HTTP/1.1 200")
    for host, port, refusal in (("web", 81, Refusal.REFUSED), ("nobody", 80, Refusal.UNKNOWN_HOST)):
        with pytest.raises(OpenError) as refused:
            await link.open(host, port)
        assert refused.value.refusal is refusal


async def test_views_of_its_workloads(start: Start, tmp_path: Path) -> None:
    shop = await start(SHOP / "k8s", SHOP_IMAGES)
    await shop.says("6 products are in")
    cluster, options = shop.sandbox.cluster, Options("devloop-agent")
    folders = {"folder": tmp_path / "view", "data": tmp_path / "copies"}
    async with open_view(cluster, "deployment/api", **folders, options=options) as view:
        found = {each.name: each for each in view.environment.variables}
        assert found["STORE_URL"].value == "redis://store:6379"
        assert found["STORE_URL"].origin == "configmap shop key STORE_URL"
        assert found["PORT"].value == "8080"
        service = await cluster.get(kinds.SERVICE, "store")
        assert found["STORE_SERVICE_HOST"].value == service["spec"]["clusterIP"]
        image = {each.name for each in view.environment.image}
        assert {"PATH", "HOSTNAME"} <= image
        assert not any(each.startswith("DEVLOOP_") for each in image)
        assert view.workload.running
    (shop.data / "claims" / "data-store-0" / "own").write_bytes(b"the store's")
    async with open_view(cluster, "statefulset/store", **folders, options=options) as view:
        assert [each.path for each in view.mounts] == ["/data"]
        assert (view.mounts[0].source / "own").read_bytes() == b"the store's"
    assert not list((tmp_path / "copies").iterdir())


RUN = """
import asyncio, sys
from pathlib import Path
from devloop.local.process import Holders
from devloop.sandbox.sandbox import Sandbox

async def main():
    holders = Holders()
    holders.open()
    shop = Path(sys.argv[1])
    images = {"devloop.test/shop:1": shop}
    sandbox = Sandbox([shop / "k8s"], images, "shop", holders, Path(sys.argv[2]), lambda *said: None)
    await sandbox.start()
    assert await sandbox.ready(20) == ()
    print(holders.run_id, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_kill_9_leaves_no_process_and_the_next_start_clears_up(namespaces: None, tmp_path: Path) -> None:
    data = tmp_path / "sandbox"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RUN, str(SHOP), str(data), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    run_id = (await process.stdout.readline()).decode().strip()
    assert len(processes_of(run_id)) > 5
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    async with asyncio.timeout(DEADLINE):
        # They are nobody's children that could be waited for.
        while processes_of(run_id):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert (data / "claims" / "data-store-0").exists()  # nobody was left to remove it

    holders = Holders()
    holders.open()
    (tmp_path / "one.yaml").write_text("kind: ConfigMap\nmetadata: {name: one}\n")
    sandbox = Sandbox([tmp_path / "one.yaml"], {}, "shop", holders, data, lambda *said: None)
    await sandbox.start()
    assert not (data / "claims").exists()
    await sandbox.close()
    await holders.close()
    assert not data.exists()

"""What an attachment costs, on the test cluster: how soon it is effective, and what it adds to a request.

    DEVLOOP_TEST_CLUSTER=NAME:INDEX python -m benchmarks.attach [--quick]

Takes a cluster that runs (`make cluster`). The load runs in a pod, the local service in a process of its own here.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.figures import Result, Table
from devloop.agent.loops import new_event_loop
from devloop.attach import personal
from tests.cluster import conftest, kit
from tests.cluster.attaching import PORT, SERVICE, SOURCE, Here, Load, client_pod, engine, run_service
from tests.cluster.kube.cluster import Cluster
from tests.cluster.kube.routes import to_pods
from tests.cluster.kube.sandbox import Sandbox
from tests.cluster.kube.settings import Settings

MARK = {"baggage": "devloop=ada"}


class Process(Here):
    """A local service in a process of its own, as it would be: this one has the link to carry."""

    def __init__(self, command: list[str]) -> None:
        super().__init__()
        self._command = command
        self._process: Any = None

    async def __aenter__(self) -> Process:
        self.port = random.randrange(21000, 29000, 2)  # it takes two, below those that the kernel gives away
        self._process = await asyncio.create_subprocess_exec(*self._command, str(self.port))
        while self._process.returncode is None:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return self
            await asyncio.sleep(0.02)
        raise SystemExit("the local service does not start")

    async def __aexit__(self, *_: object) -> None:
        self._process.terminate()
        await self._process.wait()


@asynccontextmanager
async def namespace() -> AsyncIterator[tuple[Any, Any, Path]]:
    own = Cluster(Settings.of_environment())
    with tempfile.TemporaryDirectory() as folder:
        target = conftest.Target(own.settings.admin, own, Path(folder))
        async with kit.connect(target.admin) as admin, conftest.a_namespace(target, admin, "restricted") as space:
            await asyncio.gather(run_service(admin, space.name), client_pod(admin, space.name))
            yield admin, space, Path(folder)


async def switch(ada: Any, space: Any, here: Here, rounds: int) -> dict[str, Any]:
    """From the call to the first request served here, and back; under a load of 500 requests/s."""
    load = Load(space, rate=500, connections=16, seconds=600, requests_per_connection=1)
    await asyncio.sleep(2)
    on, off, called = [], [], []
    seen = asyncio.Event()
    ada.attachments.subscribe_served(lambda *_: seen.set())
    for _ in range(rounds):
        seen.clear()
        began = time.perf_counter()
        found = await ada.attachments.attach(ada.wanted(here), here)
        called.append(time.perf_counter() - began)
        await asyncio.wait_for(seen.wait(), 10)
        on.append(time.perf_counter() - began)
        await asyncio.sleep(1)
        began = time.perf_counter()
        await ada.attachments.leave(found)
        off.append(time.perf_counter() - began)
        await asyncio.sleep(1)
    result = await load.stop()
    return {
        "to the first request served here, p50 ms": statistics.median(on) * 1000,
        "to the first request served here, max ms": max(on) * 1000,
        "attach() returns, p50 ms": statistics.median(called) * 1000,
        "leave() returns (all is put back), p50 ms": statistics.median(off) * 1000,
        "requests meanwhile": result["answered"],
        "failed": result["failed"],
    }


async def flood(admin: Any, space: Any, seconds: float, *headers: str) -> dict[str, float]:
    """As many requests as 64 connections get through, by wrk on the node: requests/s, and how many failed."""
    service = await kit.client.CoreV1Api(admin).read_namespaced_service(SERVICE, space.name)
    node = Sandbox(Settings.of_environment()).pid
    wrk = ("wrk", "-t1", "-c64", f"-d{seconds:g}s", *(part for each in headers for part in ("-H", each)))
    process = await asyncio.create_subprocess_exec(
        *("nsenter", "-t", str(node), "-n", *wrk, f"http://{service.spec.cluster_ip}:{PORT}/"),
        stdout=asyncio.subprocess.PIPE,
    )
    said = (await process.communicate())[0].decode()
    found = {
        key: float(value) for key, value in re.findall(r"(Requests/sec|Non-2xx or 3xx responses): +([\d.]+)", said)
    }
    bad = sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", said)))
    return {
        "requests/s": found["Requests/sec"],
        "failed": bad + found.get("Non-2xx or 3xx responses", 0.0),
    }


async def latency(space: Any, seconds: float, **plan: Any) -> dict[str, Any]:
    """One request after the other on one connection."""
    return await Load(space, connections=1, seconds=seconds, requests_per_connection=10**9, **plan).done()


async def measure(quick: bool) -> dict[str, dict[str, dict[str, Any]]]:
    """By the API server, and then by a direct connection to the agent's pod."""
    by_server = await attached(quick, direct=False)
    with to_pods(*Settings.of_environment().node_ips):
        return {"by the API server": by_server, "straight to the agent": await attached(quick, direct=True)}


async def attached(quick: bool, *, direct: bool) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {}
    seconds = 3.0 if quick else 8.0
    async with namespace() as (admin, space, folder), engine(space.developer, folder) as ada:
        ssh = await ada.link.best()
        if ssh is None or bool(ada.link.state.direct) is not direct:
            raise SystemExit(f"the link is not the one to be measured: {ada.link.state}")
        command = [sys.executable, "-c", SOURCE, "serve", "here"]
        async with Process(command) as here:
            plain = await latency(space, seconds)
            out["not attached"] = {"p50 ms": plain["p50"], **await flood(admin, space, seconds)}
            out["switch, under 500 requests/s"] = await switch(ada, space, here, 3 if quick else 15)
            await ada.attachments.attach(ada.wanted(here, routes=(personal("ada"),)), here)
            await asyncio.sleep(1)
            original = await latency(space, seconds)
            out["no route takes it (through Envoy)"] = {
                "p50 ms": original["p50"],
                "added p50 ms": original["p50"] - plain["p50"],
                **await flood(admin, space, seconds),
            }
            trips = []
            for _ in range(200):
                began = time.perf_counter()
                await ssh.check()
                trips.append(time.perf_counter() - began)
            local = await latency(space, seconds, headers=MARK)
            out["served here"] = {
                "p50 ms": local["p50"],
                "link's round trip p50 ms": statistics.median(trips) * 1000,
                "added over that and a plain request, ms": local["p50"]
                - plain["p50"]
                - statistics.median(trips) * 1000,
                **await flood(admin, space, seconds, *(f"{key}: {value}" for key, value in MARK.items())),
            }
    return out


def run(*, quick: bool) -> Result:
    """Measure, on the event loop that the engine has."""
    if shutil.which("wrk") is None:
        raise SystemExit("there is no wrk, which makes the load: apt-get install wrk")
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        raw = runner.run(measure(quick))
    table = Table("Attachments", ["", *raw])
    first, *_ = raw.values()
    for name, figures in first.items():
        for key in figures:
            values = [each[name][key] for each in raw.values()]
            shown = [f"{value:.2f}" if isinstance(value, float) and value < 100 else f"{value:.0f}" for value in values]
            table.rows.append([f"{name}: {key}", *shown])
    table.notes.append("pods, API server, load and local service on this one machine")
    return Result("attach", [table], raw)


if __name__ == "__main__":
    for each in run(quick="--quick" in sys.argv).tables:
        print(each.markdown())

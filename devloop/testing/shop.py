"""A small shop for the fake engine to play: one service in each state that a screen must show.

The data depends on nothing but the clock it is given. `live` makes it move, with a seeded random.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from devloop.protocol import (
    Cause,
    LogLine,
    Loop,
    Mounted,
    Notice,
    Outcome,
    RemoteStatus,
    ServiceStatus,
    Snapshot,
    State,
    Variable,
)
from devloop.testing import traffic
from devloop.testing.fake_engine import FakeEngine

SECOND = 1_000_000_000
MILLI = 1_000_000
ANYWHERE = ("local", "remote")
NO_AGENT = "plain port-forwards, as the agent can't be used: pods may not be created in shop"


def fixed_clock() -> int:
    """Noon of 21 November 2026, UTC, for ever."""
    return 1_795_262_400 * SECOND


def loop(number: int, service: str, at: int, *steps: tuple[str, float], **fields: object) -> Loop:
    """A loop from (phase, milliseconds it took), the first stamp being `edited`."""
    stamps, total = {"edited": 0}, 0.0
    for phase, took in steps:
        total += took
        stamps[phase] = int(total * MILLI)
    defaults: dict[str, object] = {"cause": Cause.CHANGE, "outcome": Outcome.OK, "files": ()}
    return Loop.from_json({"id": number, "service": service, "started_at": at, "stamps": stamps, **defaults, **fields})


NOTES = (
    "variable GOOGLE_APPLICATION_CREDENTIALS: made with POD_IP, which a stand-in has",
    "volume uploads: a copy: what is written to it stays here, and changes there are not seen",
    "volume scratch: left out, as the configuration says (ignore)",
)
"""How the api is not as in its pod."""


def snapshot(clock: Callable[[], int] = time.time_ns) -> Snapshot:
    """The shop, twelve minutes after its start."""
    now = clock()
    changed = loop(
        41,
        "api",
        now - 125 * SECOND,
        *(("detected", 0.4), ("settled", 5.2), ("stopped", 2.1), ("spawned", 1.2), ("ready", 186.0)),
        ("served", 17.5),
        files=("api/orders.py", "api/models/order.py"),
    )
    built = loop(
        38,
        "web",
        now - 310 * SECOND,
        *(("detected", 0.5), ("settled", 6.0), ("built", 1240.0), ("stopped", 11.0), ("spawned", 1.4)),
        ("ready", 94.0),
        files=("web/main.go",),
    )
    failed = loop(
        44,
        "worker",
        now - 21 * SECOND,
        *(("detected", 0.4), ("settled", 5.0), ("stopped", 14.0), ("spawned", 1.3)),
        files=("worker/jobs.py", "worker/queue.py", "worker/retry.py", "worker/__main__.py"),
        outcome=Outcome.FAILED,
        detail="exit code 1 after 0.2 s: ModuleNotFoundError: No module named 'worker.retries'",
    )
    services: tuple[ServiceStatus, ...] = (
        ServiceStatus(
            "web", "local", State.READY, "", now - 310 * SECOND, 4101, restarts=2, ports={"http": 8080},
            modes=ANYWHERE, published={"http": 8080}, workload="deployment/web",
            depends_on=("api",), has_build=True, last_loop=built, loops=9, p50=1290 * MILLI, p95=2310 * MILLI,
            history=tuple(ms * MILLI for ms in (1100, 1180, 2310, 1210, 1290, 1320, 1270, 1353)),
        ),
        ServiceStatus(
            "api", "local", State.READY, "", now - 125 * SECOND, 4207, restarts=14,
            ports={"http": 8000, "debug": 5678}, depends_on=("db", "redis", "migrate"), last_loop=changed,
            modes=ANYWHERE, published={"http": 18000, "debug": 5678}, workload="deployment/api", notes=NOTES,
            loops=31, p50=205 * MILLI, p95=412 * MILLI,
            history=tuple(
                ms * MILLI for ms in (190, 202, 205, 240, 198, 412, 230, 205, 199, 180, 204, 210, 207, 212)
            ),
        ),
        ServiceStatus(
            "worker", "local", State.BACKOFF, "exit code 1, again in 4 s", now - 20 * SECOND, exit_code=1,
            restarts=6, depends_on=("redis",), last_loop=failed, loops=4, p50=310 * MILLI, p95=702 * MILLI,
            history=tuple(ms * MILLI for ms in (290, 310, 702, 330)), groups=("jobs",),
            modes=ANYWHERE, workload="deployment/worker",
        ),
        ServiceStatus(
            "redis", "local", State.READY, "", now - 720 * SECOND, 4012, ports={"redis": 6379},
            published={"redis": 6379}, loops=1, p50=24 * MILLI, p95=24 * MILLI, history=(24 * MILLI,),
        ),
        ServiceStatus(
            "db", "remote", State.REMOTE, "", now - 719 * SECOND, modes=ANYWHERE,
            published={"postgres": 5432}, workload="statefulset/db",
        ),
        ServiceStatus(
            "migrate", "local", State.COMPLETED, "", now - 715 * SECOND, exit_code=0, task=True,
            depends_on=("db",),
        ),
        ServiceStatus(
            "search", "local", State.STARTING, "GET :9200/health → 503", now - 3 * SECOND, 4422, restarts=1,
            ports={"http": 9200}, published={"http": 9200}, opened_at=now - 3 * SECOND,
            modes=ANYWHERE, workload="deployment/search",
        ),
        ServiceStatus(
            "mailer", "local", State.CRASH_LOOP, "port 1025 is taken by mailhog (pid 977)", now - 95 * SECOND,
            exit_code=-6, restarts=5, ports={"smtp": 1025}, groups=("jobs",),
        ),
        ServiceStatus("docs", "off", State.OFF, "", now - 720 * SECOND),
    )  # fmt: skip
    held = traffic.attached(now)
    services = tuple(replace(each, attachments=held.get(each.name, ())) for each in services)
    notices = (
        Notice("info", "watching 214 files in 31 folders", now - 719 * SECOND),
        Notice(
            "warning", "port 1025 is taken by mailhog (pid 977)", now - 96 * SECOND, "mailer",
            "stop it, or give mailer another port",
        ),
    )  # fmt: skip
    return Snapshot(
        "shop", "/home/dev/shop", "/home/dev/shop/devloop.toml", 4000, "0.1.0", now - 720 * SECOND, services,
        notices, remote=RemoteStatus(
            "kubernetes", "agent", "dev/shop", "connected", now - 719 * SECOND, network="namespace"
        ),
    )  # fmt: skip


def environment() -> dict[str, tuple[Variable, ...]]:
    """What `env api` shows: a value from each kind of source."""
    certificate = "-----BEGIN CERTIFICATE-----\nMIIBhTCCASugAwIBAgIQIRi6\n-----END CERTIFICATE-----\n"
    return {
        "api": (
            Variable("CACHE_TTL", "30", "configmap api-settings key CACHE_TTL"),
            Variable("CPUS", "2", "resource limits.cpu"),
            Variable("CURRENCIES", "EUR,CHF,USD", "configmap api-settings key currencies"),
            Variable("DATABASE_PASSWORD", "s3cr3t", "secret db-credentials key password", True),
            Variable("DATABASE_URL", "postgres://shop:s3cr3t@db:5432/shop", "the pod's spec", True),
            Variable("DEVLOOP_SERVICE", "api", "devloop"),
            Variable("HOME", "/home/dev", "host"),
            Variable("LANG", "C.UTF-8", "the image or the container runtime, read from the running container"),
            Variable("LOG_LEVEL", "debug", "devloop.toml"),
            Variable("PATH", "/home/dev/shop/.venv/bin:/usr/local/bin:/usr/bin:/bin", "host"),
            Variable("POD_IP", "10.42.0.17", "field status.podIP, read from the running container"),
            Variable("REDIS_SERVICE_HOST", "10.43.120.7", "service redis"),
            Variable("REDIS_SERVICE_PORT", "6379", "service redis"),
            Variable("REDIS_URL", "redis://redis:6379/0", "configmap api-settings key REDIS_URL"),
            Variable("STRIPE_API_KEY", "sk_test_51Hc0ffee", ".env.local", True),
            Variable("TLS_CERTIFICATE", certificate, "secret api-tls key tls.crt", True),
        )
    }


def mounts() -> dict[str, tuple[Mounted, ...]]:
    """What files `world api` tells of."""
    run, state = "/run/user/1000/devloop/shop/api", "/home/dev/.local/state/devloop/shop/api"
    token = "/var/run/secrets/kubernetes.io/serviceaccount"
    return {
        "api": (
            Mounted("/etc/api", f"{run}/volumes/settings", "settings", "configMap", True, True),
            Mounted("/etc/api/flags.json", f"{run}/subpaths/1", "flags", "configMap", True),
            Mounted("/etc/tls", f"{run}/volumes/tls", "tls", "secret", True, True),
            Mounted("/srv/uploads", f"{state}/uploads", "uploads", "persistentVolumeClaim", False),
            Mounted(token, f"{run}/volumes/kube-api-access", "kube-api-access", "projected", True, True),
        )
    }


def history(clock: Callable[[], int] = time.time_ns) -> list[Loop]:
    """Loops of the api before its last one, oldest first."""
    now = clock()
    totals = (190, 202, 205, 240, 198, 412, 230, 205, 199, 180, 204, 210, 207)
    loops = [
        loop(
            20 + n,
            "api",
            now - (1500 - 90 * n) * SECOND,
            *(("detected", 0.4), ("settled", 5.0), ("stopped", 2.0), ("spawned", 1.2)),
            *(("ready", total - 28.6), ("served", 20.0)),
            files=("api/orders.py",) if n % 3 else ("api/basket.py", "api/prices.py"),
        )
        for n, total in enumerate(totals)
    ]
    loops[4] = loop(
        24, "api", now - 1140 * SECOND, ("detected", 0.4), ("settled", 5.1), ("stopped", 3.0),
        files=("api/orders.py",), outcome=Outcome.FAILED, detail="SyntaxError: api/orders.py:14",
    )  # fmt: skip
    return loops


def log_lines(clock: Callable[[], int] = time.time_ns) -> list[LogLine]:
    """What the services have printed, with the colours that servers use."""
    now = clock()
    rows = [
        ("redis", "out", "4012:M * Ready to accept connections tcp"),
        ("web", "build", "go build -o bin/web ./web"),
        ("web", "out", "listening on \x1b[1m:8080\x1b[0m"),
        ("api", "devloop", "started (pid 4207), changed: api/orders.py"),
        ("api", "err", "\x1b[32mINFO\x1b[0m:     Started server process [4207]"),
        ("api", "err", "\x1b[32mINFO\x1b[0m:     Application startup complete."),
        ("api", "out", '\x1b[32mINFO\x1b[0m:     10.1.0.1:5128 "GET /orders HTTP/1.1" \x1b[32m200 OK\x1b[0m'),
        ("worker", "err", "Traceback (most recent call last):"),
        ("worker", "err", '  File "worker/jobs.py", line 3, in <module>'),
        ("worker", "err", "\x1b[1;31mModuleNotFoundError\x1b[0m: No module named 'worker.retries'"),
        ("worker", "devloop", "exit code 1, again in 4 s"),
        ("api", "out", "\x1b[33mWARN\x1b[0m:     slow query, 412 ms: \x1b[36mSELECT\x1b[0m * FROM orders"),
        ("web", "out", "GET /basket \x1b[38;5;208m304\x1b[0m 1.2ms"),
        ("api", "out", '\x1b[32mINFO\x1b[0m:     10.1.0.1:5129 "POST /orders HTTP/1.1" \x1b[31m500\x1b[0m'),
        ("api", "out", "\x1b[31mERROR\x1b[0m:    basket 77 has no owner"),
        ("api", "out", '\x1b[32mINFO\x1b[0m:     10.1.0.1:5130 "GET /health HTTP/1.1" \x1b[32m200 OK\x1b[0m'),
    ]  # fmt: skip
    first = now - len(rows) * SECOND
    return [LogLine(name, first + n * SECOND, stream, text) for n, (name, stream, text) in enumerate(rows)]


def engine(clock: Callable[[], int] = time.time_ns) -> FakeEngine:
    """The shop in a fake engine, with its logs, history and environment."""
    fake = FakeEngine(snapshot(clock), clock=clock)
    fake.environment, fake.mounts = environment(), mounts()
    fake.loops["api"] = [*history(clock), *fake.loops["api"]]
    fake.logs.extend(log_lines(clock))
    fake.requests["web"] = traffic.requests(clock)
    return fake


def crowd(count: int, clock: Callable[[], int] = time.time_ns) -> Snapshot:
    """As many services as asked for, all ready: for what must stay fast with a hundred."""
    base = snapshot(clock)
    first = base.services[1].to_json()
    services = []
    for n in range(count):
        name = f"service-{n:03}"
        last = {**first["last_loop"], "service": name, "id": n}
        services.append(ServiceStatus.from_json({**first, "name": name, "pid": 5000 + n, "last_loop": last}))
    return Snapshot.from_json({**base.to_json(), "services": [s.to_json() for s in services]})


async def live(fake: FakeEngine, rate: float, seed: int = 7) -> None:
    """Make it move until cancelled: requests in the logs, a loop every few seconds, `rate` lines a second."""
    dice = random.Random(seed)
    names = [status.name for status in fake.snapshot().services]
    number, debt, tick = 100, 0.0, 0.04
    while True:
        await asyncio.sleep(tick)
        debt += rate * tick
        count, debt = int(debt), debt % 1
        if count:
            fake.log(
                "api" if "api" in names else names[0],
                *(f"\x1b[32mINFO\x1b[0m:     GET /orders/{dice.randrange(9999)} 200" for _ in range(count)),
            )
        if dice.random() < tick / 3:
            name = dice.choice([n for n in names if fake.status(n).state is State.READY] or names)
            number += 1
            fake.update(name, state=State.STARTING, opened_at=fake.clock(), reason="")
            await asyncio.sleep(dice.uniform(0.05, 0.4))
            took = dice.uniform(40, 600)
            steps = (("detected", 0.5), ("settled", 5.0), ("stopped", 3.0), ("spawned", 1.0), ("ready", took))
            fake.finish_loop(loop(number, name, fake.clock(), *steps, files=(f"{name}/main.py",)))
            fake.update(name, state=State.READY, restarts=fake.status(name).restarts + 1)


async def flaky(fake: FakeEngine, interval: float) -> None:
    """Every so many seconds the connection to the remote is lost, and comes back at the fourth attempt."""
    again = asyncio.Event()
    fake.on_reconnect = again.set
    lost = "the API server 10.0.0.1:6443 can't be reached: Connection refused"
    while True:
        await asyncio.sleep(interval)
        since = fake.clock()
        for attempt, wait in enumerate((0.5, 2.0, 5.0), start=1):
            again.clear()
            fake.connection(
                "reconnecting", since_at=since, reason=lost, attempt=attempt, next_at=fake.clock() + int(wait * SECOND)
            )
            try:
                async with asyncio.timeout(wait):
                    await again.wait()
                break
            except TimeoutError:
                pass
        fake.connection("reconnecting", since_at=since, reason=lost, attempt=attempt)
        await asyncio.sleep(0.3)
        fake.connection("connected")


async def fade(fake: FakeEngine, stubborn: str | None, ended: asyncio.Event) -> None:
    """A shutdown in which one service after another ends, and one may not."""
    alive = [s.name for s in fake.snapshot().services if s.state is State.STOPPING]
    for name in list(alive):
        await asyncio.sleep(0.4)
        if name != stubborn:
            alive.remove(name)
            fake.progress(alive)
    survivors = dict.fromkeys(alive, ("4242 redis-server", "4243 redis-bgsave"))
    fake.progress([], survivors, done=True)
    ended.set()


async def _serve(arguments: argparse.Namespace) -> None:
    fake = engine()
    if arguments.services:
        fake.configure(crowd(arguments.services).services)
    ended = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []
    fake.on_shutdown = lambda: tasks.append(asyncio.create_task(fade(fake, arguments.survivor, ended)))
    async with fake.serving(arguments.socket):
        tasks.append(asyncio.create_task(live(fake, arguments.rate)))
        if not arguments.services:
            tasks.append(asyncio.create_task(traffic.passing(fake, "web", arguments.requests)))
        if (arguments.phase, arguments.link) != ("connected", "agent"):
            reason = "the namespace shop does not exist" if arguments.phase != "connected" else ""
            notes = (NO_AGENT,) if arguments.link == "portforward" else ()
            fake.connection(arguments.phase, reason=reason, link=arguments.link, notes=notes)
        if arguments.flaky:
            tasks.append(asyncio.create_task(flaky(fake, arguments.flaky)))
        await ended.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def main() -> int:
    """Serve the shop until a client shuts it down."""
    parser = argparse.ArgumentParser(description="A fake engine, to look at a client with.")
    parser.add_argument("socket", type=Path)
    parser.add_argument("--rate", type=float, default=3.0, help="log lines a second (default 3)")
    parser.add_argument("--requests", type=float, default=4.0, help="requests a second of the web (default 4)")
    parser.add_argument("--services", type=int, default=0, help="this many services instead of the shop's")
    parser.add_argument("--phase", default="connected", help="the connection's: connecting, connected, failed, …")
    parser.add_argument("--link", default="agent", help="what carries it: agent or portforward (with a note)")
    parser.add_argument("--flaky", type=float, default=0.0, help="lose the connection every so many seconds")
    parser.add_argument("--survivor", help="a service that will not die at the shutdown")
    try:
        asyncio.run(_serve(parser.parse_args()))
    except KeyboardInterrupt:
        return 130
    return 0

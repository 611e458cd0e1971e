"""A small shop for the fake engine to play: one service in each state that a screen must show.

The data depends on nothing but the clock it is given. `live` makes it move, with a seeded random.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path

from devloop.protocol import (
    Cause,
    LogLine,
    Loop,
    Notice,
    Outcome,
    ServiceStatus,
    Snapshot,
    State,
    Variable,
)
from devloop.testing.fake_engine import FakeEngine

SECOND = 1_000_000_000
MILLI = 1_000_000


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
    services = (
        ServiceStatus(
            "web", "local", State.READY, "", now - 310 * SECOND, 4101, restarts=2, ports={"http": 8080},
            depends_on=("api",), has_build=True, last_loop=built, loops=9, p50=1290 * MILLI, p95=2310 * MILLI,
            history=tuple(ms * MILLI for ms in (1100, 1180, 2310, 1210, 1290, 1320, 1270, 1353)),
        ),
        ServiceStatus(
            "api", "local", State.READY, "", now - 125 * SECOND, 4207, restarts=14,
            ports={"http": 8000, "debug": 5678}, depends_on=("db", "redis", "migrate"), last_loop=changed,
            loops=31, p50=205 * MILLI, p95=412 * MILLI,
            history=tuple(
                ms * MILLI for ms in (190, 202, 205, 240, 198, 412, 230, 205, 199, 180, 204, 210, 207, 212)
            ),
        ),
        ServiceStatus(
            "worker", "local", State.BACKOFF, "exit code 1, again in 4 s", now - 20 * SECOND, exit_code=1,
            restarts=6, depends_on=("redis",), last_loop=failed, loops=4, p50=310 * MILLI, p95=702 * MILLI,
            history=tuple(ms * MILLI for ms in (290, 310, 702, 330)), groups=("jobs",),
        ),
        ServiceStatus(
            "redis", "local", State.READY, "", now - 720 * SECOND, 4012, ports={"redis": 6379},
            loops=1, p50=24 * MILLI, p95=24 * MILLI, history=(24 * MILLI,),
        ),
        ServiceStatus("db", "remote", State.REMOTE, "postgres-0 in shop-dev", now - 719 * SECOND),
        ServiceStatus(
            "migrate", "local", State.COMPLETED, "", now - 715 * SECOND, exit_code=0, task=True,
            depends_on=("db",),
        ),
        ServiceStatus(
            "search", "local", State.STARTING, "GET :9200/health → 503", now - 3 * SECOND, 4422, restarts=1,
            ports={"http": 9200}, opened_at=now - 3 * SECOND,
        ),
        ServiceStatus(
            "mailer", "local", State.CRASH_LOOP, "port 1025 is taken by mailhog (pid 977)", now - 95 * SECOND,
            exit_code=-6, restarts=5, ports={"smtp": 1025}, groups=("jobs",),
        ),
        ServiceStatus("docs", "off", State.OFF, "", now - 720 * SECOND),
    )  # fmt: skip
    notices = (
        Notice("info", "watching 214 files in 31 folders", now - 719 * SECOND),
        Notice(
            "warning", "port 1025 is taken by mailhog (pid 977)", now - 96 * SECOND, "mailer",
            "stop it, or give mailer another port",
        ),
    )  # fmt: skip
    return Snapshot(
        "shop", "/home/dev/shop", "/home/dev/shop/devloop.toml", 4000, "0.1.0", now - 720 * SECOND, services,
        notices, remote="kubernetes dev/shop-dev",
    )  # fmt: skip


def environment() -> dict[str, tuple[Variable, ...]]:
    """What `env api` shows."""
    return {
        "api": (
            Variable("DATABASE_URL", "postgres://shop:s3cr3t@db:5432/shop", ".env", True),
            Variable("DEVLOOP_SERVICE", "api", "devloop"),
            Variable("HOME", "/home/dev", "host"),
            Variable("LOG_LEVEL", "debug", "devloop.toml"),
            Variable("PATH", "/home/dev/shop/.venv/bin:/usr/local/bin:/usr/bin:/bin", "host"),
            Variable("REDIS_URL", "redis://redis:6379/0", "devloop.toml"),
            Variable("STRIPE_API_KEY", "sk_test_51Hc0ffee", ".env.local", True),
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
    fake.environment = environment()
    fake.loops["api"] = [*history(clock), *fake.loops["api"]]
    fake.logs.extend(log_lines(clock))
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
        await ended.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def main() -> int:
    """Serve the shop until a client shuts it down."""
    parser = argparse.ArgumentParser(description="A fake engine, to look at a client with.")
    parser.add_argument("socket", type=Path)
    parser.add_argument("--rate", type=float, default=3.0, help="log lines a second (default 3)")
    parser.add_argument("--services", type=int, default=0, help="this many services instead of the shop's")
    parser.add_argument("--survivor", help="a service that will not die at the shutdown")
    try:
        asyncio.run(_serve(parser.parse_args()))
    except KeyboardInterrupt:
        return 130
    return 0

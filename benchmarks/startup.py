"""How long until `devloop --help` answers, and until `devloop up` has everything running."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.figures import MS, Result, Table, ms, percentile
from benchmarks.rig import DEVLOOP, Fifo, running, stub, workspace
from devloop.control.client import ControlClient
from devloop.errors import EngineError
from devloop.protocol import ServiceStatus, Snapshot, State


def _time(command: list[str], folder: Path) -> int:
    begin = time.monotonic_ns()
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.monotonic_ns() - begin


def help_table(rounds: int, raw: dict[str, Any]) -> Table:
    """The two commands in turn; the installed script, as a person runs it."""
    script = Path(sys.executable).with_name("devloop")
    commands = {
        'python -c "import argparse"': [sys.executable, "-c", "import argparse"],
        "devloop --help": [str(script), "--help"] if script.exists() else [*DEVLOOP, "--help"],
    }
    times: dict[str, list[int]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            taken = _time(command, workspace())
            if number:  # the first is for the caches
                times[name].append(taken)
    raw["help"] = times
    table = Table("devloop --help", ["", "p50", "p95"])
    for name, values in times.items():
        table.rows.append([f"`{name}`", ms(statistics.median(values)), ms(percentile(values, 95))])
    base = statistics.median(times['python -c "import argparse"'])
    table.notes.append(f"1.5 x the time of `import argparse` plus 40 ms is {ms(1.5 * base + 40 * MS)}")
    return table


def make_project(folder: Path, count: int) -> Fifo:
    """`count` services that say when they start and then wait; as devloop.toml and as a Procfile."""
    folder.mkdir()
    fifo = Fifo(folder / "starts")
    toml, procfile = ['[project]\nname = "startup"\n'], []
    for number in range(count):
        (folder / f"s{number}").mkdir()
        words = [stub(), str(fifo.path), f"s{number}"]
        command = ", ".join(f'"{word}"' for word in words)
        toml.append(f'[services.s{number}]\ncommand = [{command}]\nwatch = ["s{number}"]\n')
        procfile.append(f"s{number}: exec {' '.join(words)}\n")
    (folder / "devloop.toml").write_text("\n".join(toml))
    (folder / "Procfile").write_text("".join(procfile))
    return fifo


async def _all_ready(socket: Path, count: int) -> tuple[int, int]:
    """(when the engine started, when the last service got ready), Unix times by the engine's own clock."""
    async with asyncio.timeout(60):
        while True:
            try:
                client = await ControlClient.connect(socket)
                break
            except EngineError:
                await asyncio.sleep(0.002)
        ready: dict[str, int] = {}
        started = 0
        async with client:
            await client.subscribe()
            async for event in client.events():
                if isinstance(event, Snapshot):
                    started = event.started_at
                services = event.services if isinstance(event, Snapshot) else (event,)
                for each in services:
                    if isinstance(each, ServiceStatus) and each.state is State.READY:
                        ready[each.name] = each.since_at
                if len(ready) == count:
                    return started, max(ready.values())
    raise EngineError("the engine hung up")


def _first_instructions(fifo: Fifo, count: int, begin: int) -> int:
    """Nanoseconds until all services have started."""
    seen = set()
    last = begin
    while len(seen) < count:
        line = fifo.read(60)
        if line is None:
            raise SystemExit(f"only {len(seen)} of {count} services started")
        seen.add(line.name)
        last = max(last, line.at)
    return last - begin


def up_once(count: int) -> dict[str, int]:
    folder = workspace() / f"up-{time.monotonic_ns()}"
    fifo = make_project(folder, count)
    begin, begin_unix = time.monotonic_ns(), time.time_ns()
    with running([*DEVLOOP, "up", "--headless"], folder):
        started, ready = asyncio.run(_all_ready(folder / ".devloop" / "control.sock", count))
        first = _first_instructions(fifo, count, begin)
    ended = time.monotonic_ns()
    fifo.close()
    return {
        "engine to ready": ready - started,
        "command to ready": ready - begin_unix,
        "command to first instructions": first,
        "whole run": ended - begin,
    }


def honcho_once(count: int) -> int:
    folder = workspace() / f"honcho-{time.monotonic_ns()}"
    fifo = make_project(folder, count)
    program = peers.path("honcho")
    assert program is not None
    begin = time.monotonic_ns()
    with running([program, "start"], folder):
        taken = _first_instructions(fifo, count, begin)
    fifo.close()
    return taken


def run(*, quick: bool) -> Result:
    raw: dict[str, Any] = {}
    tables = [help_table(5 if quick else 30, raw)]
    table = Table(
        "devloop up --headless, trivial services",
        [
            "",
            "services",
            "engine's start to all ready",
            "command to all ready",
            "command to all first instructions",
        ],
    )
    for count in (10, 100):
        ours, theirs = [], []
        for _ in range(2 if quick else 7):
            ours.append(up_once(count))
            if peers.path("honcho"):
                theirs.append(honcho_once(count))
        raw[f"up {count}"], raw[f"honcho {count}"] = ours, theirs
        middle = {key: statistics.median(each[key] for each in ours) for key in ours[0]}
        table.rows.append(
            [
                "devloop",
                str(count),
                ms(middle["engine to ready"], 0),
                ms(middle["command to ready"], 0),
                ms(middle["command to first instructions"], 0),
            ]
        )
        if theirs:
            table.rows.append([peers.version("honcho"), str(count), "-", "-", ms(statistics.median(theirs), 0)])
    table.notes.append("medians; honcho starts processes and knows no readiness")
    return Result("startup", [*tables, table], raw)

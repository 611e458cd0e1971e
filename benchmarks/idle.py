"""What it costs to have ten services running that nobody touches.

CPU is the share of one core over the time looked at, RSS the resident memory and USS what would be free again
without the process; both are sums over the tool's own processes, not the services'. A developer without
devloop has one watcher a service, or a Procfile runner that reloads nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks import peers
from benchmarks.figures import Result, Table
from benchmarks.rig import DEVLOOP, family_of, running, stub, workspace
from benchmarks.startup import make_project

COUNT = 10
FILES = 200
"""Files in each watched folder."""
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Cost:
    """Sums over some processes."""

    processes: int
    cpu: float
    rss: float
    uss: float


def cost(processes: list[psutil.Process], seconds: float) -> Cost:
    """CPU share over this time (1 is a core), then the memory in MiB."""
    before = sum(_cpu(each) for each in processes)
    begin = time.monotonic()
    time.sleep(seconds)
    share = (sum(_cpu(each) for each in processes) - before) / (time.monotonic() - begin)
    memory = [each.memory_full_info() for each in processes]
    return Cost(len(processes), share, sum(m.rss for m in memory) / MIB, sum(m.uss for m in memory) / MIB)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def own_processes(pid: int) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """(the tool itself, its other processes): all of its family but the services."""
    service = Path(stub()).name
    others = [each for each in family_of(pid) if each.name() != service]
    return [psutil.Process(pid)], others


def _watcher(name: str) -> Callable[[Path, str], list[str]]:
    program = peers.path(name)
    assert program is not None

    def command(fifo: Path, service: str) -> list[str]:
        words = [stub(), str(fifo), service]
        if name == "nodemon":
            return [
                program,
                "--quiet",
                "--watch",
                service,
                "--ext",
                "py",
                "--exec",
                f"exec {' '.join(words)}",
            ]
        if name == "watchfiles":
            return [program, " ".join(words), service]
        return [program, "-r", "-q", "--shell=none", "-w", service, "--", *words]

    return command


def run(*, quick: bool) -> Result:
    seconds = 5 if quick else 30
    table = Table(
        f"Idle with {COUNT} services, {FILES} files each",
        ["", "processes", "CPU of a core", "RSS", "USS"],
        notes=[f"over {seconds} s; the services themselves are not counted"],
    )
    raw: dict[str, Any] = {}

    def add(name: str, found: Cost) -> None:
        raw[name] = {"processes": found.processes, "cpu": found.cpu, "rss": found.rss, "uss": found.uss}
        cells = [str(found.processes), f"{found.cpu:.2%}", f"{found.rss:.0f} MiB", f"{found.uss:.0f} MiB"]
        table.rows.append([name, *cells])

    folder = workspace() / "idle"
    fifo = make_project(folder, COUNT)
    for number in range(COUNT):
        for each in range(FILES):
            (folder / f"s{number}" / f"f{each}.py").touch()

    def wait() -> None:
        seen: set[str] = set()
        while len(seen) < COUNT and (line := fifo.read(30)) is not None:
            seen.add(line.name)
        time.sleep(3)  # what a start leaves to do
        fifo.drain()

    with running([*DEVLOOP, "up", "--headless"], folder) as process:
        wait()
        engine, others = own_processes(process.pid)
        add("devloop: engine", cost(engine, seconds))
        if others:
            add("devloop: its other processes", cost(others, 1))
    if program := peers.path("honcho"):
        with running([program, "start"], folder) as process:
            wait()
            one, others = own_processes(process.pid)
            add(f"{peers.version('honcho')} (no reload)", cost(one + others, seconds))
    for name in ("watchexec", "nodemon", "watchfiles"):
        if peers.path(name) is None:
            continue
        build = _watcher(name)
        with contextlib.ExitStack() as stack:
            tools = [stack.enter_context(running(build(fifo.path, f"s{number}"), folder)) for number in range(COUNT)]
            wait()
            parts = [own_processes(tool.pid) for tool in tools]
            add(f"{peers.version(name)}, {COUNT} times", cost([p for a, b in parts for p in a + b], seconds))
    fifo.close()
    return Result("idle", [table], raw)

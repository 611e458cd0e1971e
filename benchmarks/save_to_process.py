"""From the save of a file to the first instruction of the new process, devloop beside others.

All tools run at the same time, each over a folder and a service of its own; the saves go round, in an order
that is shuffled for each round, with random gaps: what disturbs the machine disturbs all of them alike. The
clock starts before the file is opened for writing, and stops at the first statement of the service's `main`
(a static C program, or a module of Python's). Both read CLOCK_MONOTONIC.

Each tool runs with its own defaults; where these wait on purpose, a second row has the wait turned down. What
the wait is good for, the last column tells: a file is written in pieces for 100 ms, as generators and
compilers do, and the starts are counted. More than one means that a service ran on half a file.
"""

from __future__ import annotations

import contextlib
import random
import shlex
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.figures import Result, Table, ms, percentile, spread
from benchmarks.rig import DEVLOOP, Fifo, gone, running, stub, wait_until_gone, workspace
from tests.ports import free_port

GAP = (0.1, 0.5)
"""Seconds of quiet before each save: random, so that no tool's rhythm can fall in with it."""
PATIENCE = 10.0
"""Seconds until a save counts as lost."""
MOST_LOST = 5
"""Lost saves after which a tool is broken and no longer slow."""

APP = """\
import os, time
_AT = time.monotonic_ns()
_FIFO = os.open({fifo!r}, os.O_WRONLY | os.O_NONBLOCK)
os.write(_FIFO, f"app {{os.getpid()}} {{_AT}}\\n".encode())
os.close(_FIFO)

async def app(scope, receive, send):
    while scope["type"] == "lifespan":
        message = await receive()
        await send({{"type": message["type"] + ".complete"}})
        if message["type"] == "lifespan.shutdown":
            return
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b"hello"}})
"""


@dataclass(slots=True)
class Rig:
    """One tool over one folder."""

    name: str
    folder: Path
    file: Path
    content: str
    fifo: Fifo
    saves: int = 0
    pid: int = 0
    times: list[int] = field(default_factory=list)
    moments: list[tuple[int, int]] = field(default_factory=list)
    """(save, first instruction), both monotonic."""
    lost: int = 0
    extra: int = 0
    """Starts that no save asked for."""
    left_behind: int = 0
    """Old processes that were still there 5 s later."""
    slow_starts: list[int] = field(default_factory=list)
    """Starts for each save that took 100 ms."""
    both: int = 0
    """Saves after which old and new ran at the same time, if only for a moment."""

    def first_start(self) -> bool:
        """Wait for the service's first start."""
        started = self.fifo.read(30)
        self.pid = started.pid if started else 0
        return started is not None

    def save(self) -> int:
        """Write the file, as an editor does that writes in place; the moment before, monotonic."""
        self.saves += 1
        text = f"{self.content}# {self.saves} {random.random()}\n".encode()
        begin = time.monotonic_ns()
        with self.file.open("wb", buffering=0) as file:
            file.write(text)
        return begin

    def round(self) -> None:
        """One save and what came of it."""
        self.extra += len(early := self.fifo.drain())
        if early:
            self.pid = early[-1].pid
        begin = self.save()
        started = self.fifo.read(PATIENCE)
        if started is None:
            self.lost += 1
            if self.lost == MOST_LOST:
                log = (self.folder / "tool.log").read_text()[-1000:]
                raise SystemExit(f"{self.name}: {MOST_LOST} saves without a restart; its last words:\n{log}")
            return
        self.both += not gone(self.pid)
        self.times.append(started.at - begin)
        self.moments.append((begin, started.at))
        self.left_behind += not wait_until_gone(self.pid)
        self.pid = started.pid

    def slow_save(self) -> None:
        """Write the file in 20 pieces, 5 ms apart, and count the starts."""
        self.fifo.drain()
        with self.file.open("wb", buffering=0) as file:
            for number in range(20):
                piece = self.content if number == 0 else f"# {number} {random.random()}\n"
                file.write(piece.encode())
                time.sleep(0.005)
        count = 0
        while (started := self.fifo.read(2.0)) is not None:
            count += 1
            self.pid = started.pid
        self.slow_starts.append(count)


Command = Callable[[Rig], tuple[Sequence[str], bytes | None]]


def _c_service(rig: Rig) -> list[str]:
    return [stub(), str(rig.fifo.path), "stub"]


def _devloop(rig: Rig, service: Sequence[str]) -> tuple[Sequence[str], None]:
    words = ", ".join(f'"{word}"' for word in service)
    (rig.folder / "devloop.toml").write_text(
        f'[project]\nname = "bench"\n[services.stub]\ncommand = [{words}]\nwatch = ["src"]\nready = false\n'
    )
    return [*DEVLOOP, "up", "--headless"], None


def _peer(name: str, *arguments: str) -> Command:
    def build(rig: Rig) -> tuple[Sequence[str], None]:
        program = peers.path(name)
        assert program is not None
        return [program, *arguments, *_c_service(rig)], None

    return build


def _nodemon(rig: Rig) -> tuple[Sequence[str], None]:
    program = peers.path("nodemon")
    assert program is not None
    command = shlex.join(_c_service(rig))
    return [program, "--quiet", "--watch", "src", "--ext", "py", "--exec", f"exec {command}"], None


def _entr(rig: Rig) -> tuple[Sequence[str], bytes]:
    program = peers.path("entr")
    assert program is not None
    return [program, "-n", "-r", *_c_service(rig)], f"{rig.file}\n".encode()


def _watchfiles(rig: Rig) -> tuple[Sequence[str], None]:
    program = peers.path("watchfiles")
    assert program is not None
    return [program, shlex.join(_c_service(rig)), "src"], None


def _uvicorn_words(rig: Rig) -> list[str]:
    program = peers.path("uvicorn")
    assert program is not None
    return [
        program,
        "app:app",
        "--app-dir",
        str(rig.folder / "src"),
        "--port",
        str(free_port()),
        "--log-level",
        "warning",
    ]


def _uvicorn(rig: Rig) -> tuple[Sequence[str], None]:
    return [*_uvicorn_words(rig), "--reload", "--reload-dir", "src"], None


C_TOOLS: dict[str, tuple[str, Command]] = {
    "devloop": ("", lambda rig: _devloop(rig, _c_service(rig))),
    "entr": ("entr", _entr),
    "nodemon": ("nodemon", _nodemon),
    "watchexec": ("watchexec", _peer("watchexec", "-r", "-q", "--shell=none", "-w", "src", "--")),
    "watchexec, 1 ms debounce": (
        "watchexec",
        _peer("watchexec", "-r", "-q", "--shell=none", "--debounce", "1ms", "-w", "src", "--"),
    ),
    "watchfiles (its command)": ("watchfiles", _watchfiles),
}
PYTHON_TOOLS: dict[str, tuple[str, Command]] = {
    "devloop, running uvicorn": ("uvicorn", lambda rig: _devloop(rig, _uvicorn_words(rig))),
    "uvicorn --reload": ("uvicorn", _uvicorn),
}


def make_rig(name: str) -> Rig:
    folder = workspace() / f"rig-{time.monotonic_ns()}"
    (folder / "src").mkdir(parents=True)
    fifo = Fifo(folder / "starts")
    rig = Rig(name, folder, folder / "src" / "app.py", APP.format(fifo=str(fifo.path)), fifo)
    rig.save()
    return rig


@contextlib.contextmanager
def rigs(tools: dict[str, tuple[str, Command]]) -> Iterator[list[Rig]]:
    """The tools, each running its service. One whose service does not start is reported and left out."""
    with contextlib.ExitStack() as stack:
        found = []
        for name, (peer, build) in tools.items():
            if peer and peers.path(peer) is None:
                continue
            rig = make_rig(name)
            stack.callback(rig.fifo.close)
            command, stdin = build(rig)
            # Our bench's own terminal settings must not decide how a tool behaves.
            stack.enter_context(running(command, rig.folder, stdin=stdin, environ={"NO_COLOR": "1"}))
            if rig.first_start():
                found.append(rig)
            else:
                print(f"{name} did not start its service:", (rig.folder / "tool.log").read_text()[-2000:])
        yield found


def measure(found: Sequence[Rig], rounds: int) -> None:
    time.sleep(2)  # watchers settle, and Node warms up
    for rig in found:  # the first is for the caches
        rig.round()
        rig.times.clear()
        rig.moments.clear()
    for _ in range(rounds):
        for rig in random.sample(found, len(found)):
            time.sleep(random.uniform(*GAP))
            rig.round()
    for _ in range(min(rounds, 5)):
        for rig in found:
            rig.slow_save()


def table(title: str, found: Sequence[Rig], versions: dict[str, str]) -> Table:
    result = Table(
        title,
        [
            "",
            "p50",
            "p95",
            "worst",
            "to devloop's p50",
            "saves",
            "lost",
            "double starts",
            "starts in a slow save",
        ],
    )
    base = next((statistics.median(rig.times) for rig in found if rig.name.startswith("devloop") and rig.times), 0)
    for rig in sorted(found, key=lambda each: statistics.median(each.times) if each.times else 0):
        if not rig.times:
            result.rows.append([versions[rig.name], *["-"] * 4, "0", str(rig.lost), str(rig.extra), "-"])
            continue
        middle = statistics.median(rig.times)
        result.rows.append(
            [
                versions[rig.name],
                ms(middle),
                ms(percentile(rig.times, 95)),
                ms(max(rig.times)),
                f"{middle / base:.1f} x" if base else "-",
                str(len(rig.times)),
                str(rig.lost),
                str(rig.extra),
                f"{statistics.mean(rig.slow_starts):.1f}" if rig.slow_starts else "-",
            ]
        )
        if rig.left_behind:
            result.notes.append(f"{rig.name}: {rig.left_behind} old processes still ran 5 s later")
        if rig.both:
            result.notes.append(f"{rig.name}: old and new ran side by side {rig.both} times")
    return result


def raw(found: Sequence[Rig]) -> list[dict[str, Any]]:
    return [
        {
            "tool": rig.name,
            "ns": rig.times,
            "spread": spread(rig.times) if rig.times else {},
            "lost": rig.lost,
        }
        for rig in found
    ]


def run(*, quick: bool) -> Result:
    rounds = 8 if quick else 100
    tables, values = [], {}
    for key, title, tools in (
        ("c", "Save to first instruction, a C program", C_TOOLS),
        ("python", "Save to first instruction, a web application in Python", PYTHON_TOOLS),
    ):
        with rigs(tools) as found:
            measure(found, rounds if key == "c" else max(rounds // 2, 5))
        names = {name: peers.version(peer) if peer else "devloop" for name, (peer, _) in tools.items()}
        versions = {
            name: name if name.startswith("devloop") else f"{names[name]}{name.removeprefix(peer)}"
            for name, (peer, _) in tools.items()
        }
        tables.append(table(title, found, versions))
        values[key] = raw(found)
    absent = peers.missing(["entr", "nodemon", "watchexec", "watchfiles", "uvicorn"])
    if absent:
        tables[0].notes.append(f"not installed: {', '.join(absent)} (python -m benchmarks.peers --install)")
    return Result("save_to_process", tables, values)

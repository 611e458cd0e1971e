"""What a big folder costs that is moved away, brought back, removed and written anew, under load.

One service over a folder of 50,000 files in 1,000 folders, each tool in its turn over a copy of its own. Meanwhile
every core is kept busy by somebody else. The processor time is the tool's own, without its service, from the command
until the tool has come to rest. How long devloop does not answer is measured by asking its engine for its state over
the control socket, again and again: the longest answer counts, and the first row says what that is when nothing
happens. The peers have nothing that could be asked.

DEVLOOP_BEFORE names another checkout of devloop, which is measured in the same run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks import peers
from benchmarks.figures import MS, Result, Table, ms
from benchmarks.rig import DEVLOOP, Fifo, family_of, running, stub, workspace
from devloop.control.client import call
from devloop.errors import DevloopError
from devloop.state import StateFolder

FOLDERS, FILES = 1000, 50
REST = 1.5
"""Seconds without work after which a tool has come to rest."""
BUSY = 0.3
"""Of a core: less is no work. What devloop is asked meanwhile takes some of it."""
LONGEST, QUICK = 60.0, 5.0
"""Seconds after which it is no longer waited for; in a quick round."""


@dataclass(frozen=True, slots=True)
class Tool:
    """How it is started over `src`, and where its source is, if that is another checkout of devloop."""

    name: str
    command: Callable[[Path, Fifo], list[str]]
    source: str = ""

    @property
    def is_devloop(self) -> bool:
        return self.name.startswith("devloop")


def _devloop(folder: Path, fifo: Fifo) -> list[str]:
    words = ", ".join(f'"{word}"' for word in (stub(), str(fifo.path), "big"))
    (folder / "devloop.toml").write_text(f'[services.big]\ncommand = [{words}]\nwatch = ["src"]\n')
    return [*DEVLOOP, "up", "--headless"]


def _watchexec(folder: Path, fifo: Fifo) -> list[str]:
    return [str(peers.path("watchexec")), "-r", "-q", "--shell=none", "-w", "src", "--", stub(), str(fifo.path), "big"]


def _nodemon(folder: Path, fifo: Fifo) -> list[str]:
    service = f"exec {stub()} {fifo.path} big"
    return [str(peers.path("nodemon")), "--quiet", "--watch", "src", "--ext", "py", "--exec", service]


def tools() -> Iterator[Tool]:
    yield Tool("devloop", _devloop)
    if before := os.environ.get("DEVLOOP_BEFORE"):
        yield Tool("devloop before", _devloop, before)
    for name, command in (("watchexec", _watchexec), ("nodemon", _nodemon)):
        if peers.path(name) is not None:
            yield Tool(name, command)


def plant(folder: Path, folders: int) -> None:
    for number in range(folders):
        below = folder / f"d{number}"
        below.mkdir(parents=True)
        for each in range(FILES):
            (below / f"f{each}.py").write_text(f"{number} {each}\n")


@contextlib.contextmanager
def load() -> Iterator[None]:
    """A process for each core that never rests."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


class Asking(threading.Thread):
    """Asks an engine for its state, over and over; the longest answer in nanoseconds."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        own = StateFolder(folder).socket
        self._socket = own if own.exists() else folder / ".devloop" / "control.sock"
        self._done = threading.Event()
        self.longest = 0

    def run(self) -> None:
        while not self._done.is_set():
            begin = time.monotonic_ns()
            with contextlib.suppress(DevloopError):
                call(self._socket, "status")
            self.longest = max(self.longest, time.monotonic_ns() - begin)
            self._done.wait(0.05)

    def stop(self) -> int:
        self._done.set()
        self.join()
        return self.longest


def processor(pid: int) -> float:
    """Seconds that the tool and its other processes have taken, also those that have ended, without the service."""
    tool = psutil.Process(pid)
    ended = tool.cpu_times()
    service, total = Path(stub()).name, ended.children_user + ended.children_system
    for each in [tool, *family_of(pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            if each.name() != service:
                times = each.cpu_times()
                total += times.user + times.system
    return total


def rest(pid: int, longest: float) -> float:
    """Wait until the tool has come to rest, at most so many seconds; its processor time then."""
    end = time.monotonic() + longest
    last, since = processor(pid), time.monotonic()
    while time.monotonic() < end and time.monotonic() - since < REST:
        time.sleep(0.25)
        now = processor(pid)
        if now - last > BUSY * 0.25:
            since = time.monotonic()
        last = now
    return processor(pid)


def deeds(folder: Path, folders: int) -> dict[str, Callable[[], object]]:
    big, away = folder / "src" / "big", folder / "away"

    def shell(*words: object) -> Callable[[], object]:
        return lambda: subprocess.run([str(word) for word in words], check=True)

    return {
        "nothing": lambda: time.sleep(2),
        "moved away": shell("mv", big, away),
        "moved back": shell("mv", away, big),
        "removed": shell("rm", "-rf", big),
        "written anew": lambda: plant(big, folders),
    }


def measure(tool: Tool, folders: int, longest: float) -> dict[str, dict[str, int]]:
    folder = workspace() / f"big-{time.monotonic_ns()}"
    plant(folder / "src" / "big", folders)
    (folder / "src" / "main.py").write_text("1\n")
    fifo = Fifo(folder / "starts")
    environ = {"PYTHONPATH": tool.source} if tool.source else {}
    found: dict[str, dict[str, int]] = {}
    with running(tool.command(folder, fifo), folder, environ=environ) as process:
        if fifo.read(60) is None:
            raise SystemExit(f"{tool.name} did not start its service: {(folder / 'tool.log').read_text()[-2000:]}")
        time.sleep(3)
        rest(process.pid, longest)
        with load():
            for name, deed in deeds(folder, folders).items():
                fifo.drain()
                asking = Asking(folder) if tool.is_devloop else None
                before = processor(process.pid)
                if asking is not None:
                    asking.start()
                deed()
                after = rest(process.pid, longest)
                found[name] = {"ns": int((after - before) * 1000) * MS, "starts": len(fifo.drain())}
                if asking is not None:
                    found[name]["unanswered"] = asking.stop()
    fifo.close()
    shutil.rmtree(folder, ignore_errors=True)
    return found


def table(results: dict[str, dict[str, dict[str, int]]], names: Sequence[str], folders: int) -> Table:
    head = ["", *(f"{name}: processor" for name in results)]
    head += [f"{name}: longest without an answer" for name in results if name.startswith("devloop")]
    found = Table(f"A folder of {folders * FILES:,} files, under load", head)
    for name in names:
        row = [f"{ms(each[name]['ns'], 0)}, {each[name]['starts']} starts" for each in results.values()]
        row += [ms(each[name]["unanswered"], 0) for each in results.values() if "unanswered" in each[name]]
        found.rows.append([name, *row])
    found.notes.append("devloop's processor time has the answers in it that it was asked for; `nothing` says how much")
    absent = peers.missing(["watchexec", "nodemon"])
    if absent:
        found.notes.append(f"not installed: {', '.join(absent)} (python -m benchmarks.peers --install)")
    return found


def run(*, quick: bool) -> Result:
    folders, longest = (10, QUICK) if quick else (FOLDERS, LONGEST)
    results: dict[str, dict[str, dict[str, int]]] = {}
    for tool in tools():
        name = tool.name if tool.is_devloop else peers.version(tool.name)
        results[name] = measure(tool, folders, longest)
    raw: dict[str, Any] = {"files": folders * FILES, "tools": results}
    return Result("big_folder", [table(results, list(deeds(Path(), 0)), folders)], raw)

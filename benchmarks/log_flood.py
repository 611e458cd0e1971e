"""One service prints 100,000 lines a second: what of memory, of the lines, and of a neighbour's reload?

Beside it, `honcho` with the flood alone: it prints what it gets, and reloads nothing. Both print into a file, where the
lines that arrived are counted.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks import peers
from benchmarks.figures import Result, Table, ms, percentile
from benchmarks.idle import MIB
from benchmarks.rig import DEVLOOP, Fifo, Started, flood, running, stub, workspace
from benchmarks.save_to_process import Rig, measure

RATE = 100_000


class Meter(threading.Thread):
    """Samples a process's memory and CPU until told to stop."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self.process = process
        self.rss: list[float] = []
        self.begin = self._cpu()
        self.began = time.monotonic()
        self.ending = threading.Event()
        self.start()

    def _cpu(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def run(self) -> None:
        while not self.ending.wait(0.1):
            self.rss.append(self.process.memory_info().rss / MIB)

    def stop(self) -> float:
        """CPU share since the start, of one core."""
        self.ending.set()
        self.join()
        return (self._cpu() - self.begin) / (time.monotonic() - self.began)


def make_folder(name: str, seconds: int) -> tuple[Path, Fifo, Rig]:
    """Two services: `flood`, off at first, and `stub`, which is reloaded meanwhile."""
    folder = workspace() / name
    (folder / "src").mkdir(parents=True)
    floods = Fifo(folder / "floods")
    starts = Fifo(folder / "starts")
    rig = Rig("devloop", folder, folder / "src" / "app.py", "", starts)
    rig.save()
    (folder / "devloop.toml").write_text(
        f'[project]\nname = "flood"\n'
        f'[services.flood]\ncommand = ["{flood()}", "{floods.path}", "{RATE}", "{seconds}"]\nmode = "off"\n'
        f"watch = []\nready = false\n"
        f'[services.stub]\ncommand = ["{stub()}", "{starts.path}", "stub"]\nwatch = ["src"]\nready = false\n'
    )
    (folder / "Procfile").write_text(f"flood: exec {flood()} {floods.path} {RATE} {seconds}\n")
    return folder, floods, rig


def reloads(rig: Rig, count: int) -> list[int]:
    rig.times.clear()
    for _ in range(count):
        # Random: devloop takes saves at a regular distance from the start for the service's own.
        time.sleep(random.uniform(0.1, 0.4))
        rig.round()
    return list(rig.times)


def kept_lines(folder: Path) -> int:
    """Lines of the flood in the log files on disk."""
    files = [file for file in (folder / ".devloop" / "logs").glob("flood*") if file.suffix != ".gz"]
    return sum(file.read_bytes().count(b"quick brown fox") for file in files)


def printed(folder: Path) -> int:
    """Lines of the flood in the file that the tool's output goes to."""
    with (folder / "tool.log").open("rb") as file:
        return sum(b"quick brown fox" in line for line in file)


def run(*, quick: bool) -> Result:
    seconds = 4 if quick else 15
    saves = 5 if quick else 40
    raw: dict[str, Any] = {}
    table = Table(
        f"{RATE:,} lines/s from one service for {seconds} s",
        [
            "",
            "lines/s taken",
            "CPU of a core",
            "RSS before",
            "RSS at most",
            "RSS after",
            "lines in the output",
            "lines kept on disk",
        ],
    )
    beside = Table("A neighbour's reload meanwhile", ["", "p50", "p95", "worst", "saves"])

    for name, start in (("devloop, detached", _detached), ("devloop, printing it all", _headless)):
        table.rows.append(_devloop(name, start, seconds, saves, beside, raw))
    if program := peers.path("honcho"):
        table.rows.append(_peer("honcho", [program, "start"], seconds, raw))
    table.notes.append("every output goes to a file; `up --detach` prints nothing")
    return Result("log_flood", [table, beside], raw)


@contextlib.contextmanager
def _headless(folder: Path) -> Iterator[int]:
    """`up --headless`: the engine itself prints every line, here to a file. Gives its pid."""
    with running([*DEVLOOP, "up", "--headless", "stub"], folder) as process:
        yield process.pid


@contextlib.contextmanager
def _detached(folder: Path) -> Iterator[int]:
    """`up --detach`: as under the TUI, which gets the lines that it shows and no others."""
    subprocess.run([*DEVLOOP, "up", "--detach", "stub"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    try:
        yield int((folder / ".devloop" / "engine.lock").read_text().split()[0])
    finally:
        subprocess.run([*DEVLOOP, "down"], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def _devloop(
    name: str,
    start: Callable[[Path], contextlib.AbstractContextManager[int]],
    seconds: int,
    saves: int,
    beside: Table,
    raw: dict[str, Any],
) -> list[str]:
    folder, floods, rig = make_folder(name.replace(", ", "-").replace(" ", "-"), seconds)
    with start(folder) as pid:
        if not rig.first_start():
            raise SystemExit((folder / "tool.log").read_text()[-2000:])
        measure([rig], 2)
        quiet = reloads(rig, saves)
        engine = psutil.Process(pid)
        before = engine.memory_info().rss / MIB
        toggle = [*DEVLOOP, "toggle", "flood", "local"]
        subprocess.run(toggle, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        meter = Meter(engine)
        loud = reloads(rig, min(saves, int((seconds - 1) / 0.35)))
        line = floods.read(seconds * 3)
        share = meter.stop()
        time.sleep(2)
        after = engine.memory_info().rss / MIB
        kept, shown = kept_lines(folder), printed(folder) if start is _headless else None
    rig.fifo.close()
    floods.close()
    rate = line.pid / (line.at / 1e9) if line else 0.0
    for when, values in (("quiet", quiet), ("during the flood", loud)):
        cells = [ms(v) for v in (statistics.median(values), percentile(values, 95), max(values))]
        beside.rows.append([f"{name}: {when}", *cells, str(len(values))])
    raw[name] = {
        "rate": rate, "cpu": share, "rss": meter.rss, "before": before, "after": after, "kept": kept, "printed": shown,
        "quiet": quiet, "loud": loud,
    }  # fmt: skip
    memory = [f"{value:.0f} MiB" for value in (before, max(meter.rss), after)]
    return [
        name,
        f"{rate:,.0f}",
        f"{share:.0%}",
        *memory,
        "-" if shown is None else _share(shown, line),
        _share(kept, line),
    ]


def _share(count: int, line: Started | None) -> str:
    return f"{count:,} ({count / line.pid:.1%})" if line else f"{count:,}"


def _peer(name: str, command: list[str], seconds: int, raw: dict[str, Any]) -> list[str]:
    folder, floods, rig = make_folder(f"flood-{name}", seconds)
    with running(command, folder) as process:
        time.sleep(0.5)
        one = psutil.Process(process.pid)
        before = one.memory_info().rss / MIB
        meter = Meter(one)
        line = floods.read(seconds * 6)
        share = meter.stop()
        after = one.memory_info().rss / MIB
        time.sleep(2)
        shown = printed(folder)
    rig.fifo.close()
    floods.close()
    rate = line.pid / (line.at / 1e9) if line else 0.0
    raw[name] = {"rate": rate, "cpu": share, "rss": meter.rss, "printed": shown}
    return [
        peers.version(name),
        f"{rate:,.0f}" if rate else f"not done in {seconds * 6} s",
        f"{share:.0%}",
        *(f"{value:.0f} MiB" for value in (before, max(meter.rss), after)),
        _share(shown, line),
        "-",
    ]

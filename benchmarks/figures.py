"""Numbers and tables: what all the benchmarks print, and the file that keeps a run."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MS = 1_000_000


@dataclass(slots=True)
class Table:
    """One table of a result; the first column names the row."""

    title: str
    head: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", "| " + " | ".join(self.head) + " |"]
        lines.append("| --- |" + " ---: |" * (len(self.head) - 1))
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes), ""])


@dataclass(slots=True)
class Result:
    """What a benchmark found: tables to read, and its raw values to work with."""

    name: str
    tables: list[Table]
    raw: dict[str, Any]


def percentile(values: Sequence[float], p: float) -> float:
    """Linear interpolation between closest ranks, as `devloop stats` has it."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * p / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def ms(ns: float, digits: int = 1) -> str:
    return f"{ns / MS:.{digits}f} ms"


def spread(values: Sequence[float]) -> dict[str, float]:
    """Nanoseconds: median, 95th percentile, extremes."""
    return {
        "n": len(values),
        "min": min(values),
        "p50": statistics.median(values),
        "p95": percentile(values, 95),
        "max": max(values),
    }


def machine() -> dict[str, Any]:
    """Where this ran: figures without it mean little."""
    model = platform.processor()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load": [round(each, 2) for each in os.getloadavg()],
    }


def machine_line(info: Mapping[str, Any]) -> str:
    return (
        f"{info['cpu']}, {info['cores']} cores, {info['kernel']}, Python {info['python']}, "
        f"load {info['load'][0]} at the start, {info['at']}"
    )


def keep(results: Sequence[Result], info: Mapping[str, Any], *, quick: bool) -> Path:
    """Write the run down; the file's path."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / ".gitignore").write_text("*\n")
    names = "-".join(result.name for result in results) if len(results) < 3 else "all"
    file = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}-{names}.json"
    data = {"machine": info, "quick": quick, "results": [asdict(result) for result in results]}
    file.write_text(json.dumps(data, indent=1) + "\n")
    return file

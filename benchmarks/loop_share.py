"""Where devloop's time goes within a loop, from the stamps of `devloop stats --json`.

"Our own share" is all but the debounce (which waits on purpose, for whole saves), the old process's exit and
the new one's boot: from the save to its detection, and from the moment nothing is left to wait for to the new
process's spawn. The save and the first instruction are the benchmark's own stamps: a file's mtime is only as
fine as the kernel's tick on many systems.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.figures import Result, Table, ms, percentile
from benchmarks.rig import DEVLOOP
from benchmarks.save_to_process import C_TOOLS, Rig, measure, rigs

PARTS = (
    "save to detected",
    "debounce",
    "old process's exit",
    "spawn",
    "boot to first instruction",
    "total",
    "own share",
)


def parts(begin: int, first: int, loop: dict[str, Any]) -> dict[str, int]:
    """One loop in parts, nanoseconds. `begin` and `first` are Unix times, as the loop's are."""
    at = {phase: loop["started_at"] + after for phase, after in loop["stamps"].items()}
    gate = max(at[phase] for phase in ("settled", "built", "stopped") if phase in at)
    # devloop stamps `spawned` once it is told so; on a busy machine the process may be quicker.
    spawned = min(at["spawned"], first)
    watch, spawn = at["detected"] - begin, spawned - gate
    return {
        "save to detected": watch,
        "debounce": at["settled"] - at["detected"],
        "old process's exit": max(at.get("stopped", 0) - at["settled"], 0),
        "spawn": spawn,
        "boot to first instruction": first - spawned,
        "total": first - begin,
        "own share": watch + spawn,
    }


def recorded(rig: Rig, count: int) -> list[dict[str, Any]]:
    """The last loops that devloop itself has recorded."""
    command = [*DEVLOOP, "stats", "--json", "--last", str(count)]
    done = subprocess.run(command, cwd=rig.folder, capture_output=True, text=True, check=True)
    loops: list[dict[str, Any]] = json.loads(done.stdout)["loops"]
    return [loop for loop in loops if loop["cause"] == "change" and loop["outcome"] == "ok"]


def matched(rig: Rig, loops: Sequence[dict[str, Any]]) -> list[dict[str, int]]:
    """Each save with the loop that it began."""
    offset = time.time_ns() - time.monotonic_ns()
    found = []
    for begin, first in rig.moments:
        for loop in loops:
            detected = loop["started_at"] + loop["stamps"]["detected"]
            if begin + offset <= detected <= first + offset:
                found.append(parts(begin + offset, first + offset, loop))
    return found


def run(*, quick: bool) -> Result:
    with rigs({"devloop": C_TOOLS["devloop"]}) as (rig,):
        measure([rig], 15 if quick else 200)
        time.sleep(0.5)
        loops = recorded(rig, 1000)
    found = matched(rig, loops)
    table = Table("Where a loop of devloop's goes", ["", "p50", "p95", "worst"])
    for name in PARTS:
        values = [each[name] for each in found]
        if values:
            cells = [ms(v, 2) for v in (statistics.median(values), percentile(values, 95), max(values))]
            table.rows.append([name, *cells])
    table.notes.append(f"{len(found)} loops of {len(rig.moments)} saves; own share = save to detected + spawn")
    return Result("loop_share", [table], {"parts": found})

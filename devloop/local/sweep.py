"""What is left of an engine that was killed together with its holders: found by its run id, and ended.

The holders end everything when only the engine dies. This is for `pkill -9 -f devloop`.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from devloop.local.process import RUN_VARIABLE


def note(record: Path, run_id: str) -> None:
    """Write down that an engine with this run id is running. A clean end removes the record."""
    record.write_text(json.dumps({"run": run_id, "engine": os.getpid()}))


def sweep(record: Path) -> int:
    """End what the engine of the record has left; the caller holds the project's lock.

    Returns the number of processes that were ended. /proc/PID/environ holds the environment that a process
    began with (proc(5)); only this user's can be read, and only these can be a service's.
    """
    try:
        run_id = str(json.loads(record.read_text())["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    mark = f"{RUN_VARIABLE}={run_id}".encode()
    ended = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)
                ended += 1
        except OSError:
            continue  # it has ended by itself, or is another user's
    return ended

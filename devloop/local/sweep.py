"""What is left of an engine that was killed together with its holders: found by its run id, and ended.

The holders end everything when only the engine dies. This is for `pkill -9 -f devloop`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

from devloop.local.process import RUN_VARIABLE


def note(record: Path, run_id: str) -> None:
    """Write down that an engine with this run id is running. A clean end removes the record.

    On a full disk there is none, which costs the sweep after a `kill -9` of engine and holders, and nothing else.
    """
    text = json.dumps({"run": run_id, "engine": os.getpid()})
    with contextlib.suppress(OSError):
        record.unlink(missing_ok=True)  # it may be a link
        record.write_text(text)


def forget(record: Path) -> None:
    """Remove the record, as nothing is left."""
    with contextlib.suppress(OSError):  # its folder may be gone, or its disk read-only by now
        record.unlink()


def noted(record: Path) -> str | None:
    """The run id of the record."""
    try:
        return str(json.loads(record.read_text())["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def left(run_id: str) -> list[int]:
    """Processes that belong to this run.

    /proc/PID/environ holds the environment that a process began with (proc(5)); only this user's can be read, and
    only these can be a service's.
    """
    mark = f"{RUN_VARIABLE}={run_id}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue  # it has ended by itself, or is another user's
    return found


def sweep(record: Path) -> int:
    """End what the engine of the record has left; the caller holds the project's lock.

    Returns the number of processes that were ended.
    """
    run_id = noted(record)
    ended = 0
    for pid in left(run_id) if run_id is not None else ():
        try:
            os.kill(pid, signal.SIGKILL)
            ended += 1
        except OSError:
            continue
    return ended

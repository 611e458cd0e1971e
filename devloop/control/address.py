"""A Unix socket's address, however long its path is.

`sun_path` holds 108 bytes (unix(7)). A longer path is named through an open descriptor of its folder, as
/proc/self/fd/N/NAME: so a socket is where its state folder is, and nothing hangs on TMPDIR or who asks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from devloop.errors import EngineError

LONGEST = 100
"""Bytes that are safe everywhere: macOS has 104."""
_FDS = Path("/proc/self/fd")


@contextlib.contextmanager
def address(path: Path) -> Iterator[str]:
    """What to bind or connect to, meanwhile. Raises OSError if the folder is not there, EngineError without /proc."""
    if len(os.fsencode(path)) <= LONGEST:
        yield str(path)
        return
    if not _FDS.exists():
        hint = "set DEVLOOP_STATE_DIR to a folder with a shorter one"
        raise EngineError("this path is too long for a socket", where=str(path), hint=hint)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"{_FDS}/{folder}/{path.name}"
    finally:
        os.close(folder)

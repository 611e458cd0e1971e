"""What lies at a path."""

from __future__ import annotations

import stat
from pathlib import Path


def kind(path: Path) -> str:
    """What is there, links followed, in words; empty if nothing is, or nothing that may be seen."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # ValueError: a null character
        return ""
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")

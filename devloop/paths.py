"""What lies at a path, and where a user's own things do."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path


def kind(path: Path) -> str:
    """What is there, links followed, in words; empty if nothing is, or nothing that may be seen."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # ValueError: a null character
        return ""
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def state_home(environ: Mapping[str, str]) -> Path:
    """Where programs keep what is this user's and this machine's (XDG Base Directory Specification)."""
    named = environ.get("XDG_STATE_HOME", "")
    # The specification: a path that is not absolute is to be ignored.
    if named.startswith("/"):
        return Path(named)
    try:
        return Path("~/.local/state").expanduser()
    except RuntimeError:  # no HOME, and a user without a login name: containers have / for them
        return Path("/.local/state")

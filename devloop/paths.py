"""What lies at a path, and where a user's own things do."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path

KINDS = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
A_DEVICE = "a device"
LARGE = 64 << 20
"""Bytes of what somebody has written, or a program for them."""
SMALL = 1 << 20
"""Bytes of files that are a few lines, as a rule: .gitignore, a git folder's."""


def kind(path: Path) -> str:
    """What is there, links followed, in words; empty if nothing is, or nothing that may be seen."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # ValueError: a null character
        return ""
    return KINDS.get(stat.S_IFMT(mode), A_DEVICE)


def read_file(path: Path, most: int, *, whole: bool = True) -> bytes:
    """What a file holds that a project names, or that lies in its folder: it may be anything.

    The null device is empty. Never waits: a named pipe has nobody who writes, a terminal nobody who types. Raises
    OSError, for anything else than a file too, and for one of more than `most` bytes; if not `whole`, so many are read
    of that.
    """
    # O_NONBLOCK: opening a pipe waits for its other end. O_NOCTTY: a terminal that is opened may become this process's.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            if stat.S_ISCHR(found.st_mode) and found.st_rdev == Path(os.devnull).stat().st_rdev:
                return b""
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            raise OSError(errno.EINVAL, f"this is {KINDS.get(stat.S_IFMT(found.st_mode), A_DEVICE)}, and no file")
        parts: list[bytes] = []
        left = most + whole
        while left and (part := file.read(min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
    if whole and not left:
        raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MiB")
    return b"".join(parts)


def read_text(path: Path, most: int) -> str:
    """The same as text; what is not UTF-8 is replaced."""
    return read_file(path, most).decode(errors="replace")


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

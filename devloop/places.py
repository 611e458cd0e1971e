"""Whose a file, a folder or a socket's other end is: the one place for checks of owner, mode and links.

Who owns a place decides what is in it. This user and root may; anybody else's is not used, as a project, as a state
folder or as an engine, whatever its modes say.
"""

from __future__ import annotations

import os
import shlex
import socket
import stat
import struct
import sys
from enum import Enum
from pathlib import Path

from devloop.errors import DevloopError

LINUX = sys.platform == "linux"
_CREDENTIALS = struct.Struct("3i")
"""struct ucred of unix(7): pid, uid, gid."""


def mine() -> frozenset[int]:
    """The users whose places are used: this one, root, and whoever has called sudo, as git takes SUDO_UID."""
    found = {os.geteuid(), 0}
    caller = os.environ.get("SUDO_UID", "")
    if os.geteuid() == 0 and caller.isascii() and caller.isdigit():
        found.add(int(caller))
    return frozenset(found)


def stranger(path: Path, *, follow: bool = True) -> int | None:
    """The user that a path belongs to, if that is none of `mine`; None also if nothing is there."""
    try:
        uid = (path.stat() if follow else path.lstat()).st_uid
    except (OSError, ValueError):
        return None
    return None if uid in mine() else uid


def user_name(uid: int) -> str:
    """The login name, or the number where it has none."""
    import pwd  # late: only for messages

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user with number {uid}"


def runtime_folder() -> Path | None:
    """$XDG_RUNTIME_DIR, if it is what the XDG specification says: this user's, with mode 0700.

    After `su` it may be somebody else's, who would see what is put there.
    """
    named = os.environ.get("XDG_RUNTIME_DIR", "")
    if not named.startswith("/"):
        return None
    try:
        found = Path(named).stat()
    except OSError:
        return None
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
    return Path(named) if private else None


class Looks(Enum):
    """What is done about a folder that others may look into, but not change."""

    REFUSED = 0
    CLOSED = 1
    """It is closed to them: a repository may have brought it."""
    LEFT = 2
    """The user has named it."""


def private_folder(
    path: Path, what: str, *, hint: str, link_hint: str | None = None, looks: Looks = Looks.REFUSED
) -> None:
    """Raise DevloopError unless this is a folder of this user's, no link, that nobody else may change.

    `what` names it in messages. Raises FileNotFoundError and NotADirectoryError if no folder is there.
    """
    or_else = f"if it is yours alone: chmod go= {shlex.quote(str(path))}; or {hint}"
    descriptor = _opened(path, what, hint if link_hint is None else link_hint)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise DevloopError(f"{what} belongs to another user", where=str(path), hint=hint)
        if found.st_mode & 0o022:
            raise DevloopError(f"others may write to {what}", where=str(path), hint=or_else)
        if found.st_mode & 0o077 and looks is not Looks.LEFT:
            if looks is Looks.REFUSED:
                raise DevloopError(f"others may look into {what}", where=str(path), hint=or_else)
            try:
                os.fchmod(descriptor, 0o700)
            except PermissionError:  # FAT and the like have one mode for all
                raise DevloopError(f"others may look into {what}", where=str(path), hint=or_else) from None
    finally:
        os.close(descriptor)


def _opened(path: Path, what: str, hint: str) -> int:
    """The folder itself, so that what is checked is what is changed."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError:
        found = path.lstat()  # a folder of somebody else's, or one of this user's without a mode
        if found.st_uid == os.geteuid() and stat.S_ISDIR(found.st_mode):
            path.chmod(0o700)
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        raise DevloopError(f"{what} belongs to another user", where=str(path), hint=hint) from None
    except OSError:
        if path.is_symlink():
            raise DevloopError(f"{what} is a link", where=str(path), hint=hint) from None
        raise


def peer(connection: socket.socket) -> tuple[int | None, int | None]:
    """The pid and the user of a Unix socket's other end (SO_PEERCRED); None where the system does not tell."""
    if not LINUX:
        return None, None
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid or None, uid  # 0: a process of another pid namespace

"""How an engine is found by its project's folder alone, whatever has become of its state folder.

The engine holds an abstract Unix socket (unix(7)) that is named by its user and the folder's device and inode. The name
is there while the engine lives, has no file that could be removed, and moves with the folder. Nothing is said over
it: the kernel tells who holds it (SO_PEERCRED), so one that a stranger holds is no engine. What can be asked of an
engine is asked at its control socket, which only its user can reach; abstract sockets have no modes.

Linux alone has such sockets; elsewhere, and across network namespaces, the state folder has to do.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from devloop.places import LINUX, peer

BACKLOG = 1024
"""So many may ask between two `hang_up`."""


class Presence:
    """This engine's; held until it is closed. If the name can't be had, there is none, which is no error."""

    def __init__(self, root: Path) -> None:
        self._root: int | None = None
        self._socket: socket.socket | None = None
        if not LINUX:
            return
        try:
            self._root = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.setblocking(False)
            self._socket.bind(_name(os.fstat(self._root)))
            self._socket.listen(BACKLOG)
        except OSError:
            self.close()

    @property
    def removed(self) -> bool:
        """Whether the project's folder was removed; a folder that was only moved is still there."""
        try:
            return self._root is not None and os.fstat(self._root).st_nlink == 0
        except OSError:  # a network file system that has lost it
            return False

    def hang_up(self) -> None:
        """Let go of those who have asked: the kernel keeps each of them until then, and so many at the most."""
        with contextlib.suppress(OSError):
            while self._socket is not None:
                self._socket.accept()[0].close()

    def close(self) -> None:
        """Give the name back."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._root is not None:
            os.close(self._root)
            self._root = None


def engine_of(root: Path) -> int | None:
    """The pid of this user's engine of the project in this folder; None if there is none."""
    if not LINUX:
        return None
    with socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)
        try:
            asking.connect(_name(root.stat()))
        except OSError:
            return None
        pid, uid = peer(asking)
    return pid if uid == os.geteuid() else None


def open_file_of(pid: int, name: str) -> Path | None:
    """Where a file of this name is, or was, that a process of this user has open (proc(5))."""
    folder = f"/proc/{pid}/fd"
    try:
        for each in os.listdir(folder):  # noqa: PTH208 - names are enough
            path = os.readlink(f"{folder}/{each}").removesuffix(" (deleted)")  # noqa: PTH115
            if os.path.basename(path) == name:  # noqa: PTH119 - and no Path for each
                return Path(path)
    except OSError:
        pass
    return None


def is_stopped(pid: int | None) -> bool:
    """Whether a process is stopped, by SIGSTOP, Ctrl-Z or a debugger (proc(5), `state`); None is not."""
    if pid is None:
        return False
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[:1] in (["T"], ["t"])


def _name(found: os.stat_result) -> bytes:
    return b"\0devloop/%d/%d:%d" % (os.geteuid(), found.st_dev, found.st_ino)

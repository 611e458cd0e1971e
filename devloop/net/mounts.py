"""The mounts of a service: files and folders at their absolute paths, in a mount namespace of its own (mount(2)).

A mount needs something to be mounted on, and an ordinary user can't make `/data` or
`/run/secrets/kubernetes.io`. Where the nearest folder that exists is the user's own, an empty folder is made in
it (`Grafts.made` names them, to be removed in the end). Everywhere else that folder is rebuilt: a tmpfs takes
its place, with each old entry bound back into it, as bubblewrap does. For `/` this is a new root (pivot_root(2)).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_SLAVE = 1, 32, 4096, 16384, 1 << 19  # sys/mount.h
_MS_NOSUID, _MS_NODEV = 2, 4
_MNT_DETACH = 2
# statvfs(3) names the flags that a remount in a user namespace has to keep; most have the number that mount(2) uses.
_KEEP = {1: 1, 2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Bind:
    """`source`, a file or folder of the host, stands at `target`, an absolute path; both are absolute."""

    source: str
    target: str
    read_only: bool = False


def _failed(what: str, path: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}", path)


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2). Raises OSError."""
    encoded = (os.fsencode(source), os.fsencode(target), kind and kind.encode(), flags, data and data.encode())
    if _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(encoded[3]), encoded[4]):
        raise _failed("mount", target)


def bind(source: str, target: str, *, read_only: bool = False) -> None:
    """Bind a file or folder, with what is mounted below it. Raises OSError."""
    mount(source, target, None, MS_BIND | MS_REC)
    if read_only:
        flags = os.statvfs(target).f_flag
        kept = sum(ms for st, ms in _KEEP.items() if flags & st)
        mount("none", target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def private() -> None:
    """What is mounted here stays here; what the host mounts later still arrives."""
    mount("none", "/", None, MS_REC | MS_SLAVE)


class Grafts:
    """The binds of one mount namespace: made, kept, made again if the host takes one away."""

    def __init__(self, owns: Callable[[Path], bool] | None = None) -> None:
        self._owns = owns or _is_users_own
        self._binds: dict[str, Bind] = {}
        self._ids: dict[str, int] = {}
        """The kernel's number of each of them, to tell it from what somebody else has mounted there."""
        self._rebuilt: set[int] = set()
        """Device numbers of the tmpfs that took a folder's place."""
        self.made: list[str] = []
        """Empty folders and files that were made on the host to mount on; the deepest last."""

    def add(self, new: Bind) -> None:
        """Put it in place; over what was there before. Raises OSError, ValueError for a relative path.

        A bind of our own is taken away first, and with it what lies below it: one that were mounted on the old one's
        folder would go when somebody removes that (the kernel detaches what is mounted on a folder that is removed).
        """
        if not (new.source.startswith("/") and new.target.startswith("/")):
            raise ValueError(f"a mount needs absolute paths: {new.source} on {new.target}")
        source = Path(new.source).resolve(strict=True)
        if new.target in self._binds and _mount_id(new.target) == self._ids[new.target]:
            self.remove(new.target)
        target = self._place(Path(new.target), folder=source.is_dir())
        bind(str(source), str(target), read_only=new.read_only)
        self._binds[new.target] = new
        self._ids[new.target] = _mount_id(new.target)

    def remove(self, target: str) -> None:
        """Take a bind away again; one that is not there is passed over."""
        if self._binds.pop(target, None) is not None:
            _libc.umount2(os.fsencode(os.path.realpath(target)), _MNT_DETACH)

    def refresh(self) -> list[str]:
        """Bind again what the host took away; the targets.

        When the host replaces a file by rename(2), which is how NetworkManager and systemd-resolved write
        /etc/resolv.conf, the kernel detaches what is mounted on it in every other mount namespace.
        """
        again = []
        for old in tuple(self._binds.values()):
            try:
                there, wanted = os.stat(old.target), os.stat(old.source)  # noqa: PTH116 - tens of times per start
            except FileNotFoundError:
                if not os.path.exists(old.source):  # noqa: PTH110
                    continue
            else:
                if (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino):
                    continue
            self.add(old)
            again.append(old.target)
        return again

    def _place(self, target: Path, *, folder: bool) -> Path:
        """Make sure that there is something of the right kind at `target`; its path without symbolic links."""
        if target.is_symlink() and not target.exists():
            # A dangling link, such as /etc/resolv.conf where systemd-resolved is not up: what it points at.
            target = target.parent.resolve() / target.readlink()
        existing, missing = target, []
        while not existing.exists():
            missing.append(existing.name)
            existing = existing.parent
        existing = existing.resolve()
        if not missing:
            if existing.is_dir() != folder:
                kind = "folder" if folder else "file"
                raise OSError(errno.EEXIST, f"can't mount a {kind} on what is not one", str(target))
            return existing
        if not existing.is_dir():
            raise OSError(errno.ENOTDIR, "can't mount below a file", str(existing))
        ours = existing.stat().st_dev in self._rebuilt
        owned = not ours and self._owns(existing)
        if not ours and not owned:
            self._rebuilt.add(_rebuild(existing))
        place = existing
        for name in reversed(missing[1:]):
            place = place / name
            place.mkdir()
            if owned:
                self.made.append(str(place))
        place = place / missing[0]
        place.mkdir() if folder else place.touch()
        if owned:
            self.made.append(str(place))
        return place


def _mount_id(path: str) -> int:
    """The mount that is seen at a path (/proc/PID/fdinfo, proc(5)); -1 where nothing is."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    finally:
        os.close(descriptor)
    return int(next(line for line in lines if line.startswith("mnt_id:")).split()[1])


def _is_users_own(folder: Path) -> bool:
    """Whether an empty folder in it is nobody's surprise: the user's own, or one for temporary files."""
    if not os.access(folder, os.W_OK):
        return False
    status = folder.stat()
    return bool(status.st_mode & stat.S_ISVTX) or (status.st_uid == os.getuid() and os.getuid() != 0)


def _rebuild(folder: Path) -> int:
    """Replace a folder by a tmpfs with the same entries, so that more can be made in it; its device number."""
    if folder == Path("/"):
        return _rebuild_root()
    old = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        entries = sorted(folder.iterdir())
        _mount_tmpfs(folder, stat.S_IMODE(folder.stat().st_mode))
        for entry in entries:
            _bring_back(f"/proc/self/fd/{old}/{entry.name}", str(entry))
    finally:
        os.close(old)
    return folder.stat().st_dev


def _rebuild_root() -> int:
    """A new root, a tmpfs with all entries of the old one (pivot_root(2)); its device number."""
    entries = sorted(Path("/").iterdir())
    _mount_tmpfs(Path("/tmp"), 0o755)  # it has to be mounted somewhere, until it is the root
    old = Path("/tmp/.devloop-old-root")
    old.mkdir()
    if _libc.pivot_root(b"/tmp", os.fsencode(old)):
        raise _failed("pivot_root", "/")
    os.chdir("/")
    old = Path("/") / old.name
    for entry in entries:
        _bring_back(str(old / entry.name), str(entry))
    if _libc.umount2(os.fsencode(old), _MNT_DETACH):
        raise _failed("umount", str(old))
    old.rmdir()
    return Path("/").stat().st_dev


def _mount_tmpfs(folder: Path, mode: int) -> None:
    mount("tmpfs", str(folder), "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode={mode:o},size=1m")


def _bring_back(source: str, target: str) -> None:
    try:
        mode = os.lstat(source).st_mode
    except OSError:
        return  # gone in the meantime, or a mount of somebody else's that may not be looked at (FUSE)
    try:
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(source), target)  # noqa: PTH115, PTH211 - these are descriptors' paths
            return
        if stat.S_ISDIR(mode):
            os.mkdir(target)  # noqa: PTH102
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        mount(source, target, None, MS_BIND | MS_REC)
    except OSError as error:
        # One entry that can't be bound (a dead network mount) must not cost the whole folder.
        if error.errno not in (errno.EACCES, errno.EINVAL, errno.ESTALE, errno.ENOTCONN, errno.EPERM):
            raise

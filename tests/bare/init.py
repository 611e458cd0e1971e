"""The first process of the bare machine: makes its mounts, enters it, and runs one command as its user.

Run by `machine.py` in mount and process namespaces of its own, with the standard library alone. Its one argument is
JSON (`Order`). When it ends, the kernel ends every other process of the machine and takes the mounts away.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    *(1, 2, 4, 8, 32, 4096, 16384),
    1 << 18,
)
MNT_DETACH = 2
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "fuse", "net/tun")
"""What any user finds in /dev; those that this machine has."""
LIBC = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError."""
    if LIBC.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def bind(source: Path, target: Path, *, read_only: bool = False) -> None:
    """The same file or folder at a second place."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount(str(source), target, "", MS_BIND)
    if read_only:
        mount("", target, "", MS_BIND | MS_REMOUNT | MS_RDONLY)


def prepare(root: Path, binds: list[list[str]]) -> None:
    """The mounts that a machine has when it is up, and what is handed to it from this one."""
    mount("", Path("/"), "", MS_REC | MS_PRIVATE)  # nothing that is mounted here reaches the machine outside
    mount(str(root), root, "", MS_BIND)  # pivot_root(2) wants a mount point
    mount("proc", root / "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("sysfs", root / "sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY)
    mount("tmpfs", root / "run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    dev = root / "dev"
    mount("tmpfs", dev, "tmpfs", MS_NOSUID, "mode=0755")
    for name in DEVICES:
        if (device := Path("/dev", name)).exists():
            bind(device, dev / name)
    for name, target in (("fd", "self/fd"), ("stdin", "self/fd/0"), ("stdout", "self/fd/1"), ("stderr", "self/fd/2")):
        (dev / name).symlink_to(f"/proc/{target}")
    (dev / "pts").mkdir()
    mount("devpts", dev / "pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5")
    (dev / "ptmx").symlink_to("pts/ptmx")
    (dev / "shm").mkdir()
    mount("tmpfs", dev / "shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    (root / "tmp").chmod(0o1777)
    for source, target, how in binds:
        bind(Path(source), root / target.lstrip("/"), read_only=how == "ro")


def enter(root: Path) -> None:
    """Make `root` the root. A chroot would not do: the kernel refuses user namespaces in one (user_namespaces(7))."""
    os.chdir(root)
    if LIBC.pivot_root(b".", b"."):  # the old root comes to lie on the new one (pivot_root(2), NOTES)
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "pivot_root")
    if LIBC.umount2(b".", MNT_DETACH):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "umount of the old root")
    os.chdir("/")


def become(uid: int, files: list[int]) -> None:
    """An ordinary user in a session of its own, without a terminal."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_NOFILE, (files[0], files[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.umask(0o077)


def main() -> int:
    """Returns the command's exit code, 128 and the signal if one ended it."""
    order = json.loads(sys.argv[1])
    prepare(Path(order["root"]), order["binds"])
    enter(Path(order["root"]))
    child = os.fork()
    if child == 0:
        try:
            if order["uid"]:
                become(order["uid"], order["files"])
            os.chdir(order["folder"])
            os.execvpe(order["argv"][0], order["argv"], order["environment"])
        except OSError as problem:
            print(f"bare machine: {problem}", file=sys.stderr, flush=True)
        finally:
            os._exit(127)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: os._exit(130))
    while True:  # whatever is orphaned in here is this process' to reap
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status) % 256 if status & 0x7F == 0 else 128 + (status & 0x7F)


if __name__ == "__main__":
    sys.exit(main())

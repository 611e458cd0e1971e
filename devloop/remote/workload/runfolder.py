"""A private folder for one run, in memory where there is a tmpfs, that does not outlive its process for long.

    BASE/devloop-UID/run-XXXX/       mode 0700; what is below keeps the modes that the container sees
    BASE/devloop-UID/run-XXXX.lock   flock'ed while the run lives

The kernel drops the lock when the process ends, however it ends; the next run removes what it then finds
unlocked. The folder's own mode keeps everybody else out, so that a file below can be 0644 as in the pod.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from devloop.errors import DevloopError
from devloop.places import private_folder, runtime_folder

from . import beneath

_MADE = "made.json"
"""In a folder of the run: what `note_made` was told."""


@dataclass(frozen=True, slots=True)
class Base:
    """Where run folders lie."""

    path: Path
    in_memory: bool
    """On a tmpfs: nothing reaches a disk, but for swap."""
    executable: bool
    """Scripts there can be run: the filesystem is not mounted noexec."""


def choose_base() -> Base:
    """$XDG_RUNTIME_DIR or /dev/shm, if it is a tmpfs, the one first where scripts can run.

    Without either, the system's temporary folder, which may be on a disk.
    """
    candidates = [each for each in (runtime_folder(), Path("/dev/shm")) if each]
    found = [Base(each, True, _executable(each)) for each in candidates if _usable(each)]
    found.sort(key=lambda each: not each.executable)
    temporary = Path(tempfile.gettempdir())
    return (found or [Base(temporary, False, _executable(temporary))])[0]


class RunFolder:
    """One run's folder; a context manager that makes it, and removes it at its end."""

    def __init__(self, base: Path | None = None) -> None:
        """`base` is where to make it; by default what `choose_base` says."""
        chosen = Base(base, False, _executable(base)) if base else choose_base()
        self.base = chosen
        self.parent = chosen.path / f"devloop-{os.getuid()}"
        self.path = self.parent / "run-closed"
        self._lock: int | None = None

    def __enter__(self) -> Self:
        """Remove what dead runs have left, then make this one's. Raises DevloopError."""
        try:
            self._own_parent()
            sweep(self.parent)
            descriptor, name = tempfile.mkstemp(prefix=".new-", dir=self.parent)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._lock = descriptor
            self.path = self.parent / Path(name).name.replace(".new-", "run-")
            # Named only once it is locked, so that nobody takes it for a dead run's.
            Path(name).rename(_lock_of(self.path))
            self.path.mkdir(mode=0o700)
        except OSError as problem:
            raise DevloopError(
                f"can't make a private folder: {problem.strerror or problem}",
                where=str(self.parent),
                hint="Set XDG_RUNTIME_DIR or TMPDIR to a folder that you own.",
            ) from problem
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove all of it."""
        _remove_made(self.path)
        remove(self.path)
        _lock_of(self.path).unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        with suppress(OSError):
            self.parent.rmdir()  # unless another run is there

    def _own_parent(self) -> None:
        """/dev/shm is everybody's: a folder there that is not ours alone may be a trap."""
        with suppress(FileExistsError):
            self.parent.mkdir(mode=0o700)
        hint = "remove it, or set XDG_RUNTIME_DIR to a folder that only you may look into"
        private_folder(self.parent, "the folder of private files", hint=hint)


def sweep(parent: Path) -> list[Path]:
    """Remove the folders of runs that have ended without doing it themselves; gives what it removed."""
    removed = []
    for folder in parent.glob("run-*"):
        if not folder.is_dir():
            continue
        try:
            descriptor = os.open(_lock_of(folder), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # it lives
        else:
            _remove_made(folder)
            remove(folder)
            _lock_of(folder).unlink(missing_ok=True)
            removed.append(folder)
        finally:
            os.close(descriptor)
    return removed


def remove(folder: Path) -> None:
    """Remove a folder with all below it, also where a folder's own mode is in the way; a link alone if it is one."""
    beneath.remove(folder)


def note_made(folder: Path, made: Iterable[str]) -> None:
    """Say what was made elsewhere on this machine to mount on: it goes with the run, also with one that was killed.

    `folder` is one directly below a run's. Folders are removed if they are empty, and files if they are.
    """
    file = folder / _MADE
    before = json.loads(file.read_text()) if file.exists() else []
    with beneath.Folder.at(folder) as within:
        within.unlink(f"{_MADE}.new")
        within.write(f"{_MADE}.new", json.dumps(sorted({*before, *made})).encode(), 0o600)
        (folder / f"{_MADE}.new").replace(file)


def _remove_made(run: Path) -> None:
    found: set[str] = set()
    for file in run.glob(f"*/{_MADE}"):
        with suppress(OSError, ValueError):
            found.update(json.loads(file.read_text()))
    for path in sorted(map(Path, found), key=lambda each: len(each.parts), reverse=True):
        with suppress(OSError):
            if path.is_dir():
                path.rmdir()
            elif path.stat().st_size == 0:
                path.unlink()


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def in_memory(path: Path) -> bool:
    """Whether what is written there stays in memory, but for swap."""
    return _filesystem(path) == "tmpfs"


def sweep_all() -> list[Path]:
    """Remove what killed runs of this user have left, wherever such folders may lie; gives what it removed."""
    name = f"devloop-{os.getuid()}"
    bases = dict.fromkeys(each for each in (runtime_folder(), Path("/dev/shm"), Path(tempfile.gettempdir())) if each)
    removed: list[Path] = []
    for base in bases:
        parent = base / name
        try:
            private_folder(parent, "the folder of private files", hint="")
        except (OSError, DevloopError):
            continue  # there is none, or it is nobody's to clean up here
        removed += sweep(parent)
        with suppress(OSError):
            parent.rmdir()
    return removed


def _usable(path: Path) -> bool:
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK) and _filesystem(path) == "tmpfs"


def _executable(path: Path) -> bool:
    try:
        return not os.statvfs(path).f_flag & os.ST_NOEXEC
    except (OSError, AttributeError):  # macOS has no ST_NOEXEC
        return True


def _filesystem(path: Path) -> str | None:
    """The type of the filesystem that a path lies on, by /proc/self/mountinfo; None where there is none."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    real, best, kind = path.resolve(), -1, None
    for line in lines:
        left, _, right = line.partition(" - ")
        point = left.split()[4].encode().decode("unicode_escape")
        if real.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), right.split()[0]
    return kind

"""The project's state folder: where the engine keeps what must outlive it, and how its engine is found.

`.devloop/` beside the project file, mode 0700, with a .gitignore of its own; or DEVLOOP_STATE_DIR.

A lock decides whether an engine runs: the one on `engine.lock`, which says the engine's pid and project file. It moves
with the folder, and the kernel takes it back however the engine ends. Where the folder can't lead to it (another
terminal has another DEVLOOP_STATE_DIR, or somebody has removed `.devloop`), `devloop.presence` does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path

from devloop import presence
from devloop.errors import DevloopError, EngineError
from devloop.paths import kind
from devloop.places import Looks, private_folder, stranger, user_name

VARIABLE = "DEVLOOP_STATE_DIR"
LOCK = "engine.lock"
_OWN = "set DEVLOOP_STATE_DIR to a folder of your own"
_WRITABLE = "set DEVLOOP_STATE_DIR to a folder that you may write to"
_TRIES = 10
"""Times that the lock is tried, LOOK seconds apart: a client that looks at it holds it for a moment."""
_LOOK = 0.02


@dataclass(frozen=True, slots=True)
class Running:
    """A project's engine."""

    path: Path
    """Its state folder."""
    pid: int | None
    """None if that can't be found out."""
    file: Path | None = None
    """Its project file, if it could write that down."""


class StateFolder:
    """Paths in the state folder, and the lock that makes the engine the only one of its project."""

    def __init__(self, root: Path, path: Path | None = None) -> None:
        """`root` is the project's folder; `path` a folder to use in place of the one that this leads to."""
        self.root = root
        override = os.environ.get(VARIABLE)
        self.home = root / ".devloop"
        self.path = path or (Path(override).absolute() if override else self.home)
        self._given = path is not None
        self._lock: int | None = None
        self._presence: presence.Presence | None = None

    @property
    def socket(self) -> Path:
        """The control socket; `devloop.control.address` reaches it however long its path is."""
        return self.path / "control.sock"

    @property
    def database(self) -> Path:
        """SQLite store of loops."""
        return self.path / "loops.sqlite3"

    @property
    def logs(self) -> Path:
        """Folder of rotated log files, one family a service."""
        return self.path / "logs"

    @property
    def processes(self) -> Path:
        """Record of the running engine and its holders, for the engine after a crash."""
        return self.path / "processes.json"

    @property
    def engine_log(self) -> Path:
        """Where a detached engine writes its own stderr."""
        return self.path / "engine.log"

    @property
    def obstacle(self) -> str:
        """What lies where the folder has to be, in words; empty if it is a folder, or nothing is there."""
        if self.path == self.home and self.path.is_symlink() and self.path.is_dir():
            return "a link"  # which is not followed
        return _no_folder(self.path)

    def create(self) -> None:
        """Make the folders. Raises DevloopError if that is not possible, or if others could change what is in them.

        A link is not followed, except in DEVLOOP_STATE_DIR: a repository may have brought it.
        """
        try:
            for folder, whose in ((self.path, "devloop's state folder"), (self.logs, "the folder of its logs")):
                if what := _no_folder(folder):
                    raise DevloopError(
                        f"this is {what}, and {whose} has to be there",
                        where=str(folder),
                        hint=f"remove it, or set {VARIABLE} to another folder",
                    )
            self.path.mkdir(mode=0o700, parents=self.path != self.home, exist_ok=True)
            self._check()
            self.logs.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise DevloopError(
                f"can't make the state folder: {error.strerror}", where=str(self.path), hint=_WRITABLE
            ) from None
        try:
            fd = os.open(self.path / ".gitignore", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except OSError:
            return  # it is there; or the disk is full, and git shows the folder
        try:
            os.write(fd, b"*\n")
        except OSError:
            (self.path / ".gitignore").unlink(missing_ok=True)  # full: the next engine writes it
        finally:
            os.close(fd)

    def discard(self) -> None:
        """Remove a folder that `create` has just made, and no engine has come to live in. What else is in it stays."""
        if _is_locked(self.path):
            return
        for file in (self.engine_log, self.path / ".gitignore", self.path / LOCK):
            with contextlib.suppress(OSError):
                file.unlink()
        for folder in (self.logs, self.path):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _check(self) -> None:
        own = self.path == self.home
        looks = Looks.CLOSED if own else Looks.LEFT
        for folder in (self.path, self.logs):
            with contextlib.suppress(FileNotFoundError):
                private_folder(
                    folder if own or folder == self.logs else folder.resolve(),
                    "the state folder",
                    hint=_OWN,
                    link_hint=f"remove it, or set {VARIABLE} to the folder that it leads to",
                    looks=looks,
                )

    # The engine's side

    def lock(self, file: Path | None = None) -> None:
        """Become the project's engine; held until the process ends. Raises EngineError if there is one.

        `file` is the project file, for who looks later.
        """
        if not self._given:
            running = self.engine()
            if running is not None and running.pid != os.getpid() and running.path != self.path:
                raise taken(running)
        for _ in range(_TRIES):
            fd = self._locked()
            if fd is not None:
                break
            time.sleep(_LOOK)
        else:
            raise taken(Running(self.path, *noted(self.path)))
        _note(fd, file)
        self._lock = fd
        if not self._given:
            self._presence = presence.Presence(self.root)

    def _locked(self) -> int | None:
        try:
            fd = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise DevloopError(f"can't make {LOCK}: {error.strerror}", where=str(self.path), hint=_WRITABLE) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError as error:  # a file system without locks
            os.close(fd)
            raise DevloopError(
                f"its file system has no locks: {error.strerror}", where=str(self.path), hint=_WRITABLE
            ) from None
        return fd

    def unlock(self) -> None:
        """Stop being the project's engine."""
        if self._presence is not None:
            self._presence.close()
            self._presence = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def lost(self) -> bool:
        """Whether the folder that this engine has locked is not there any more, or not the same."""
        if self._lock is None:
            return False
        try:
            held = os.fstat(self._lock)
            there = (self.path / LOCK).lstat()
        except OSError:
            return True
        return (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino)

    @property
    def root_removed(self) -> bool:
        """Whether the project's folder was removed; not if it was moved, or is out of reach."""
        return self._presence is not None and self._presence.removed

    def hang_up(self) -> None:
        """To be called now and then by the engine: let go of those who have asked for it by its folder."""
        if self._presence is not None:
            self._presence.hang_up()

    def make_again(self, file: Path | None = None) -> None:
        """Make a lost folder anew, and lock it. Raises DevloopError: it can't be made, or another engine has it."""
        self.create()
        fd = self._locked()
        if fd is None:
            raise taken(Running(self.path, *noted(self.path)))
        _note(fd, file)
        if self._lock is not None:
            os.close(self._lock)
        self._lock = fd

    # Everybody else's

    def engine(self) -> Running | None:
        """The project's engine, wherever its state folder is; None if none runs.

        Raises EngineError if the folder is another project's, DevloopError if it may not be looked into.
        """
        for path in (self.path,) if self._given else dict.fromkeys((self.path, self.home)):
            if path == self.home and path.is_symlink():
                continue  # which is not followed: a repository may have brought it
            if _is_locked(path):
                pid, file = noted(path)
                self._same_project(path, file)
                return Running(path, pid or (None if self._given else presence.engine_of(self.root)), file)
        if self._given:
            return None
        pid = presence.engine_of(self.root)
        if pid is None:
            return None
        path = presence.open_file_of(pid, LOCK) or self.path / LOCK
        return Running(path.parent, pid)

    def of_engine(self) -> StateFolder:
        """The state folder that the project's engine has; this one if none runs. Raises as `engine` does."""
        running = self.engine()
        return self if running is None or running.path == self.path else StateFolder(self.root, running.path)

    def _same_project(self, path: Path, file: Path | None) -> None:
        """A DEVLOOP_STATE_DIR that several projects share would have the one stop the other's services."""
        if self._given or path == self.home or file is None:
            return
        try:
            other = not file.parent.samefile(self.root)
        except OSError:
            return  # it was moved
        if other:
            raise EngineError(
                f"{VARIABLE} is the state folder of another project, {file.parent}",
                where=str(path),
                hint="give each project a folder of its own",
            )

    def engine_pid(self) -> int | None:
        """The pid of the project's engine, None if none runs; 0 if it can't be found out."""
        running = self.engine()
        return None if running is None else running.pid or 0

    def wait_unlocked(self, seconds: float = float("inf")) -> bool:
        """Block until no engine runs for the project, or so long. Whether none does."""
        until = time.monotonic() + seconds
        while self.engine() is not None:
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK)
        return True


def _no_folder(path: Path) -> str:
    """What is there that is no folder, in words; empty if nothing is."""
    what = kind(path)
    if not what and path.is_symlink():
        return "a link that leads nowhere"
    return "" if what == "a folder" else what


def taken(running: Running, hint: str = "open it with `devloop up`, end it with `devloop down`") -> EngineError:
    """What is told to who would start a second engine in one folder."""
    of = f", of {running.file.name}" if running.file else ""
    return EngineError(
        f"an engine runs already for this project (pid {running.pid or 'unknown'}{of})",
        where=str(running.path),
        hint=hint,
    )


def _is_locked(path: Path) -> bool:
    if (uid := stranger(path)) is not None:
        raise EngineError(
            f"the state folder belongs to another user, {user_name(uid)}: what runs there is no engine of yours",
            where=str(path),
            hint=f"ask as that user; or {_OWN}",
        )
    try:
        fd = os.open(path / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise DevloopError(
                "the state folder is another user's, or not yours to read",
                where=str(path),
                hint="ask as the user who runs the engine; or give yourself the folder back with chown and chmod",
            ) from None
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _note(lock: int, file: Path | None) -> None:
    with contextlib.suppress(OSError):  # a full disk: the lock counts, and the kernel tells the pid
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n%s\n" % (os.getpid(), os.fsencode(file or "")), 0)


def noted(path: Path) -> tuple[int | None, Path | None]:
    """What an engine has written into its lock: pid and project file."""
    try:
        pid, _, rest = (path / LOCK).read_bytes().partition(b"\n")
    except OSError:
        return None, None
    file = os.fsdecode(rest.partition(b"\n")[0])
    return int(pid) if pid.isdigit() else None, Path(file) if file else None

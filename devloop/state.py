"""The project's state folder: where the engine keeps what must outlive it, and how it is found.

`.devloop/` beside the project file, mode 0700, with a .gitignore of its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from pathlib import Path

from devloop.errors import DevloopError, EngineError

_SUN_PATH = 100
"""Longest path of a Unix socket that is safe everywhere: sun_path holds 104 bytes on macOS, 108 on Linux."""


class StateFolder:
    """Paths in the state folder, and the lock that makes the engine the only one of its project."""

    def __init__(self, root: Path, path: Path | None = None) -> None:
        """`root` is the project's folder; `path` a folder to use in place of the one in it."""
        override = os.environ.get("DEVLOOP_STATE_DIR")
        self.path = path or (Path(override).absolute() if override else root / ".devloop")
        self._lock: int | None = None

    @property
    def socket(self) -> Path:
        """The control socket; in a private folder under the temporary one if its path would be too long."""
        path = self.path / "control.sock"
        if len(os.fsencode(path)) <= _SUN_PATH:
            return path
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"devloop-{os.getuid()}" / f"{digest}.sock"

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

    def create(self) -> None:
        """Make the folders. Raises DevloopError if that is not possible."""
        try:
            for folder in (self.path, self.logs, self.socket.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if folder.stat().st_uid != os.getuid():
                    raise DevloopError(
                        "the state folder belongs to another user",
                        where=str(folder),
                        hint="set DEVLOOP_STATE_DIR to a folder of your own",
                    )
            ignore = self.path / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
        except OSError as error:
            raise DevloopError(
                f"can't make the state folder: {error.strerror}",
                where=str(self.path),
                hint="set DEVLOOP_STATE_DIR to a folder that you may write to",
            ) from None

    def lock(self) -> None:
        """Become the project's engine; held until the process ends. Raises EngineError if there is one."""
        fd = os.open(self.path / "engine.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(fd, 32, 0).decode() or "unknown"
            os.close(fd)
            raise EngineError(
                f"an engine runs already for this project (pid {holder})",
                where=str(self.path),
                hint="open it with `devloop up`, end it with `devloop down`",
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        self._lock = fd

    def unlock(self) -> None:
        """Stop being the project's engine."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def engine_pid(self) -> int | None:
        """The pid of the project's engine, None if none runs."""
        try:
            fd = os.open(self.path / "engine.lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            text = os.pread(fd, 32, 0).decode()
            return int(text) if text.isdigit() else None
        finally:
            os.close(fd)
        return None

    def wait_unlocked(self) -> None:
        """Block until no engine runs for the project."""
        try:
            fd = os.open(self.path / "engine.lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)

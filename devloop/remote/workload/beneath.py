"""The one way in which what a cluster names is written to this machine's disk: beneath a folder, never through a link.

Names of files, folders and links come from pods and from the API server, and either may be hostile. So every name is
checked, every step is made relative to the descriptor of the folder before it (openat(2) with O_NOFOLLOW), and nothing
that exists is written to. Who writes a tree makes its links last (`copying.py`). Then there is no moment in which
somebody else's link could lead out of the folder, whatever order the names came in.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

MAX_NAME = 255
MAX_PATH = 4096
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class BadNameError(ValueError):
    """A name or path that would not stay where it is meant to be, or that no file can have."""


def name(text: str) -> str:
    """`text`, if it can be the name of one entry of a folder. Raises BadNameError."""
    if text in ("", ".", "..") or "/" in text or "\0" in text:
        raise BadNameError(f"{text!r} can't be the name of a file")
    if len(_bytes(text)) > MAX_NAME:
        raise BadNameError(f"the name {text[:80]!r}… is too long")
    return text


def parts(path: str) -> list[str]:
    """The names in a relative path; none for "". Raises BadNameError."""
    if len(path) > MAX_PATH:
        raise BadNameError(f"the path {path[:80]!r}… is too long")
    return [name(each) for each in path.split("/")] if path else []


def _bytes(text: str) -> bytes:
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        raise BadNameError(f"{text!r} can't be the name of a file") from None


def inside(root: Path, path: str) -> Path:
    """What `path` is below `root`, with the links on its way followed. Raises BadNameError if they lead out of `root`.

    For a `subPath`: the kubelet refuses such links too (CVE-2017-1002101).
    """
    found = root.joinpath(*parts(path))
    real, whole = Path(os.path.realpath(found)), Path(os.path.realpath(root))
    if not real.is_relative_to(whole):
        raise BadNameError(f"{path} is a link that leads out of the volume")
    return real


class Folder:
    """A folder, held by its descriptor. Paths are relative to it; a link on the way is an error, also of our own.

    All methods raise BadNameError for a name that can't be, and OSError.
    """

    def __init__(self, descriptor: int) -> None:
        """Take over an open descriptor."""
        self.descriptor = descriptor

    @classmethod
    def at(cls, path: Path) -> Self:
        """The folder at a path of devloop's own making, which is made if it is not there. It must not be a link."""
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return cls(os.open(path, _FOLDER))

    def __enter__(self) -> Self:
        """Nothing to do: it is open."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Let go of the descriptor."""
        os.close(self.descriptor)

    def folder(self, path: str, mode: int = 0o700) -> Folder:
        """The folder at `path`; what is missing of it is made, with `mode`."""
        here = os.dup(self.descriptor)
        try:
            for each in parts(path):
                with suppress(FileExistsError):
                    os.mkdir(each, 0o700, dir_fd=here)
                    _set_mode(here, each, mode)
                below = os.open(each, _FOLDER, dir_fd=here)
                os.close(here)
                here = below
        except BaseException:
            os.close(here)
            raise
        return Folder(here)

    def new(self, path: str) -> int:
        """The descriptor of a new file, mode 0600, to be written and closed. FileExistsError if anything is there."""
        above, last = self._above(path)
        with above:
            return os.open(last, _NEW, 0o600, dir_fd=above.descriptor)

    def write(self, path: str, data: bytes, mode: int) -> None:
        """A new file with this content."""
        with os.fdopen(self.new(path), "wb") as out:
            out.write(data)
            os.fchmod(out.fileno(), mode)

    def link(self, path: str, target: str) -> None:
        """A new symbolic link. FileExistsError if anything is there."""
        if not target or "\0" in target or len(_bytes(target)) >= MAX_PATH:
            raise BadNameError(f"a link can't lead to {target[:80]!r}")
        above, last = self._above(path)
        with above:
            os.symlink(target, last, dir_fd=above.descriptor)

    def put_link(self, entry: str, target: str) -> None:
        """A symbolic link in place of what has this name, in one step (rename(2))."""
        draft = f"..new-{secrets.token_hex(8)}"
        self.link(draft, target)
        try:
            os.replace(draft, name(entry), src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        except BaseException:
            os.unlink(draft, dir_fd=self.descriptor)
            raise

    def target(self, entry: str) -> str | None:
        """Where the link of this name leads; None where there is none."""
        try:
            return os.readlink(name(entry), dir_fd=self.descriptor)
        except OSError:
            return None

    def there(self, entry: str) -> bool:
        """Whether there is anything of this name, also a link that leads nowhere."""
        try:
            os.stat(name(entry), dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def names(self) -> list[str]:
        """What is in it."""
        return os.listdir(self.descriptor)  # noqa: PTH208 - a descriptor

    def chmod(self, path: str, mode: int) -> None:
        """Set a folder's mode. It is not made."""
        here = os.dup(self.descriptor)
        try:
            for each in parts(path):
                below = os.open(each, _FOLDER, dir_fd=here)
                os.close(here)
                here = below
            os.fchmod(here, mode)
        finally:
            os.close(here)

    def unlink(self, entry: str) -> None:
        """Remove a file or link; nothing if it has gone."""
        with suppress(FileNotFoundError):
            os.unlink(name(entry), dir_fd=self.descriptor)

    def remove(self, entry: str) -> None:
        """Remove an entry with all that is below it, also where a folder's own mode is in the way."""
        try:
            kind = os.stat(name(entry), dir_fd=self.descriptor, follow_symlinks=False).st_mode
        except OSError:
            return
        if not stat.S_ISDIR(kind):
            with suppress(OSError):
                os.unlink(entry, dir_fd=self.descriptor)
            return
        _open_up(self.descriptor, entry)
        with suppress(OSError):  # gone meanwhile, or closed to us
            for _, folders, _, descriptor in os.fwalk(entry, dir_fd=self.descriptor):
                for each in folders:
                    _open_up(descriptor, each)
        shutil.rmtree(entry, ignore_errors=True, dir_fd=self.descriptor)

    def _above(self, path: str) -> tuple[Folder, str]:
        names = parts(path)
        if not names:
            raise BadNameError("the folder itself can't be a file")
        return self.folder("/".join(names[:-1])), names[-1]


def remove(path: Path) -> None:
    """Remove what is at a path with all below it; a link alone if it is one."""
    try:
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    with Folder(descriptor) as above:
        above.remove(path.name)


def _set_mode(descriptor: int, entry: str, mode: int) -> None:
    if mode != 0o700:
        below = os.open(entry, _FOLDER, dir_fd=descriptor)
        try:
            os.fchmod(below, mode)
        finally:
            os.close(below)


def _open_up(descriptor: int, entry: str) -> None:
    """Let the owner into a folder. Not through a link: chmod(2) would follow one, fchmod(2) wants it open."""
    try:
        below = os.open(entry, _FOLDER, dir_fd=descriptor)
    except OSError as problem:
        if problem.errno != errno.EACCES:
            return
        # A folder of ours that we may not read. One that is no folder fails above with another reason.
        with suppress(OSError):
            os.chmod(entry, 0o700, dir_fd=descriptor)
        return
    try:
        mode = stat.S_IMODE(os.fstat(below).st_mode)
        if mode & 0o700 != 0o700:
            os.fchmod(below, mode | 0o700)
    finally:
        os.close(below)

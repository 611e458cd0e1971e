"""Copies of a pod's folders, by SFTP: what the mode `copy` does."""

from __future__ import annotations

import asyncio
import os
import posixpath
import shutil
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from devloop.errors import RemoteError

from .atomic import local_mode
from .beneath import MAX_PATH, BadNameError, Folder, name, remove
from .model import Note

if TYPE_CHECKING:
    import asyncssh

DEFAULT_LIMIT = 256 << 20
"""Bytes of all the volumes of one container together."""
MAX_ENTRIES = 200_000
"""Files, folders and links of one volume: each is held in memory until it is copied."""
_PARALLEL = 24
_SLICE = 4 << 20


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a copy is."""

    volume: str
    done: int
    """Bytes."""
    total: int
    files: int
    """Files that are whole."""


@dataclass(slots=True)
class _Tree:
    """What is to be copied: paths relative to the root, "" for the root itself."""

    folders: list[tuple[str, int]] = field(default_factory=list)
    files: list[tuple[str, int, int, float]] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    special: int = 0
    closed: list[str] = field(default_factory=list)
    """Paths that may not be read."""
    bytes: int = 0
    entries: int = 0

    def count(self) -> None:
        """One more entry. RemoteError if there are too many."""
        self.entries += 1
        if self.entries > MAX_ENTRIES:
            raise RemoteError(f"a volume has more than {MAX_ENTRIES:,} files", hint='Set it to "mount" or "ignore".')


class Copier:
    """Copies from one SFTP session, with one limit for all that it copies."""

    def __init__(
        self,
        sftp: asyncssh.SFTPClient,
        limit: int = DEFAULT_LIMIT,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self._sftp = sftp
        self._limit = limit
        self._left = limit
        self._progress = progress or (lambda _: None)
        self._slots = asyncio.Semaphore(_PARALLEL)
        self.notes: list[Note] = []

    async def copy(self, volume: str, remote: str, local: Path, below: Iterable[str] = ("",)) -> None:
        """Copy a volume, or just the paths of it that `below` names, to `local`, which must not exist.

        Links stay links, modes and times are kept, owners are not; sockets, pipes and devices are left out.
        The size is known before the first byte is copied. A path that does not exist becomes an empty
        folder, as the kubelet makes one for a subPath. Nothing is written outside of `local`, whatever the
        pod says. Raises RemoteError, also for more than the limit.
        """
        tree = _Tree()
        try:
            for path in _outermost(below):
                await self._survey(remote, path, tree)
            self._check(volume, tree, local.parent)
            await self._fetch(volume, remote, local, tree)
        except BaseException as problem:
            remove(local)
            first = problem
            while isinstance(first, ExceptionGroup):
                first = first.exceptions[0]
            if isinstance(first, FileExistsError | NotADirectoryError | BadNameError):
                raise RemoteError(
                    f"volume {volume} is not copied: {_reason(first)}",
                    hint=f'No honest file system says this. Look at the pod, or set the volume to "ignore": {volume}',
                ) from problem
            if isinstance(first, _sftp_errors()):
                raise RemoteError(f"volume {volume} can't be copied: {first}") from problem
            if isinstance(first, RemoteError):
                raise first from None
            raise
        self._tell(volume, tree)

    async def _survey(self, remote: str, path: str, tree: _Tree) -> None:
        import asyncssh

        for parent in _parents(path):
            tree.folders.append((parent, 0o755))
        try:
            attrs = await self._sftp.lstat(posixpath.join(remote, path))
        except asyncssh.SFTPNoSuchFile:
            tree.folders.append((path, 0o755))
            return
        await self._add(remote, path, attrs, tree)

    async def _add(self, remote: str, path: str, attrs: asyncssh.SFTPAttrs, tree: _Tree) -> None:
        import asyncssh

        mode = attrs.permissions or 0
        full = posixpath.join(remote, path) if path else remote
        if len(path) > MAX_PATH:
            raise BadNameError(f"the path {path[:80]!r}… is too long")
        if stat.S_ISLNK(mode):
            target = str(await self._sftp.readlink(full))
            if len(target) > MAX_PATH:
                raise BadNameError(f"a link can't lead to {target[:80]!r}…")
            tree.links.append((path, target))
        elif stat.S_ISREG(mode):
            tree.files.append((path, stat.S_IMODE(mode), attrs.size or 0, float(attrs.mtime or 0)))
            tree.bytes += attrs.size or 0
        elif stat.S_ISDIR(mode):
            tree.folders.append((path, stat.S_IMODE(mode)))
            names: list[asyncssh.SFTPName] = []
            try:
                async with self._slots:
                    async for each in self._sftp.scandir(full):
                        names.append(each)
                        tree.count()
            except asyncssh.SFTPPermissionDenied:
                tree.closed.append(path or ".")
            async with asyncio.TaskGroup() as tasks:
                for each in names:
                    entry = os.fsdecode(each.filename)
                    if entry not in (".", ".."):
                        below = f"{path}/{name(entry)}" if path else name(entry)
                        tasks.create_task(self._add(remote, below, each.attrs, tree))
        else:
            tree.special += 1

    def _check(self, volume: str, tree: _Tree, folder: Path) -> None:
        if tree.bytes > self._left:
            raise RemoteError(
                f"volume {volume} has {_size(tree.bytes)} in {len(tree.files)} files; "
                f"all volumes together may have {_size(self._limit)}",
                hint='Raise the limit, or set this volume to "ignore" or "mount".',
            )
        self._left -= tree.bytes
        free = shutil.disk_usage(folder).free
        if tree.bytes > free:
            raise RemoteError(f"volume {volume} has {_size(tree.bytes)}, and {folder} has {_size(free)} left")

    async def _fetch(self, volume: str, remote: str, local: Path, tree: _Tree) -> None:
        done = files = 0
        spare = self._left
        """What files may have grown by since they were counted."""

        def advanced(count: int, whole: bool) -> None:
            nonlocal done, files
            done, files = done + count, files + whole
            if done > tree.bytes + spare:
                raise RemoteError(f"volume {volume} grows while it is copied, beyond {_size(self._limit)}")
            self._progress(Progress(volume, done, tree.bytes, files))

        # Small steps on this machine's disk: what a thread for each would cost is more than they do.
        with Folder.at(local.parent) as above:

            def at(path: str) -> str:
                return f"{local.name}/{path}" if path else local.name

            if not any(path == "" for path, *_ in (*tree.files, *tree.links)):
                above.folder(local.name).close()
            for path, _ in sorted(tree.folders):
                above.folder(at(path)).close()
            async with asyncio.TaskGroup() as tasks:
                for path, mode, _, changed in tree.files:
                    source = posixpath.join(remote, path) if path else remote
                    tasks.create_task(self._file(source, path, at(path), above, mode, changed, tree, advanced))
            # Last: from here on nothing is made below them.
            for path, target in tree.links:
                above.link(at(path), target)
            for path, mode in sorted(tree.folders, reverse=True):
                above.chmod(at(path), mode | 0o700)
        self._progress(Progress(volume, tree.bytes, tree.bytes, len(tree.files)))

    async def _file(
        self,
        source: str,
        path: str,
        target: str,
        above: Folder,
        mode: int,
        changed: float,
        tree: _Tree,
        advanced: Callable[[int, bool], None],
    ) -> None:
        import asyncssh

        async with self._slots:
            try:
                async with self._sftp.open(source, "rb") as far:
                    # On this machine's disk: a few MiB at a time, so that the loop is not held up for long.
                    with os.fdopen(above.new(target), "wb") as near:
                        while data := await far.read(_SLICE):
                            advanced(len(data), False)
                            near.write(cast(bytes, data))
                        near.flush()
                        os.fchmod(near.fileno(), local_mode(mode))
                        with suppress(OverflowError):  # a time that no file can have
                            os.utime(near.fileno(), (changed, changed))
            except asyncssh.SFTPPermissionDenied:
                tree.closed.append(path)
                return
            advanced(0, True)

    def _tell(self, volume: str, tree: _Tree) -> None:
        subject = f"volume {volume}"
        self.notes.append(Note(subject, "a copy: what is written to it stays here, and changes there are not seen"))
        if tree.closed:
            some = ", ".join(sorted(tree.closed)[:5])
            text = f"{len(tree.closed)} paths may not be read by the container's user and are missing: {some}"
            self.notes.append(Note(subject, text))
        if tree.special:
            text = f"{tree.special} sockets, pipes or devices can't be copied and are missing"
            self.notes.append(Note(subject, text))


def _outermost(paths: Iterable[str]) -> list[str]:
    """Without those that lie below another one: each entry is copied once."""
    found: list[str] = []
    for path in sorted(set(paths)):
        if not any(each == "" or path.startswith(f"{each}/") for each in found):
            found.append(path)
    return found


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1] if path else []
    return ["/".join(parts[: index + 1]) for index in range(len(parts))]


def _reason(problem: BaseException) -> str:
    if isinstance(problem, BadNameError):
        return f"the pod names what no folder can hold: {problem}"
    assert isinstance(problem, OSError)
    return f"the pod names {problem.filename!r} twice, or something below what is no folder"


def _sftp_errors() -> Any:
    import asyncssh

    return (asyncssh.SFTPError, asyncssh.Error, OSError)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"

"""What files contain, as digests: a save that changes nothing shall restart nothing.

Kept by folder, so that a folder that goes takes its files with it in a time that is linear in what it held.
Paths are strings here and below: with 50,000 files at once, pathlib would be most of the work.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

MAX_SIZE = 4 * 1024 * 1024
"""Larger files are told apart by size and modification time alone, in bytes."""
MAX_FILES = 50_000
"""So many files are read in advance at the most; the first save of any other counts as a change."""
FRESH = 2_000_000_000
"""A file modified this recently, in nanoseconds, is not read in advance: its event may still be on the way,
and would then find the digest that it should differ from. Nor are its times taken for its content."""


class Print(NamedTuple):
    """What is known of a file."""

    signature: tuple[int, int, int] | None = None
    """Size, modification time, inode; None: it was not looked at yet."""
    digest: bytes | None = None
    """None: it was not read yet."""


_UNSEEN = Print()


class _Folder:
    __slots__ = ("below", "files")

    def __init__(self) -> None:
        self.files: dict[str, Print] = {}
        self.below: set[str] = set()


class Fingerprints:
    """The files that are watched, shared by all services."""

    def __init__(self) -> None:
        self._folders: dict[str, _Folder] = {}
        self._read = 0

    def note(self, path: str) -> None:
        """This file is watched; nothing else is known of it."""
        folder, name = os.path.split(path)
        self._folder(folder).files.setdefault(name, _UNSEEN)

    def knows(self, path: str) -> bool:
        """Whether the file was there when it was last looked at."""
        folder, name = os.path.split(path)
        found = self._folders.get(folder)
        return found is not None and name in found.files

    def learn(self, files: Iterable[str | Path], since: int) -> list[str]:
        """Read files in advance. Safe to run in a thread while `changed` is used.

        Returns those that were modified at or after `since`, a Unix time in nanoseconds.
        """
        modified = []
        for each in files:
            path = os.fspath(each)
            try:
                info = os.stat(path)
            except OSError:
                continue
            if info.st_mtime_ns >= since:
                modified.append(path)
            folder, name = os.path.split(path)
            known = self._folder(folder).files
            if known.get(name, _UNSEEN).digest is not None:
                continue
            fresh = time.time_ns() - info.st_mtime_ns < FRESH
            found = None if fresh or self._read >= MAX_FILES else _look(path, read=True)
            if found is not None:
                self._read += 1
                if known.get(name, _UNSEEN).digest is None:  # `changed` may have been quicker
                    known[name] = found
            elif name not in known or known[name].signature is None:
                known[name] = _look(path, read=False) or _UNSEEN
        return modified

    def changed(self, path: str | Path, *, bulk: bool = False) -> bool:
        """Whether the content differs from what it was when last asked; a file never seen before differs.

        With `bulk`, for when thousands come at once, a file is read only if its size and times leave a doubt.
        """
        path = os.fspath(path)
        name = os.path.basename(path)
        folder = self._folders.get(os.path.dirname(path))
        before = None if folder is None else folder.files.get(name)
        now = _look(path, read=not bulk)
        if now is None:
            if folder is not None:
                folder.files.pop(name, None)
                if not folder.files and not folder.below:
                    self._prune(os.path.dirname(path))
            return before is not None
        if bulk and before is not None and before.signature and now.signature:
            same_size = before.signature[0] == now.signature[0]
            if before.signature == now.signature and time.time_ns() - now.signature[1] > FRESH:
                return False
            if same_size and before.digest is not None:
                now = _look(path, read=True) or now
        self._folder(os.path.dirname(path)).files[name] = now
        if before is None:
            return True
        if now.digest is None and not bulk:  # not ours to read
            return before.signature != now.signature
        return before.digest is None or now.digest != before.digest

    def differs(self, path: str, info: os.stat_result) -> bool:
        """Whether size and times say that the file has changed, or might have, since it was last looked at."""
        folder, name = os.path.split(path)
        before = self._folders[folder].files[name] if self.knows(path) else None
        if before is None:
            return True
        if before.signature is None:
            self._folders[folder].files[name] = Print(_signature(info))
            return False
        if before.signature != _signature(info):
            return True
        # Two writes within one tick of the clock have the same time.
        return before.digest is not None and time.time_ns() - info.st_mtime_ns < FRESH

    def names(self, folder: str) -> Iterable[str]:
        """The known files right in this folder."""
        found = self._folders.get(folder)
        return () if found is None else tuple(found.files)

    def subfolders(self, folder: str) -> Iterable[str]:
        """The known folders right in this folder."""
        found = self._folders.get(folder)
        return () if found is None else tuple(found.below)

    def below(self, folder: str | Path) -> Iterator[str]:
        """Every known file below a folder, for when the folder itself is gone."""
        todo = [os.fspath(folder)]
        while todo:
            path = todo.pop()
            found = self._folders.get(path)
            if found is not None:
                # Tuples: another thread may find something meanwhile.
                yield from [f"{path}/{name}" for name in tuple(found.files)]
                todo += [f"{path}/{name}" for name in tuple(found.below)]

    def _prune(self, path: str) -> None:
        while path != "/":
            found = self._folders.get(path)
            if found is None or found.files or found.below:
                return
            del self._folders[path]
            path, name = os.path.split(path)
            if path in self._folders:
                self._folders[path].below.discard(name)

    def _folder(self, path: str) -> _Folder:
        found = self._folders.get(path)
        if found is None:
            found = self._folders[path] = _Folder()
        while path != "/":
            path, name = os.path.split(path)
            above = self._folders.get(path)
            if above is not None and name in above.below:
                break
            if above is None:
                above = self._folders[path] = _Folder()
            above.below.add(name)
        return found


def _signature(info: os.stat_result) -> tuple[int, int, int]:
    return (info.st_size, info.st_mtime_ns, info.st_ino)


def _look(path: str, *, read: bool) -> Print | None:
    """None for what is not there or is no file."""
    try:
        info = os.lstat(path)
    except OSError:
        return None
    if stat.S_ISLNK(info.st_mode):
        return Print(_signature(info), _link(path))
    if not stat.S_ISREG(info.st_mode):
        return None
    return Print(_signature(info), _digest(path, info) if read else None)


def _link(path: str) -> bytes:
    """Where it leads, and what is there."""
    try:
        target = b"link" + os.fsencode(os.readlink(path))
    except OSError:
        return b"link"
    try:
        info = os.stat(path)
    except OSError:
        return target
    if not stat.S_ISREG(info.st_mode):
        return target
    return target + (_digest(path, info) or b"")


def _digest(path: str, info: os.stat_result) -> bytes | None:
    # The mode counts: chmod +x of a script is a change to whoever runs it.
    mode = (info.st_mode & 0o111).to_bytes(2, "big")
    if info.st_size > MAX_SIZE:
        return mode + b"stat" + info.st_size.to_bytes(8, "big") + info.st_mtime_ns.to_bytes(12, "big")
    try:
        with open(path, "rb", buffering=0) as file:
            return mode + hashlib.blake2b(file.read(), digest_size=16).digest()
    except OSError:
        return None

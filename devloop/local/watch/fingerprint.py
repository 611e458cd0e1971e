"""What files contain, as digests: a save that changes nothing shall restart nothing."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path

MAX_SIZE = 4 * 1024 * 1024
"""Larger files are told apart by size and modification time alone, in bytes."""
MAX_FILES = 50_000
"""So many files are read in advance at the most; the first save of any other counts as a change."""
FRESH = 2_000_000_000
"""A file modified this recently, in nanoseconds, is not read in advance: its event may still be on the way,
and would then find the digest that it should differ from."""


class Fingerprints:
    """Digests of the files that are watched, shared by all services."""

    def __init__(self) -> None:
        self._known: dict[Path, bytes] = {}

    def learn(self, files: Iterable[Path], since: int) -> list[Path]:
        """Read files in advance. Safe to run in a thread while `changed` is used.

        Returns those that were modified at or after `since`, a Unix time in nanoseconds.
        """
        modified = []
        for path in files:
            try:
                at = path.stat().st_mtime_ns
            except OSError:
                continue
            if at >= since:
                modified.append(path)
            if time.time_ns() - at >= FRESH and len(self._known) < MAX_FILES:
                digest = _digest(path)
                if digest is not None:
                    self._known.setdefault(path, digest)
        return modified

    def changed(self, path: Path) -> bool:
        """Whether the content differs from what it was when last asked; a file never seen before differs."""
        before = self._known.pop(path, None)
        now = _digest(path)
        if now is not None:
            self._known[path] = now
        return now != before

    def below(self, folder: Path) -> list[Path]:
        """Every known file below a folder, for when the folder itself is gone."""
        return [path for path in self._known if path.is_relative_to(folder)]


def _digest(path: Path) -> bytes | None:
    """None for what is not there or not a file."""
    try:
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            target = os.fsencode(path.readlink())
            try:
                return b"link" + target + (_digest(path.resolve()) or b"")
            except (OSError, RuntimeError):
                return b"link" + target
        if not stat.S_ISREG(info.st_mode):
            return None
        # The mode counts: chmod +x of a script is a change to whoever runs it.
        mode = (info.st_mode & 0o111).to_bytes(2, "big")
        if info.st_size > MAX_SIZE:
            return mode + b"stat" + info.st_size.to_bytes(8, "big") + info.st_mtime_ns.to_bytes(12, "big")
        with path.open("rb", buffering=0) as file:
            return mode + hashlib.blake2b(file.read(), digest_size=16).digest()
    except OSError:
        return None

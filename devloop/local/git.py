"""Is git in the middle of something? Then the files are not what anyone wants to run yet."""

from __future__ import annotations

import time
from pathlib import Path

from devloop.paths import SMALL, read_text

LOOK_AGAIN = 15_000_000
"""Nanoseconds until the next look at a repository that is busy."""
LONGEST = 5_000_000_000
"""A lock that is older than this, in nanoseconds, was left by a git that is gone."""


class Repository:
    """The repository that a folder is in, if it is in one."""

    def __init__(self, folder: Path) -> None:
        self._lock: Path | None = None
        for above in (folder, *folder.parents):
            entry = above / ".git"
            if entry.is_dir():
                self._lock = entry / "index.lock"
            elif entry.is_file():  # a worktree or a submodule: gitrepository-layout(5)
                target = read_text(entry, SMALL).removeprefix("gitdir:").strip()
                self._lock = (above / target) / "index.lock"
            else:
                continue
            break

    def busy_until(self, now: int) -> int | None:
        """When to look again, if git is at work; `now` and the answer are monotonic nanoseconds.

        git holds index.lock from before a checkout's first file until after its last.
        """
        if self._lock is None:
            return None
        try:
            age = time.time_ns() - self._lock.stat().st_mtime_ns
        except OSError:
            return None
        return now + LOOK_AGAIN if age < LONGEST else None

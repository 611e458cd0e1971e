"""The seam between the watcher and where its events come from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol


class WatchLimitError(Exception):
    """One of the limits in /proc/sys/fs/inotify is reached; `name` says which."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Source(Protocol):
    """Where events come from."""

    whole_files: bool
    """Whether a reported file is whole: its writer has closed it, or renamed it into place."""

    def add(self, folders: Iterable[Path]) -> None:
        """Watch these folders too. Raises WatchLimitError."""

    def resume(self) -> None:
        """Deliver events."""

    def pause(self) -> None:
        """Deliver none until `resume`."""

    def close(self) -> None:
        """Stop watching."""

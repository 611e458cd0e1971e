"""The seam between the watcher and where its events come from."""

from __future__ import annotations

from enum import Enum
from typing import Protocol


class WatchLimitError(Exception):
    """One of the limits in /proc/sys/fs/inotify is reached; `name` says which."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Kind(Enum):
    """What has happened to a path."""

    CREATED = "created"  # a file, which its writer will close; or a link, which is there at once
    WRITTEN = "written"  # closed by its writer
    PLACED = "placed"  # moved here: whole
    TOUCHED = "touched"  # its times or rights
    GONE = "gone"  # removed, or moved away
    FOLDER_CAME = "folder came"
    FOLDER_GONE = "folder gone"
    LOST = "lost"  # events were lost; the path says nothing


Happening = tuple[Kind, str]


class Source(Protocol):
    """Where events come from. It hands on batches of them, in their order."""

    whole_files: bool
    """Whether a reported file is whole: its writer has closed it, or renamed it into place."""

    def add(self, folder: str) -> OSError | None:
        """Watch this folder too; watch it again if another has come in its place.

        Returns why it can't be watched, None if it is. Raises WatchLimitError.
        """

    def drop(self, folder: str) -> None:
        """Watch this folder, and those below it, no more."""

    def resume(self) -> None:
        """Deliver events."""

    def pause(self) -> None:
        """Deliver none until `resume`."""

    def close(self) -> None:
        """Stop watching."""

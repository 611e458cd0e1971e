"""A folder in memory for what must be on no disk, of one process. What a killed one has left is removed by the next."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

PREFIX = "devloop-agent-"
"""How such folders' names begin: `/dev/shm` of a pod outlives its containers."""


def make(folder: Path) -> int:
    """Make the folder; a descriptor that says, as long as it is open, that its process is there. OSError.

    Removes those beside it whose process is gone.
    """
    for each in folder.parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), _opened(each) as other:
            if os.fstat(other).st_uid == os.geteuid():
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: it is somebody's
                shutil.rmtree(each, ignore_errors=True)
    draft = folder.with_name(f".{folder.name}")  # until it is locked, it could be taken for a killed one's
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    own = os.open(draft, _FOLDER)
    try:
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        draft.rename(folder)
    except BaseException:
        os.close(own)
        raise
    return own


def held(folder: Path) -> int | None:
    """The same for a folder that a process before this one has made; None if it is not there, or somebody's."""
    with contextlib.suppress(OSError):
        own = os.open(folder, _FOLDER)
        try:
            if os.fstat(own).st_uid == os.geteuid():
                fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return own
        except BaseException:
            os.close(own)
            raise
        os.close(own)
    return None


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, _FOLDER)
    try:
        yield descriptor
    finally:
        os.close(descriptor)

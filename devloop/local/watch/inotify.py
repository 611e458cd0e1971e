"""Events straight from inotify(7): a file is reported when its writer has closed it, or renamed it there.

So a report means a whole file, which spares most of the waiting that other watchers do. watchfiles, which is
used where there is no inotify, reports each write.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable, Iterable
from pathlib import Path

from inotify_simple import Event, INotify, flags

from devloop.local.watch.source import WatchLimitError

_MASK = (
    flags.CLOSE_WRITE
    | flags.MOVED_TO
    | flags.MOVED_FROM
    | flags.CREATE
    | flags.DELETE
    | flags.ATTRIB
    | flags.DELETE_SELF
    | flags.ONLYDIR
    | flags.DONT_FOLLOW
)


class InotifySource:
    """Watches folders, not trees. Raises WatchLimitError from its constructor and from `add`.

    `on_files` gets paths that were written, moved or deleted; `on_folder` a folder that appeared; `on_gone` a
    folder that is no longer there; `on_overflow` is called when events were lost.
    """

    whole_files = True

    def __init__(
        self,
        on_files: Callable[[list[Path]], None],
        on_folder: Callable[[Path], None],
        on_gone: Callable[[Path], None],
        on_overflow: Callable[[], None],
    ) -> None:
        self._on_files = on_files
        self._on_folder = on_folder
        self._on_gone = on_gone
        self._on_overflow = on_overflow
        self._folders: dict[int, Path] = {}
        self._numbers: dict[Path, int] = {}
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            raise _limit(error, "max_user_instances") from error

    def add(self, folders: Iterable[Path]) -> None:
        """Watch these folders too. May run in a thread while the source is paused."""
        for folder in folders:
            if folder in self._numbers:
                continue
            try:
                number = self._inotify.add_watch(folder, _MASK)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EMFILE):
                    raise _limit(error, "max_user_watches") from error
                continue  # gone, not a folder or not ours to read
            self._folders[number] = folder
            self._numbers[folder] = number

    def resume(self) -> None:
        """Deliver events, those of a pause too."""
        asyncio.get_running_loop().add_reader(self._inotify.fileno(), self._readable)

    def pause(self) -> None:
        """Deliver no events until `resume`; the kernel keeps them."""
        asyncio.get_running_loop().remove_reader(self._inotify.fileno())

    def close(self) -> None:
        """Stop watching."""
        self.pause()
        self._inotify.close()

    def _readable(self) -> None:
        files: dict[Path, None] = {}
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                self._on_overflow()
                continue
            folder = self._folders.get(event.wd)
            if folder is None:
                continue
            if event.mask & (flags.IGNORED | flags.DELETE_SELF):
                self._drop(event.wd)
            elif event.mask & flags.ISDIR:
                self._folder_event(folder / event.name, event)
            elif not event.mask & flags.CREATE or (folder / event.name).is_symlink():
                # A file that was just created will be closed; a link or a socket never is.
                files[folder / event.name] = None
        if files:
            self._on_files(list(files))

    def _folder_event(self, folder: Path, event: Event) -> None:
        if event.mask & (flags.CREATE | flags.MOVED_TO):
            self._on_folder(folder)
        elif event.mask & (flags.MOVED_FROM | flags.DELETE):
            for path in [p for p in self._numbers if p.is_relative_to(folder)]:
                self._drop(self._numbers[path])
            self._on_gone(folder)

    def _drop(self, number: int) -> None:
        folder = self._folders.pop(number, None)
        if folder is None:
            return
        self._numbers.pop(folder, None)
        with contextlib.suppress(OSError):  # the kernel has removed it itself
            self._inotify.rm_watch(number)


def _limit(error: OSError, name: str) -> WatchLimitError | OSError:
    return WatchLimitError(name) if error.errno in (errno.ENOSPC, errno.EMFILE) else error

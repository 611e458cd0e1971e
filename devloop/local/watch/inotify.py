"""Events straight from inotify(7): a file is reported when its writer has closed it, or renamed it there.

So a report means a whole file, which spares most of the waiting that other watchers do. watchfiles, which is
used where there is no inotify, reports each write.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable

from inotify_simple import INotify, flags, parse_events

from devloop.local.watch.source import Happening, Kind, WatchLimitError

# Plain numbers: an IntEnum's `&` takes a microsecond, and there are tens of thousands of events in a checkout.
_ATTRIB = int(flags.ATTRIB)
_CLOSE_WRITE = int(flags.CLOSE_WRITE)
_CREATE = int(flags.CREATE)
_ISDIR = int(flags.ISDIR)
_MOVED_TO = int(flags.MOVED_TO)
_MOVED_FROM = int(flags.MOVED_FROM)
_DELETE = int(flags.DELETE)
_OVERFLOW = int(flags.Q_OVERFLOW)
_MOVE_SELF = int(flags.MOVE_SELF)
_SELF_GONE = int(flags.IGNORED | flags.DELETE_SELF | flags.UNMOUNT)
_COME = _CREATE | _MOVED_TO
_WENT = _MOVED_FROM | _DELETE
_MASK = int(flags.DELETE_SELF | flags.ONLYDIR | flags.DONT_FOLLOW) | _CLOSE_WRITE | _COME | _WENT | _ATTRIB | _MOVE_SELF
_CHUNK = 64 * 1024
"""Bytes that are read at a time: some 1,500 events, which take a few milliseconds."""


class InotifySource:
    """Watches folders, not trees. Raises WatchLimitError from its constructor and from `add`."""

    whole_files = True

    def __init__(self, deliver: Callable[[list[Happening]], None]) -> None:
        self._deliver = deliver
        self._folders: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self._below: dict[str, set[str]] = {}
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            raise _limit(error, "max_user_instances") from error

    def add(self, folder: str) -> OSError | None:
        """Watch this folder too. May run in a thread while the source is paused."""
        try:
            number = self._inotify.add_watch(folder, _MASK)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EMFILE):
                raise _limit(error, "max_user_watches") from error
            return error  # gone, not a folder or not ours to read
        before = self._folders.get(number)
        if before == folder:
            return None
        if before is not None and self._numbers.get(before) == number:
            self._unlist(before)  # it was moved, and the event is still to come
        old = self._numbers.get(folder)
        if old is not None:
            self._folders.pop(old, None)
            with contextlib.suppress(OSError):
                self._inotify.rm_watch(old)  # another folder has come in its place
        self._folders[number] = folder
        self._numbers[folder] = number
        while folder != "/":  # `drop` finds it from any folder above it
            folder, name = os.path.split(folder)
            names = self._below.setdefault(folder, set())
            if name in names:
                break
            names.add(name)
        return None

    def drop(self, folder: str) -> None:
        """Watch this folder, and those below it, no more; linear in how many they are."""
        todo = [folder]
        while todo:
            path = todo.pop()
            todo += [f"{path}/{name}" for name in self._below.get(path, ())]
            number = self._numbers.get(path)
            if number is not None:
                self._folders.pop(number, None)
                with contextlib.suppress(OSError):  # the kernel may have removed it itself
                    self._inotify.rm_watch(number)
            self._unlist(path)
            self._below.pop(path, None)

    def resume(self) -> None:
        """Deliver events, those of a pause too."""
        asyncio.get_running_loop().add_reader(self._inotify.fileno(), self._readable)

    def pause(self) -> None:
        """Deliver no events until `resume`; the kernel keeps them, some 16,000."""
        asyncio.get_running_loop().remove_reader(self._inotify.fileno())

    def close(self) -> None:
        """Stop watching."""
        self.pause()
        self._inotify.close()

    def _readable(self) -> None:
        try:
            data = os.read(self._inotify.fileno(), _CHUNK)
        except BlockingIOError:
            return
        found: list[Happening] = []
        for number, mask, _, name in parse_events(data):
            if mask & _OVERFLOW:
                found.append((Kind.LOST, ""))
                continue
            folder = self._folders.get(number)
            if folder is None:
                continue
            if mask & _SELF_GONE:
                del self._folders[number]
                if self._numbers.get(folder) == number:
                    self._unlist(folder)
                    found.append((Kind.FOLDER_GONE, folder))
            elif mask & _MOVE_SELF:
                # Its own name is told by the folder above, if that is watched.
                if os.path.dirname(folder) not in self._numbers:
                    found.append((Kind.FOLDER_GONE, folder))
            elif mask & _ISDIR:
                path = f"{folder}/{name}" if folder != "/" else f"/{name}"
                if mask & _COME:
                    found.append((Kind.FOLDER_CAME, path))
                elif mask & _WENT:
                    self.drop(path)
                    found.append((Kind.FOLDER_GONE, path))
            elif name:
                path = f"{folder}/{name}" if folder != "/" else f"/{name}"
                found.append((_kind(mask), path))
        if found:
            self._deliver(found)

    def _unlist(self, folder: str) -> None:
        self._numbers.pop(folder, None)
        above, name = os.path.split(folder)
        names = self._below.get(above)
        if names is not None and not self._below.get(folder):
            names.discard(name)
            if not names:
                del self._below[above]


def _kind(mask: int) -> Kind:
    if mask & _WENT:
        return Kind.GONE
    if mask & _CLOSE_WRITE:
        return Kind.WRITTEN
    if mask & _MOVED_TO:
        return Kind.PLACED
    return Kind.CREATED if mask & _CREATE else Kind.TOUCHED


def _limit(error: OSError, name: str) -> WatchLimitError | OSError:
    return WatchLimitError(name) if error.errno in (errno.ENOSPC, errno.EMFILE) else error

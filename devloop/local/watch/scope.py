"""What a service watches: folders and single files, where links lead to, less what is ignored.

Everything is kept by real paths, for that is what the kernel reports on.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from devloop.config.model import WatchMode
from devloop.local.watch.ignore import Ignore
from devloop.local.watch.links import followed, trace
from devloop.local.watch.mounts import Mounts


@dataclass(frozen=True, slots=True)
class WatchSpec:
    """What is to be watched under one name, a service's."""

    name: str
    base: Path
    """The folder that `ignore` is relative to."""
    paths: tuple[Path, ...]
    """Folders, with all below them; what is no folder is taken for a file, which need not exist yet."""
    ignore: tuple[str, ...] = ()
    gitignore: bool = True
    mode: WatchMode = WatchMode.AUTO
    poll: int = 0
    """Nanoseconds between two looks, when files are polled; 0: as devloop likes."""


class Scope:
    """A part of the file system. Services that watch the same share one."""

    def __init__(self, spec: WatchSpec, own: frozenset[str] = frozenset()) -> None:
        """`own`: real paths of the project's own files, which count only where they are named."""
        self.spec = spec
        self.names: list[str] = [spec.name]
        """The services that it is for."""
        self.ignore = Ignore(trace(str(spec.base))[0], spec.ignore, gitignore=spec.gitignore)
        self.own = own
        self.roots: dict[str, str] = {}
        """Real folder → where it seems to lie (elsewhere, if a link leads to it)."""
        self.reset(Mounts())

    def reset(self, mounts: Mounts) -> None:
        """Look anew where the named paths lead. Links below folders are told by `link`, again."""
        self._before, self.roots = self.roots, {}
        self.files: set[str] = set()
        """Files that count by themselves: named ones, and those that links lead to. They need not exist."""
        self.points: set[str] = set()
        """Links: if one of them changes, everything else here has to be looked at anew."""
        self.silent: dict[str, str] = {}
        """Folder → the file system that it lies on, which does not report every change."""
        self.refused: dict[str, str] = {}
        """Named path → why it can't be watched."""
        self._owners: dict[str, tuple[str, str] | None] = {}
        self.above: set[str] = set()
        """Every folder above those."""
        self._own_links: set[str] = set()
        self._mounts = mounts
        self._state = self._look()
        for path, (real, links, info) in self._state.items():
            self.points.update(links)
            if info is not None and stat.S_ISDIR(info[0]):
                self._root(real, real)
            elif info is not None and not stat.S_ISREG(info[0]):
                self.refused[path] = "it is neither a folder nor a file"
            else:
                self._file(real)
        for path in (*self.roots, *self.files, *self.points):
            self._add_above(path)
        self._named = frozenset(self.files)

    @property
    def moved(self) -> bool:
        """Whether named paths lead elsewhere than at the last `reset`: for what is reported by no event."""
        return self._look() != self._state

    @property
    def polled(self) -> bool:
        """Whether it was asked for."""
        return self.spec.mode is WatchMode.POLL

    @property
    def missing(self) -> list[str]:
        """Named paths that are not there."""
        return [path for path, (_, _, info) in self._state.items() if info is None]

    def owner(self, folder: str) -> tuple[str, str] | None:
        """The watched folder that this one is part of, and where that seems to lie; None if it is ignored."""
        try:
            return self._owners[folder]
        except KeyError:
            pass
        shown = self.roots.get(folder)
        found: tuple[str, str] | None = None
        if shown is not None:
            found = (folder, shown)
        elif folder != "/":
            found = self.owner(os.path.dirname(folder))
            if found and self.ignore.ignored(folder, folder=True, root=found[0], shown=found[1]):
                found = None
        self._owners[folder] = found
        return found

    def watches_folder(self, folder: Path | str) -> bool:
        """Whether what happens directly in this folder can concern the service."""
        return self.owner(os.fspath(folder)) is not None

    def watches_file(self, path: Path | str) -> bool:
        """Whether this file concerns the service."""
        path = os.fspath(path)
        if path in self.files:
            return path in self._named or path not in self.own
        if path in self.own or path in self._own_links:
            return False
        owner = self.owner(os.path.dirname(path))
        if owner is None:
            return path in self.points
        return not self.ignore.ignored(path, folder=False, root=owner[0], shown=owner[1])

    def link(self, path: str) -> str | None:
        """A link was found in a watched folder. Returns the folder that it leads to if that is to be watched too."""
        owner = self.owner(os.path.dirname(path))
        if owner is None or path in self.own:
            return None
        root, shown = owner
        # To git a link is a file, so that `node_modules/` does not match one; to us it stands for what it leads to.
        if any(self.ignore.ignored(path, folder=each, root=root, shown=shown) for each in (False, True)):
            return None
        real, links = trace(path)
        if real in self.own:
            self._own_links.add(path)
            return None
        self.points.update(links)
        for each in (real, *links):
            self._add_above(each)
        if not os.path.isdir(real):
            self._file(real)
            return real if real in self.roots else None
        if self.owner(real) is not None or not followed(real, path):
            return None
        self._root(real, shown + path[len(root) :])
        return real

    def forget_ignored(self) -> None:
        """A list of git's has changed."""
        self.ignore.forget()
        self._owners.clear()

    def _file(self, real: str) -> None:
        self.files.add(real)
        if real in self._before and not os.path.lexists(real):
            # A folder that has just gone: what was in it counts once more.
            self._root(real, self._before[real])

    def _root(self, real: str, shown: str) -> None:
        self.roots[real] = shown
        if self.spec.mode is WatchMode.AUTO:
            self.silent.update(self._mounts.silent(real))
        self._owners.clear()

    def _add_above(self, path: str) -> None:
        while path != "/":
            path = os.path.dirname(path)
            if path in self.above:
                break
            self.above.add(path)

    def _look(self) -> dict[str, tuple[str, list[str], tuple[int, int, int] | None]]:
        """Named path → its real path, the links on the way, and (mode, device, inode) of what is there."""
        found: dict[str, tuple[str, list[str], tuple[int, int, int] | None]] = {}
        for path in self.spec.paths:
            real, links = trace(str(path))
            try:
                info = os.stat(real)
            except OSError:
                found[str(path)] = (real, links, None)
            else:
                # A file is replaced by each save of some editors; its events tell.
                folder = stat.S_ISDIR(info.st_mode)
                kind = stat.S_IFMT(info.st_mode)
                found[str(path)] = (real, links, (kind, info.st_dev, info.st_ino) if folder else (kind, 0, 0))
        return found

"""What one service watches: folders and single files, less what is ignored."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from devloop.local.watch.ignore import Ignore


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


class Scope:
    """One service's part of the file system."""

    def __init__(self, spec: WatchSpec) -> None:
        self.spec = spec
        roots = [path.resolve() for path in spec.paths]
        self.folders = tuple(path for path in roots if path.is_dir())
        self.files = frozenset(path for path in roots if not path.is_dir())
        self.ignore = Ignore(spec.base.resolve(), spec.ignore, gitignore=spec.gitignore)
        self.quarantine: set[Path] = set()
        """Files that the service writes itself (the flap guard)."""

    def watches_folder(self, folder: Path) -> bool:
        """Whether what happens directly in this folder can concern the service."""
        if any(folder == root for root in self.folders):
            return True
        root = next((root for root in self.folders if folder.is_relative_to(root)), None)
        if root is None:
            return False
        return not any(self.ignore.ignored(part, folder=True) for part in _between(root, folder))

    def watches_file(self, path: Path) -> bool:
        """Whether this file concerns the service; `watches_folder` holds for its folder, or it is named."""
        if path in self.quarantine:
            return False
        if path in self.files:
            return True
        in_folder = any(path.is_relative_to(folder) for folder in self.folders)
        return in_folder and not self.ignore.ignored(path, folder=False)

    def walk(self, folder: Path) -> Iterator[tuple[Path, list[Path]]]:
        """(folder, files that concern the service) for this folder and every watched one below it."""
        files: list[Path] = []
        below: list[Path] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = folder / entry.name
                    if entry.is_dir(follow_symlinks=False):
                        if not self.ignore.ignored(path, folder=True):
                            below.append(path)
                    elif self.watches_file(path):
                        files.append(path)
        except OSError:
            return
        yield folder, files
        for path in below:
            yield from self.walk(path)


def _between(root: Path, folder: Path) -> list[Path]:
    """The folders below `root` on the way to `folder`, which is the last."""
    chain = [folder, *folder.parents]
    return chain[: chain.index(root)][::-1]

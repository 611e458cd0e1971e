"""Looks at folders and says what is not as it was last known: at the start, after lost events, when polling."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum

from devloop.local.watch.fingerprint import Fingerprints
from devloop.local.watch.scope import Scope

PORTION = 100
"""So many entries are looked at before the caller has its turn."""


class Found(Enum):
    """What a look says about a file."""

    NEW = "new"
    CHANGED = "changed"  # by size and times: whether it is so, its content says
    GONE = "gone"


Finding = tuple[Found, str]


def survey(
    folders: Iterable[str],
    scopes: Sequence[Scope],
    prints: Fingerprints,
    arm: Callable[[str], None],
) -> Iterator[Finding | None]:
    """Walk these folders and all below them that a scope watches, `arm` each, and yield what has changed.

    None is yielded now and then, for who does this piece by piece. Each folder is looked at once, for all scopes.
    Folders that links lead to are added to those that are walked.
    """
    todo = list(dict.fromkeys(folders))[::-1]
    done: set[str] = set()
    while todo:
        folder = todo.pop()
        if folder in done:
            continue
        concerned = [scope for scope in scopes if scope.owner(folder) is not None]
        if not concerned:
            continue  # unless a link that is found later leads to it
        done.add(folder)
        arm(folder)
        yield None
        known = set(prints.names(folder))
        gone = set(prints.subfolders(folder))
        below = f"{folder}/" if folder != "/" else "/"
        try:
            with os.scandir(folder) as entries:
                for count, entry in enumerate(entries):
                    name = entry.name
                    path = below + name
                    if entry.is_symlink():
                        todo += [real for scope in concerned if (real := scope.link(path))]
                    elif entry.is_dir(follow_symlinks=False):
                        gone.discard(name)
                        todo.append(path)
                        continue
                    if name in known:
                        known.discard(name)
                        try:
                            if prints.differs(path, entry.stat(follow_symlinks=False)):
                                yield Found.CHANGED, path
                        except OSError:
                            yield Found.GONE, path
                    elif any(scope.watches_file(path) for scope in concerned):
                        yield Found.NEW, path
                    if not count % PORTION:
                        yield None
        except PermissionError:
            continue  # `arm` has met it too
        except OSError:
            yield from ((Found.GONE, path) for path in prints.below(folder))
            continue
        yield from ((Found.GONE, below + name) for name in known)
        for name in gone:
            yield from ((Found.GONE, path) for path in prints.below(below + name))


def survey_files(files: Iterable[str], prints: Fingerprints) -> Iterator[Finding | None]:
    """The same for single files, and for links by themselves."""
    for path in files:
        yield None
        try:
            info = os.lstat(path)
        except OSError:
            if prints.knows(path):
                yield Found.GONE, path
            continue
        if not prints.knows(path):
            yield Found.NEW, path
        elif prints.differs(path, info):
            yield Found.CHANGED, path

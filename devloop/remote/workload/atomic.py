"""A volume's folder, written as the kubelet writes it, so that a reader sees all of an update or nothing.

    VOLUME/..2026_11_21_09_30_00.1234567890/   the files, in one version
    VOLUME/..data  -> ..2026_11_21_09_30_00.1234567890
    VOLUME/app.toml -> ..data/app.toml         one for each first part of a path

An update writes a new folder and renames a new `..data` over the old: one atomic step for all files.

Source of the rules: `pkg/volume/util/atomic_writer.go`.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from .beneath import BadNameError, Folder, parts
from .payload import File

DATA = "..data"


class BadPathError(ValueError):
    """A path that no volume may have; the API server refuses most of these."""


def write(folder: Path, files: Mapping[str, File], folder_mode: int = 0o777) -> bool:
    """Make `folder` hold just these files; says whether anything has changed.

    `folder_mode` is the mode of the volume itself; folders below have the kubelet's 0755 with its group
    bits. A file is at least readable by its owner, which here is the developer. Raises OSError and
    BadPathError; what was there before then stays.
    """
    for path in files:
        _check(path)
    with Folder.at(folder) as root:
        root.chmod("", folder_mode)
        old = root.target(DATA)
        if old is not None and "/" not in old and _same(folder / old, files):
            _show(root, files)
            return False
        stamp = time.strftime("..%Y_%m_%d_%H_%M_%S.", time.gmtime()) + secrets.token_hex(5)
        try:
            _fill(root, stamp, files, 0o755 | (folder_mode & 0o2000))
            root.put_link(DATA, stamp)
        except BaseException:
            root.remove(stamp)
            raise
        _show(root, files)
        visible = {PurePosixPath(path).parts[0] for path in files}
        if old is not None:
            for each in root.names():
                if root.target(each) == f"{DATA}/{each}" and each not in visible:
                    root.unlink(each)
            if "/" not in old and old.startswith("..") and old != "..":
                root.remove(old)
        return True


def _check(path: str) -> None:
    try:
        first = parts(path)[:1]
    except BadNameError as problem:
        raise BadPathError(f"path {path[:80]!r} is not one inside of a volume: {problem}") from None
    if not first or first[0].startswith(".."):
        raise BadPathError(f"path {path!r} is not one inside of a volume")


def _fill(root: Folder, stamp: str, files: Mapping[str, File], mode: int) -> None:
    with root.folder(stamp, mode) as new:
        for path, file in files.items():
            new.folder("/".join(path.split("/")[:-1]), mode).close()
            new.write(path, file.data, local_mode(file.mode))


def local_mode(mode: int) -> int:
    """The mode of a local file: as in the container, and its owner may read it.

    In the container the owner is root and the process may be another user, who reads by group or others;
    here the process is the owner, whom "---r-----" would lock out. What would make a program run as its
    owner stays away: here that is the developer.
    """
    return (mode & 0o777) | 0o400


def _same(folder: Path, files: Mapping[str, File]) -> bool:
    if not folder.is_dir():
        return False
    there = {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}
    return there == set(files) and all(
        (folder / path).read_bytes() == file.data
        and stat.S_IMODE(os.lstat(folder / path).st_mode) == local_mode(file.mode)
        for path, file in files.items()
    )


def _show(root: Folder, files: Mapping[str, File]) -> None:
    for path in files:
        first = PurePosixPath(path).parts[0]
        if not root.there(first):  # a mount point of another volume's stays, as in the pod
            root.link(first, f"{DATA}/{first}")

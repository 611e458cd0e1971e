"""A volume's folder, written as the kubelet writes it, so that a reader sees all of an update or nothing.

    VOLUME/..2026_11_21_09_30_00.1234567890/   the files, in one version
    VOLUME/..data  -> ..2026_11_21_09_30_00.1234567890
    VOLUME/app.toml -> ..data/app.toml         one for each first part of a path

An update writes a new folder and renames a new `..data` over the old: one atomic step for all files.

Source of the rules: `pkg/volume/util/atomic_writer.go`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from .payload import File

DATA = "..data"
_NEW_DATA = "..data_tmp"
_MAX_PATH = 4096
_MAX_NAME = 255


class BadPathError(ValueError):
    """A path that no volume may have; the API server refuses most of these."""


def write(folder: Path, files: Mapping[str, File], folder_mode: int = 0o777) -> bool:
    """Make `folder`, which exists, hold just these files; says whether anything has changed.

    `folder_mode` is the mode of the volume itself; folders below have the kubelet's 0755 with its group
    bits. A file is at least readable by its owner, which here is the developer. Raises OSError and
    BadPathError; what was there before then stays.
    """
    for path in files:
        _check(path)
    folder.chmod(folder_mode)
    data = folder / DATA
    old = _link(data)
    if old is not None and (folder / old).is_dir() and _same(folder / old, files):
        _show(folder, files)
        return False
    stamp = time.strftime("..%Y_%m_%d_%H_%M_%S.", time.gmtime())
    new = Path(tempfile.mkdtemp(prefix=stamp, dir=folder))
    try:
        _fill(new, files, 0o755 | (folder_mode & 0o2000))
        fresh = folder / _NEW_DATA
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(new.name)
        fresh.replace(data)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    _show(folder, files)
    visible = {PurePosixPath(path).parts[0] for path in files}
    if old is not None:
        for each in folder.iterdir():
            if each.is_symlink() and _link(each) == f"{DATA}/{each.name}" and each.name not in visible:
                each.unlink()
        shutil.rmtree(folder / old, ignore_errors=True)
    return True


def _check(path: str) -> None:
    parts = path.split("/")
    if not path or path.startswith("/") or ".." in parts or parts[0].startswith(".."):
        raise BadPathError(f"path {path!r} is not one inside of a volume")
    if len(path) > _MAX_PATH or any(len(os.fsencode(each)) > _MAX_NAME for each in parts):
        raise BadPathError(f"path {path[:80]!r}… is too long")


def _fill(folder: Path, files: Mapping[str, File], mode: int) -> None:
    folder.chmod(mode)
    for path, file in files.items():
        target = folder / path
        for parent in reversed(target.relative_to(folder).parents[:-1]):
            (folder / parent).mkdir(exist_ok=True)
            (folder / parent).chmod(mode)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(file.data)
            os.fchmod(out.fileno(), local_mode(file.mode))


def local_mode(mode: int) -> int:
    """The mode of a local file: as in the container, and its owner may read it.

    In the container the owner is root and the process may be another user, who reads by group or others;
    here the process is the owner, whom "---r-----" would lock out.
    """
    return (mode & 0o7777) | 0o400


def _same(folder: Path, files: Mapping[str, File]) -> bool:
    there = {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}
    return there == set(files) and all(
        (folder / path).read_bytes() == file.data and (folder / path).stat().st_mode & 0o7777 == local_mode(file.mode)
        for path, file in files.items()
    )


def _show(folder: Path, files: Mapping[str, File]) -> None:
    for path in files:
        first = PurePosixPath(path).parts[0]
        visible = folder / first
        if not os.path.lexists(visible):  # a mount point of another volume's stays, as in the pod
            visible.symlink_to(f"{DATA}/{first}")


def _link(path: Path) -> str | None:
    try:
        return str(path.readlink())
    except OSError:
        return None

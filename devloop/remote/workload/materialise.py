"""A container's mounts on this machine: which volume lies where, and the files of those made from the API."""

from __future__ import annotations

import posixpath
import stat
from collections.abc import Mapping
from pathlib import Path

from . import atomic, beneath, payload
from .beneath import BadNameError, Folder
from .expansion import expand
from .model import Absence, Mount, Note, Object, Problem, Sources, Workload
from .payload import MATERIALISED, TokenSource


def sub_path(mount: Object, environment: Mapping[str, str]) -> str:
    """The `subPath` of a mount, or its `subPathExpr` expanded as `ExpandContainerVolumeMounts` does.

    "" if it has neither. Raises ValueError where the container would not start.
    """
    path = mount.get("subPath") or ""
    if expression := mount.get("subPathExpr"):
        absent: list[str] = []

        def value_of(name: str) -> str:
            if not environment.get(name):
                absent.append(name)
            return environment.get(name, "")

        path = expand(expression, value_of)
        if absent:
            names = ", ".join(sorted(set(absent)))
            raise ValueError(f"subPathExpr {expression}: no value for {names}")
    if path.startswith("/"):
        raise ValueError(f"subPath {path} must not be absolute")
    if ".." in path.split("/"):
        raise ValueError(f"subPath {path} must not contain '..'")
    path = posixpath.normpath(path) if path else ""
    return "" if path == "." else path


def write(
    folder: Path,
    volume: Object,
    workload: Workload,
    sources: Sources,
    tokens: Mapping[TokenSource, str | Absence],
    bundles: Mapping[str, str | Absence],
) -> tuple[bool, tuple[Note, ...], tuple[Problem, ...]]:
    """Bring the files of one volume up to date under `folder`, all at once or, with a problem, not at all.

    Says whether they have changed. Raises OSError.
    """
    made = payload.make(volume, workload, sources, tokens, bundles)
    if made.problems:
        return False, made.notes, made.problems
    try:
        with Folder.at(folder) as root:
            for each in payload.nested_mount_points(volume["name"], workload.pod):
                root.folder(each, 0o755).close()
        changed = atomic.write(folder, made.files, made.folder_mode)
    except (atomic.BadPathError, BadNameError) as problem:
        return False, made.notes, (Problem(f"volume {volume['name']}", str(problem)),)
    return changed, made.notes, ()


def snapshot(volume: Path, path: str, target: Path) -> None:
    """Put what a `subPath` of a materialised volume shows at `target`, as it is now and stays.

    A path that is not there becomes an empty folder, as the kubelet makes one. Raises OSError, BadNameError.
    """
    source = beneath.inside(volume, path)
    beneath.remove(target)  # the last look at the same workload may have left it
    with Folder.at(target.parent) as above:
        if source.is_file():
            above.write(target.name, source.read_bytes(), stat.S_IMODE(source.stat().st_mode))
            return
        above.folder(target.name, stat.S_IMODE(source.stat().st_mode) if source.is_dir() else 0o755).close()
        for each in source.rglob("*") if source.is_dir() else ():
            to = f"{target.name}/{each.relative_to(source)}"
            if each.is_dir():
                above.folder(to, stat.S_IMODE(each.stat().st_mode)).close()
            elif each.is_file():
                above.write(to, each.read_bytes(), stat.S_IMODE(each.stat().st_mode))


def mounts_of(
    workload: Workload, environment: Mapping[str, str]
) -> tuple[list[tuple[Object, Object, str]], list[Problem]]:
    """(mount, volume, subPath) of each mount of the container, and the problems of those that have one."""
    volumes = payload.volumes_of(workload)
    found, problems = [], []
    for mount in workload.container.get("volumeMounts") or []:
        subject = f"mount {mount['mountPath']}"
        if mount["name"] not in volumes:
            problems.append(Problem(subject, f"there is no volume {mount['name']}"))
            continue
        try:
            found.append((mount, volumes[mount["name"]], sub_path(mount, environment)))
        except ValueError as problem:
            problems.append(Problem(subject, str(problem)))
    return found, problems


def as_mount(mount: Object, volume: Object, source: Path, *, whole: bool) -> Mount:
    """The result for one mount."""
    kind = payload.kind_of(volume)
    made = kind in MATERIALISED
    read_only = bool(mount.get("readOnly")) or made or bool((volume.get(kind) or {}).get("readOnly"))
    path = posixpath.join("/", mount["mountPath"])
    return Mount(path, source, volume["name"], kind, read_only, made and whole)

"""A container's view of the world, opened, kept up to date and closed again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devloop.agent.tasks import background
from devloop.errors import RemoteError

from . import (
    beneath,
    copying,
    environment,
    files_container,
    fuse,
    gather,
    materialise,
    payload,
    runfolder,
    running,
    sftp,
)
from .cluster import Cluster
from .find import find, is_running
from .following import Follower
from .model import (
    Change,
    Environment,
    Mount,
    Note,
    Object,
    VolumeMode,
    Workload,
    WorldView,
    refuse,
)


@dataclass(frozen=True, slots=True)
class Options:
    """How a view is opened."""

    agent_image: str
    """For the ephemeral container: has Python 3.11 and asyncssh, and a user of its own that is not root."""
    modes: Mapping[str, VolumeMode] = field(default_factory=dict)
    """For claims, emptyDir, hostPath and the like, by the volume's name or a mount's path."""
    default_mode: VolumeMode = VolumeMode.COPY
    copy_limit: int = copying.DEFAULT_LIMIT
    """Bytes of all copied volumes together."""
    image_environment: bool = True
    """Read the image's own variables by exec."""
    follow: bool = True
    """Keep the files up to date, and tell of other changes."""
    secrets_on_disk: bool = True
    """Secret files may be written where `folder` is on a disk."""
    on_change: Callable[[Change], None] = lambda change: None
    """Called in the event loop."""
    on_progress: Callable[[copying.Progress], None] = lambda progress: None


async def read_environment(
    cluster: Cluster, reference: str, container: str | None = None, *, image: bool = True
) -> tuple[Workload, Environment]:
    """The environment alone: nothing is written anywhere.

    Raises UsageError for what is named wrongly, and RemoteError with all that is missing.
    """
    workload = await find(cluster, reference, container)
    found = environment.make(workload, await gather.sources(cluster, workload, volumes=False))
    refuse(workload.where, found.problems)
    return workload, await _enriched(cluster, workload, found) if image else found


@asynccontextmanager
async def open_view(
    cluster: Cluster,
    reference: str,
    container: str | None = None,
    *,
    folder: Path,
    data: Path,
    options: Options,
) -> AsyncIterator[WorldView]:
    """The container's environment and mounts, which stay true while the context lasts.

    ConfigMap, Secret, downwardAPI and projected volumes lie under `folder`, which has to be private
    (`RunFolder`); copies and FUSE mounts of other volumes under `data`, which may be a disk's. Both are
    the caller's to remove; this empties what it has made.

    Raises UsageError for what is named wrongly, and RemoteError with all that is missing at once.
    """
    workload = await find(cluster, reference, container)
    sources = await gather.sources(cluster, workload)
    found = environment.make(workload, sources)
    problems = list(found.problems)
    if options.image_environment:
        found = await _enriched(cluster, workload, found)
    # subPathExpr knows what the pod's spec defines and the service links, and nothing of the image's.
    mounts, more = materialise.mounts_of(workload, found.mapping(image=False))
    if not options.secrets_on_disk and not await asyncio.to_thread(runfolder.in_memory, folder):
        _refuse_disk(workload, [volume for _, volume, _ in mounts], folder, options)
    notes = list(found.notes)
    follower = Follower(cluster, workload, sources, folder / "volumes", options.on_change)
    await follower.fetch()
    async with AsyncExitStack() as stack:
        stack.callback(runfolder.remove, folder / "volumes")
        stack.callback(runfolder.remove, folder / "subpaths")
        problems += more + follower.write(notes)
        refuse(workload.where, problems)
        places = {volume["name"]: folder / "copies" if _secret(volume) else data for _, volume, _ in mounts}
        stack.callback(runfolder.remove, folder / "copies")
        far = await _far_volumes(stack, cluster, workload, mounts, places, options, notes)
        made: list[Mount] = []
        for index, (mount, volume, path) in enumerate(mounts):
            name = volume["name"]
            try:
                if payload.kind_of(volume) in payload.MATERIALISED:
                    source = folder / "volumes" / name
                    if path:
                        target = folder / "subpaths" / str(index)
                        materialise.snapshot(source, path, target)
                        source = target
                elif name in far:
                    # In a thread: what is mounted by FUSE is answered by this loop.
                    source = await asyncio.to_thread(beneath.inside, far[name], path) if path else far[name]
                else:
                    continue
            except beneath.BadNameError as problem:
                raise RemoteError(
                    f"mount {mount['mountPath']}, subPath {path}: {problem}",
                    where=workload.where,
                    hint=f'Its pod has made it so. Leave the volume out: volumes = {{ {name} = "ignore" }}',
                ) from None
            made.append(materialise.as_mount(mount, volume, source, whole=not path))
        notes += _of_spec(workload)
        if options.follow:
            task = background(follower.run(found), name="changes of the workload")
            stack.push_async_callback(_ended, task)
        made.sort(key=lambda each: each.path)
        yield WorldView(workload, found, tuple(made), tuple(dict.fromkeys(notes)))


async def _enriched(cluster: Cluster, workload: Workload, found: Environment) -> Environment:
    there, note = await running.read(cluster, workload)
    if there is not None:
        return environment.enriched(found, there)
    return Environment(found.variables, (), found.stand_ins, (*found.notes, *([note] if note else ())), found.problems)


_SECRET_KINDS = ("secret", "projected", "csi")
"""Kinds that the kubelet, or a driver of secret stores and certificates, keeps in memory."""


def _secret(volume: Object) -> bool:
    """Whether a volume is in memory in the pod, so that nothing of it may reach a disk here."""
    kind = payload.kind_of(volume)
    return kind in _SECRET_KINDS or (kind == "emptyDir" and (volume.get(kind) or {}).get("medium") == "Memory")


def _refuse_disk(workload: Workload, volumes: Iterable[Object], folder: Path, options: Options) -> None:
    """Raises RemoteError if secret files would have to be written to a disk."""
    names = {each["name"] for each in volumes if _secret(each)}
    names -= {name for name in names if options.modes.get(name, options.default_mode) is VolumeMode.IGNORE}
    if names:
        raise RemoteError(
            f"volumes {', '.join(sorted(names))} hold secrets, and there is no tmpfs here to keep them in: {folder} is "
            "on a disk",
            where=workload.where,
            hint="set XDG_RUNTIME_DIR to a folder on a tmpfs (or mount one at /dev/shm); or allow it with `[remote] "
            "secrets_on_disk = true`",
        )


async def _far_volumes(
    stack: AsyncExitStack,
    cluster: Cluster,
    workload: Workload,
    mounts: list[tuple[Object, Object, str]],
    places: Mapping[str, Path],
    options: Options,
    notes: list[Note],
) -> dict[str, Path]:
    """Where the volumes lie that only the cluster has; those left out are not in it, each with a note."""
    wanted: dict[str, set[str]] = {}
    modes: dict[str, VolumeMode] = {}
    kinds: dict[str, str] = {}
    for mount, volume, path in mounts:
        name, kind = volume["name"], payload.kind_of(volume)
        if kind in payload.MATERIALISED:
            continue
        kinds[name] = kind
        modes[name] = options.modes.get(mount["mountPath"], options.modes.get(name, options.default_mode))
        wanted.setdefault(name, set()).add(path)
    ignored = {name for name, mode in modes.items() if mode is VolumeMode.IGNORE}
    notes += [Note(f"volume {name}", "left out, as the configuration says (ignore)") for name in ignored]
    for name in ignored:
        del wanted[name]
    found: dict[str, Path] = {}
    try:
        if not wanted:
            return found
        if not is_running(workload.pod):
            raise RemoteError(
                f"volumes {', '.join(sorted(wanted))} can't be read: no pod of {workload.reference} runs",
                where=workload.where,
                hint='Start one, or set them to "ignore".',
            )
        # Before the container, which stays in the pod's spec for good.
        for name in wanted:
            if modes[name] is VolumeMode.MOUNT and (reason := fuse.missing()):
                raise RemoteError(
                    f"volume {name} can't be mounted: {reason}",
                    where=workload.where,
                    hint='Install sshfs and FUSE 3, or set this volume to "copy" or "ignore".',
                )
        helper = await files_container.start(cluster, workload, options.agent_image, wanted)
    except RemoteError as problem:
        # A pod's scratch space is empty at its start, too; anything else that is missing is an error.
        if any(kinds[name] != "emptyDir" or modes[name] is VolumeMode.MOUNT for name in wanted):
            raise
        for name in wanted:
            notes.append(Note(f"volume {name}", f"an empty folder stands in: {problem.what}"))
            found[name] = places[name] / name
            stack.callback(runfolder.remove, found[name])
            with beneath.Folder.at(found[name]) as scratch:
                for path in wanted[name]:
                    scratch.folder(path).close()
        return found
    copied = [name for name in wanted if modes[name] is VolumeMode.COPY]
    async with AsyncExitStack() as session:
        connection = await session.enter_async_context(sftp.connect(cluster, workload.pod_name, helper))
        for name in sorted(wanted):
            found[name] = places[name] / name
            found[name].parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            runfolder.remove(found[name])
            stack.callback(runfolder.remove, found[name])
        if copied:
            client: Any = await session.enter_async_context(connection.start_sftp_client(path_errors="surrogateescape"))
            copier = copying.Copier(client, options.copy_limit, options.on_progress)
            for name in sorted(copied):
                below = wanted[name] if "" not in wanted[name] else {""}
                await copier.copy(name, f"{files_container.ROOT}/{name}", found[name], below)
            notes += copier.notes
        if len(copied) < len(wanted):
            for name in sorted(wanted.keys() - copied):
                found[name].mkdir(mode=0o700)
                remote = f"{files_container.ROOT}/{name}"
                await session.enter_async_context(fuse.mounted(connection, name, remote, found[name]))
            # The mounts live as long as the view: before it, what lies under them must not be removed.
            await stack.enter_async_context(session.pop_all())
    return found


def _of_spec(workload: Workload) -> list[Note]:
    """What of the container's surroundings a local process doesn't get, if the spec asks for it."""
    notes = []
    if devices := workload.container.get("volumeDevices"):
        names = ", ".join(each["name"] for each in devices)
        notes.append(Note("volume devices", f"{names}: block devices can't be had outside of the pod"))
    if not is_running(workload.pod):
        text = f"no pod of {workload.reference} runs: what admission adds to a pod is not seen"
        notes.append(Note(workload.reference, text))
    return notes


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

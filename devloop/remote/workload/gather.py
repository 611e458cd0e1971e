"""Reads from the cluster what one container's environment and files are made from, and nothing else."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterator
from typing import Any

from devloop.errors import RemoteError

from . import references as kinds
from .cluster import AbsentError, Cluster
from .model import Absence, Object, Sources, Workload
from .payload import TokenSource, references, tokens_of, volumes_of
from .references import Kind

RELAXED_SINCE = (1, 32)
"""RelaxedEnvironmentVariableValidation is on by default from there."""


def config_maps(workload: Workload, *, volumes: bool = True) -> set[str]:
    """The ConfigMaps that the container's environment, and its `volumes`, are made from."""
    return {name for kind, name in _references(workload, volumes) if kind == "configmap" and name}


def secrets(workload: Workload, *, volumes: bool = True) -> set[str]:
    """The Secrets, likewise."""
    return {name for kind, name in _references(workload, volumes) if kind == "secret" and name}


async def sources(cluster: Cluster, workload: Workload, *, volumes: bool = True) -> Sources:
    """All of it, read side by side; `volumes` is False for the environment alone. Raises RemoteError."""
    spec = workload.pod["spec"]
    maps, hidden = config_maps(workload, volumes=volumes), secrets(workload, volumes=volumes)
    async with asyncio.TaskGroup() as tasks:

        def start(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
            return tasks.create_task(_contained(work))

        map_tasks = {name: start(_one(cluster, kinds.CONFIG_MAP, name)) for name in maps}
        secret_tasks = {name: start(_one(cluster, kinds.SECRET, name)) for name in hidden}
        links = start(_services(cluster)) if spec.get("enableServiceLinks", True) else None
        master = start(_one(cluster, kinds.SERVICE, "kubernetes", namespace="default"))
        node_name = spec.get("nodeName") if _wants_node(workload, volumes) else None
        node = start(_one(cluster, kinds.NODE, node_name, namespace="")) if node_name else None
        version = start(cluster.version()) if workload.container.get("envFrom") else None

    def done(task: asyncio.Task[Any]) -> Any:
        result = task.result()
        if isinstance(result, RemoteError):
            raise result
        return result

    found_node = done(node) if node else None
    found_master = done(master)
    return Sources(
        {name: done(task) for name, task in map_tasks.items()},
        {name: done(task) for name, task in secret_tasks.items()},
        done(links) if links else (),
        None if isinstance(found_master, Absence) else found_master,
        None if found_node is None or isinstance(found_node, Absence) else found_node["status"]["allocatable"],
        local_capacity(),
        version is None or done(version) >= RELAXED_SINCE,
    )


async def bundles(cluster: Cluster, workload: Workload) -> dict[str, str | Absence]:
    """The ClusterTrustBundles that are named in the container's volumes: PEM text by name."""
    found: dict[str, str | Absence] = {}
    for volume in volumes_of(workload).values():
        for source in (volume.get("projected") or {}).get("sources") or []:
            if name := (source.get("clusterTrustBundle") or {}).get("name"):
                bundle = await _one(cluster, kinds.TRUST_BUNDLE, name, namespace="")
                found[name] = bundle if isinstance(bundle, Absence) else bundle["spec"]["trustBundle"]
    return found


def tokens(workload: Workload) -> set[TokenSource]:
    """The tokens that the container's volumes hold."""
    return {token for volume in volumes_of(workload).values() for token in tokens_of(volume)}


def local_capacity() -> dict[str, str]:
    """What this machine has, in the words of a node's `status.allocatable`."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": str(os.cpu_count() or 1), "memory": str(memory), "ephemeral-storage": "0"}


def _references(workload: Workload, volumes: bool) -> Iterator[tuple[str, str]]:
    container = workload.container
    for source in container.get("envFrom") or []:
        for key, kind in (("configMapRef", "configmap"), ("secretRef", "secret")):
            if source.get(key):
                yield kind, source[key].get("name", "")
    for entry in container.get("env") or []:
        value_from = entry.get("valueFrom") or {}
        for key, kind in (("configMapKeyRef", "configmap"), ("secretKeyRef", "secret")):
            if value_from.get(key):
                yield kind, value_from[key].get("name", "")
    if volumes:
        for volume in volumes_of(workload).values():
            yield from references(volume)


def _wants_node(workload: Workload, volumes: bool) -> bool:
    """Whether anything asks for a limit, which may be the node's."""
    items: list[Object] = [each.get("valueFrom") or {} for each in workload.container.get("env") or []]
    for volume in volumes_of(workload).values() if volumes else ():
        items += (volume.get("downwardAPI") or {}).get("items") or []
        for source in (volume.get("projected") or {}).get("sources") or []:
            items += (source.get("downwardAPI") or {}).get("items") or []
    return any((each.get("resourceFieldRef") or {}).get("resource", "").startswith("limits.") for each in items)


async def _one(cluster: Cluster, kind: Kind, name: str, *, namespace: str | None = None) -> Object | Absence:
    try:
        return await cluster.get(kind, name, namespace=namespace)
    except AbsentError as absent:
        return absent.absence


async def _services(cluster: Cluster) -> tuple[Object, ...] | Absence:
    try:
        return (await cluster.listing(kinds.SERVICE)).items
    except AbsentError as absent:
        return absent.absence


async def _contained(work: Coroutine[Any, Any, Any]) -> Any:
    """An error as a result: a task group would wrap it, and what one says is what all say."""
    try:
        return await work
    except RemoteError as problem:
        return problem

"""What the pods of a workload print, as the API server hands it on from the kubelet (`pods/log`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from heapq import heapify, heappop, heapreplace
from http import HTTPStatus
from typing import Any

from devloop.agent.tasks import background
from devloop.errors import RemoteError, UsageError
from devloop.remote.workload import references as kinds
from devloop.remote.workload.find import choose_container
from devloop.remote.workload.kube import selector
from devloop.remote.workload.references import Kind

from .api import Api, ApiError

BY_NAME = (kinds.ROLLOUT, kinds.DEPLOYMENT, kinds.STATEFUL_SET, kinds.DAEMON_SET, kinds.JOB, kinds.CRON_JOB)
"""In the order in which a workload is looked for by its name alone, as `devloop.remote.catalog` does."""
LONGEST_LINE = 1_000_000
"""Bytes of a line that has no end; more comes in pieces, as in the kubelet's own files."""
AGAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a container. `at` is Unix time in nanoseconds, by the node's clock; 0 if it has none."""

    pod: str
    at: int
    text: str


@dataclass(frozen=True, slots=True)
class Source:
    """The pods whose lines are meant."""

    reference: str
    labels: str
    """A label selector; empty for a pod."""
    name: str = ""
    """Of a pod, where that alone is meant."""
    container: str | None = None
    """None: as kubectl picks it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines. `tail` of each container: lines; `since`: seconds. None: all."""

    tail: int | None = None
    since: int | None = None

    @property
    def query(self) -> dict[str, str]:
        """For the API (PodLogOptions)."""
        out = {"timestamps": "true"}
        if self.tail is not None:
            out["tailLines"] = str(self.tail)
        if self.since is not None:
            out["sinceSeconds"] = str(max(1, self.since))
        return out


async def source(api: Api, reference: str, container: str | None) -> Source:
    """The pods of a workload, "deployment/web" or "web". UsageError if there is none; ApiError."""
    named, name = kinds.parse(reference)
    tried = BY_NAME if named is None else (named,)
    for kind in tried:
        try:
            owner = await api.find(kind.path(api.namespace, name))
        except ApiError as problem:
            if len(tried) == 1 or problem.status != HTTPStatus.FORBIDDEN:
                raise
            continue
        if owner is not None:
            return await _source(api, kind, name, owner, container)
    raise UsageError(
        f"there is no workload {reference!r}", where=api.where, hint="`devloop list` shows those that there are"
    )


async def _source(api: Api, kind: Kind, name: str, owner: Mapping[str, Any], container: str | None) -> Source:
    reference = f"{kind.name.lower()}/{name}"
    if kind is kinds.POD:
        return Source(reference, "", name, container)
    if kind is kinds.CRON_JOB:
        jobs = (await api.get(kinds.JOB.path(api.namespace))).get("items") or []
        uid = owner["metadata"]["uid"]
        mine = [
            str(each["metadata"]["name"])
            for each in jobs
            if any(by.get("uid") == uid for by in each["metadata"].get("ownerReferences") or [])
        ]
        return Source(reference, f"job-name in ({','.join(mine) or name})", "", container)
    labels = owner["spec"].get("selector")
    if not labels and kind is kinds.ROLLOUT:  # of a template that a Deployment lends it
        lender = await api.find(kinds.DEPLOYMENT.path(api.namespace, owner["spec"]["workloadRef"]["name"]))
        labels = lender["spec"].get("selector") if lender is not None else None
    return Source(reference, selector(labels or {}), "", container)


async def read(api: Api, sources: Iterable[Source], wanted: Wanted) -> AsyncIterator[Line]:
    """What the pods that are there have printed, oldest first. UsageError if there is no pod; ApiError.

    However much that is, one line of each container is kept here: what it prints next is asked for when that has been
    taken. A line without a time follows the one before it.
    """
    streams = [stream for of in sources for stream in await _streams(api, of, wanted)]
    firsts = await asyncio.gather(*(anext(stream, None) for stream in streams), return_exceptions=True)
    try:
        for first in firsts:
            if isinstance(first, BaseException):
                raise first
        heads = [(first.at, number, first) for number, first in enumerate(firsts) if isinstance(first, Line)]
        heapify(heads)
        while heads:
            at, number, line = heads[0]
            yield line
            following = await anext(streams[number], None)
            if following is None:
                heappop(heads)
            else:
                heapreplace(heads, (following.at or at, number, following))
    finally:
        for stream in streams:
            await stream.aclose()


async def _streams(api: Api, of: Source, wanted: Wanted) -> list[AsyncGenerator[Line]]:
    """The lines of each of its containers."""
    pods = [pod for pod in await _pods(api, of) if _container(pod, of) in _begun(pod)]
    if not pods:
        raise UsageError(f"{of.reference} has no pod that has printed anything", where=api.where)
    return [lines(api, str(pod["metadata"]["name"]), _container(pod, of), wanted.query) for pod in pods]


async def follow(api: Api, of: Source, wanted: Wanted, hear: Callable[[Line], None]) -> None:
    """Hand lines on as they come, of pods that come later and containers that start again too; never returns.

    UsageError, ApiError if the first look fails. A lost connection is made anew where it was lost.
    """
    following: dict[str, asyncio.Task[None]] = {}
    began, first, refused = time.time(), True, asyncio.get_running_loop().create_future()

    async def one(pod: Mapping[str, Any], container: str, query: Mapping[str, str]) -> None:
        name, last = str(pod["metadata"]["name"]), 0
        while True:
            try:
                async for line in lines(api, name, container, {**query, "follow": "true"}):
                    if line.at > last or not line.at:
                        last = line.at or last
                        hear(line)
                return  # it has ended
            except ApiError as problem:
                if problem.status == HTTPStatus.FORBIDDEN and not refused.done():
                    refused.set_exception(problem)
                return  # the pod has gone
            except RemoteError:
                await asyncio.sleep(AGAIN_SECONDS)
                seen = last / 1e9 if last else began
                query = {"timestamps": "true", "sinceSeconds": str(int(time.time() - seen) + 1)}

    try:
        while True:
            try:
                for pod in await _pods(api, of):
                    container = _container(pod, of)
                    instance = _begun(pod).get(container)
                    if instance and instance not in following:
                        query = wanted.query if first else {"timestamps": "true"}
                        following[instance] = background(one(pod, container, query), name=f"logs of {instance}")
            except RemoteError:
                if first:
                    raise
            first = False
            await asyncio.wait([refused], timeout=AGAIN_SECONDS)
            if refused.done():
                refused.result()
    finally:
        for task in following.values():
            task.cancel()
        await asyncio.gather(*following.values(), return_exceptions=True)
        refused.cancel()


async def lines(api: Api, pod: str, container: str, query: Mapping[str, str]) -> AsyncGenerator[Line]:
    """The lines of one container. ApiError, ApiUnreachableError."""
    rest = b""
    path = f"{kinds.POD.path(api.namespace, pod)}/log"
    async for part in api.stream(path, container=container, **query):
        *whole, rest = (rest + part).split(b"\n")
        for each in whole:
            yield _line(pod, each)
        if len(rest) > LONGEST_LINE:
            yield _line(pod, rest)
            rest = b""
    if rest:
        yield _line(pod, rest)


def _line(pod: str, data: bytes) -> Line:
    """`2026-11-28T03:15:32.123456789Z text`, as `timestamps` asks for."""
    stamp, _, text = data.decode("utf-8", "replace").rstrip("\r").partition(" ")
    try:
        whole, _, fraction = stamp.rstrip("Z").partition(".")
        at = int(datetime.fromisoformat(f"{whole}+00:00").timestamp()) * 10**9 + int(f"{fraction:0<9}"[:9] or 0)
    except ValueError:
        return Line(pod, 0, data.decode("utf-8", "replace"))
    return Line(pod, at, text)


async def _pods(api: Api, of: Source) -> Iterable[dict[str, Any]]:
    query = {"fieldSelector": f"metadata.name={of.name}"} if of.name else {"labelSelector": of.labels}
    return list((await api.get(kinds.POD.path(api.namespace), **query)).get("items") or [])


def _container(pod: Mapping[str, Any], of: Source) -> str:
    found, _ = choose_container(dict(pod), of.container, f"pod/{pod['metadata']['name']}")
    return str(found["name"])


def _begun(pod: Mapping[str, Any]) -> dict[str, str]:
    """Containers that have run → which instance of each; a new one has a log of its own."""
    status = pod.get("status") or {}
    of_all = [*(status.get("containerStatuses") or []), *(status.get("initContainerStatuses") or [])]
    return {
        str(each["name"]): f"{pod['metadata']['uid']} {each['containerID']}"
        for each in of_all
        if each.get("containerID")
    }

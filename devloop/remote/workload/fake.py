"""A cluster in memory: objects, watches, tokens and what commands print. Shipped for tests.

`tests/unit/workload/contract.py` runs on this one and on the real one.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from devloop.errors import RemoteError

from .cluster import AbsentError, Event, ExecStream, ExpiredError, Listing, Ran, Token
from .model import Absence, Object
from .references import Kind


class FakeCluster:
    """One namespace, and objects outside of it that are kept by their namespace."""

    def __init__(self, namespace: str = "shop") -> None:
        self.namespace = namespace
        self.kubernetes = (1, 36)
        self.forbidden: set[tuple[str, str]] = set()
        """(verb, plural) of what this user may not do; verbs are those of RBAC."""
        self.tokens: list[tuple[str, str, int]] = []
        """(account, audience, seconds) of each token that was asked for."""
        self.asked: list[tuple[str, str, str]] = []
        """(verb, plural, name) of each request."""
        self.unreachable = False
        self.on_run: Callable[[str, str, tuple[str, ...]], Ran] = lambda pod, container, command: Ran(-1, b"", b"")
        self._objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._versions = itertools.count(1)
        self._version = 0
        self._oldest = 0
        self._events: list[tuple[int, str, str, Event]] = []
        self._news = asyncio.Condition()

    async def put(self, kind: Kind, item: Object, *, namespace: str | None = None) -> Object:
        """Create an object or replace it."""
        within = self.namespace if namespace is None else namespace
        made = copy.deepcopy(dict(item))
        metadata = made["metadata"] = dict(made["metadata"])
        key = (within, kind.plural, metadata["name"])
        before = self._objects.get(key)
        self._version = next(self._versions)
        metadata["resourceVersion"] = str(self._version)
        metadata.setdefault("namespace", within)
        metadata.setdefault("uid", before["metadata"]["uid"] if before else f"uid-{self._version}")
        metadata.setdefault("creationTimestamp", "2026-11-21T09:00:00Z")
        self._objects[key] = made
        await self._tell(kind, Event("MODIFIED" if before else "ADDED", made))
        return made

    async def delete(self, kind: Kind, name: str) -> None:
        """Delete an object."""
        gone = self._objects.pop((self.namespace, kind.plural, name))
        self._version = next(self._versions)
        last = {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self._version)}}
        await self._tell(kind, Event("DELETED", last))

    async def compact(self) -> None:
        """Forget all that has been: a watch from an older version is told 410 Gone."""
        self._oldest = self._version = next(self._versions)
        self._events.clear()
        async with self._news:
            self._news.notify_all()

    async def get(self, kind: Kind, name: str, *, namespace: str | None = None) -> Object:
        """See `Cluster`."""
        self._ask("get", kind, name)
        within = self.namespace if namespace is None else namespace
        found = self._objects.get((within, kind.plural, name))
        if found is None:
            raise AbsentError(Absence.MISSING, f"{kind.plural} {name!r} not found")
        return copy.deepcopy(found)

    async def listing(self, kind: Kind, *, labels: Mapping[str, Any] | None = None, name: str | None = None) -> Listing:
        """See `Cluster`."""
        self._ask("list", kind, name or "")
        items = [
            copy.deepcopy(item)
            for (within, plural, each), item in self._objects.items()
            if within == self.namespace and plural == kind.plural
            if name in (None, each) and _selected(item["metadata"].get("labels") or {}, labels or {})
        ]
        return Listing(tuple(items), str(self._version))

    async def watch(self, kind: Kind, name: str, version: str) -> AsyncGenerator[Event, None]:
        """See `Cluster`. Goes on for good."""
        self._ask("watch", kind, name)
        seen = int(version)
        while True:
            if seen < self._oldest:
                raise ExpiredError(f"{kind.plural} {name}: too old resource version")
            if self.unreachable:
                raise RemoteError("the connection is lost")
            for number, plural, each, event in list(self._events):
                if number > seen and plural == kind.plural and each == name:
                    seen = number
                    yield copy.deepcopy(event)
            async with self._news:
                if not any(each[0] > seen for each in self._events) and not self.unreachable:
                    await self._news.wait()
                elif not any(number > seen and name == each for number, _, each, _ in self._events):
                    seen = self._version

    async def cut(self) -> None:
        """Break every connection, and refuse new ones until `mend`."""
        self.unreachable = True
        async with self._news:
            self._news.notify_all()

    def mend(self) -> None:
        """Let connections through again."""
        self.unreachable = False

    async def token(self, account: str, *, audience: str, seconds: int) -> Token:
        """See `Cluster`. Each is another one."""
        if self.unreachable:
            raise RemoteError("the connection is lost")
        if ("create", "serviceaccounts/token") in self.forbidden:
            raise AbsentError(Absence.FORBIDDEN, "serviceaccounts/token is forbidden")
        self.tokens.append((account, audience, seconds))
        return Token(f"token-{len(self.tokens)}", time.time() + seconds)

    async def patch_pod(self, name: str, sub: str, patch: Object) -> Object:
        """See `Cluster`. Nothing comes of it."""
        if ("patch", f"pods/{sub}") in self.forbidden:
            raise AbsentError(Absence.FORBIDDEN, f"pods/{sub} is forbidden")
        raise RemoteError("a cluster in memory runs no containers")

    async def run(self, pod: str, container: str, command: Sequence[str]) -> Ran:
        """See `Cluster`: what `on_run` gives."""
        if ("create", "pods/exec") in self.forbidden:
            raise AbsentError(Absence.FORBIDDEN, "pods/exec is forbidden")
        return self.on_run(pod, container, tuple(command))

    async def open_exec(self, pod: str, container: str, command: Sequence[str]) -> ExecStream:
        """See `Cluster`. There are none."""
        raise RemoteError("a cluster in memory runs no containers")

    async def version(self) -> tuple[int, int]:
        """See `Cluster`."""
        return self.kubernetes

    def _ask(self, verb: str, kind: Kind, name: str) -> None:
        self.asked.append((verb, kind.plural, name))
        if self.unreachable:
            raise RemoteError("the connection is lost")
        if (verb, kind.plural) in self.forbidden:
            raise AbsentError(Absence.FORBIDDEN, f"{kind.plural} is forbidden: cannot {verb}")

    async def _tell(self, kind: Kind, event: Event) -> None:
        self._events.append((self._version, kind.plural, event.object["metadata"]["name"], event))
        async with self._news:
            self._news.notify_all()


def _selected(labels: Mapping[str, str], selector: Mapping[str, Any]) -> bool:
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for each in selector.get("matchExpressions") or []:
        key, values = each["key"], each.get("values") or []
        holds = {
            "In": key in labels and labels[key] in values,
            "NotIn": key not in labels or labels[key] not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[each["operator"]]
        if not holds:
            return False
    return True

"""The objects of the sandbox's API: kept, listed and watched.

Objects are never changed in place: who changes one puts a new one, so that those who read need no copies.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from devloop.remote.workload.cluster import AbsentError, Event, ExpiredError, Listing
from devloop.remote.workload.model import Absence, Object
from devloop.remote.workload.references import Kind

CLAIM = Kind("PersistentVolumeClaim", "persistentvolumeclaims", "api/v1")
ENDPOINT_SLICE = Kind("EndpointSlice", "endpointslices", "apis/discovery.k8s.io/v1")
HISTORY = 2000
"""Events that are remembered for watches that begin at an older version."""


def now() -> str:
    """The time as the API writes it: RFC 3339, in UTC, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Objects:
    """All objects, of one namespace and beside it; everything is for the event loop's thread."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.version = 0
        self._items: dict[tuple[str, str], dict[str, Object]] = {}
        """(namespace, plural) → name → object."""
        self._events: deque[tuple[int, str, str, Event]] = deque(maxlen=HISTORY)
        self._news = asyncio.Event()

    def put(self, kind: Kind, item: Object, *, namespace: str | None = None) -> Object:
        """Create an object, or replace the one of its name; with its metadata filled in."""
        within = self.namespace if namespace is None else namespace
        there = self._items.setdefault((within, kind.plural), {})
        metadata = dict(item["metadata"])
        before = there.get(metadata["name"])
        self.version += 1
        if within:
            metadata["namespace"] = within
        metadata["resourceVersion"] = str(self.version)
        old: Mapping[str, Any] = before["metadata"] if before else metadata
        metadata["uid"] = old.get("uid") or str(uuid.uuid4())
        metadata["creationTimestamp"] = old.get("creationTimestamp") or now()
        made_item = {**item, "kind": kind.name, "metadata": metadata}
        there[metadata["name"]] = made_item
        if within == self.namespace:
            self._tell("MODIFIED" if before else "ADDED", kind, made_item)
        return made_item

    def delete(self, kind: Kind, name: str) -> None:
        """Delete an object, if it is there."""
        gone = self._items.get((self.namespace, kind.plural), {}).pop(name, None)
        if gone is not None:
            self.version += 1
            metadata = {**gone["metadata"], "resourceVersion": str(self.version)}
            self._tell("DELETED", kind, {**gone, "metadata": metadata})

    def find(self, kind: Kind, name: str, namespace: str | None = None) -> Object | None:
        """One object, if it is there."""
        within = self.namespace if namespace is None else namespace
        return self._items.get((within, kind.plural), {}).get(name)

    def all(self, kind: Kind, namespace: str | None = None) -> list[Object]:
        """All objects of a kind."""
        within = self.namespace if namespace is None else namespace
        return list(self._items.get((within, kind.plural), {}).values())

    def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object:
        """One object. Raises AbsentError."""
        found = self.find(kind, name, namespace)
        if found is None:
            raise AbsentError(Absence.MISSING, f"{kind.plural} {name!r} not found")
        return found

    def listing(self, kind: Kind, labels: Mapping[str, Any] | None, name: str | None) -> Listing:
        """Those of a kind that a selector takes."""
        items = [
            each
            for each in self.all(kind)
            if name in (None, each["metadata"]["name"]) and selected(each["metadata"].get("labels") or {}, labels or {})
        ]
        return Listing(tuple(items), str(self.version))

    async def watch(self, kind: Kind, name: str, version: str) -> AsyncGenerator[Event, None]:
        """What happens to one object after a version; goes on for good. Raises ExpiredError."""
        seen = int(version)
        while True:
            oldest = self._events[0][0] if self._events else self.version + 1
            if seen + 1 < oldest and len(self._events) == HISTORY:
                raise ExpiredError(f"{kind.plural} {name}: too old resource version")
            news = self._news
            for number, plural, each, event in tuple(self._events):
                if number > seen and plural == kind.plural and each == name:
                    seen = number
                    yield event
            if not news.is_set():  # else there was more while what came before was looked at
                await news.wait()

    async def changed(self) -> None:
        """Wait for the next change of anything."""
        await self._news.wait()

    def _tell(self, what: Literal["ADDED", "MODIFIED", "DELETED"], kind: Kind, item: Object) -> None:
        self._events.append((self.version, kind.plural, item["metadata"]["name"], Event(what, item)))
        self.nudge()

    def nudge(self) -> None:
        """Wake those who wait for a change: something that they look at beside the objects is another."""
        # Each waiter sees this change; the next one has an event of its own.
        self._news.set()
        self._news = asyncio.Event()


def selected(labels: Mapping[str, str], selector: Mapping[str, Any]) -> bool:
    """Whether a label selector (`matchLabels`, `matchExpressions`) takes these labels."""
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for each in selector.get("matchExpressions") or []:
        key, values = each["key"], each.get("values") or []
        holds = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[each["operator"]]
        if not holds:
            return False
    return True

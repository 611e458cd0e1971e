"""What the agent sees of its namespace: Services, and the pods that stand behind their shadows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from .destinations import EVERYWHERE, Destinations
from .kube import Watched
from .objects import SHADOW_OF, shadow_name
from .paths import services, slices
from .presence import ClusterApi
from .protocols import Protocol, protocol_of

Document = dict[str, Any]
SEEN_SECONDS = 2.0
"""How long a watch may take to bring what was just made."""


class RefusedError(Exception):
    """The agent can't do that; the text is for the developer."""


class NotNowError(RefusedError):
    """It may be able to in a moment: the developer's side tries again."""


class View:
    """Kept in step by watches; `changed` is called after each change. Without an API it is empty."""

    def __init__(
        self, api: ClusterApi | None, changed: Callable[[], None], destinations: Destinations = EVERYWHERE
    ) -> None:
        self._destinations = destinations
        self._services: Watched | None = None
        self._slices: Watched | None = None
        if api is not None:
            self._services = Watched(api, services(api.namespace), changed)
            self._slices = Watched(api, slices(api.namespace), changed, f"labelSelector={SHADOW_OF}")

    @property
    def services(self) -> dict[str, Document]:
        """All of them, by name."""
        return self._services.objects if self._services is not None else {}

    async def synced(self) -> None:
        """Wait until all Services are there."""
        if self._services is not None:
            await self._services.synced.wait()

    async def service(self, name: str) -> Document:
        """One that is there, or RefusedError."""
        if self._services is None:
            raise RefusedError("the agent's pod has no service account")
        await until(self._services.synced.is_set)
        found = self.services.get(name)
        if found is None:
            if self._services.forbidden:
                raise RefusedError("the agent may not see Services: its Role devloop-agent-attach is missing")
            raise NotNowError(f"the agent sees no Service {name}")
        return found

    def protocol(self, name: str, port: int) -> Protocol:
        """What a port of a Service speaks."""
        service = self.services.get(name, {})
        annotations = service.get("metadata", {}).get("annotations")
        ports = service.get("spec", {}).get("ports", [])
        ports = [each for each in ports if each.get("protocol", "TCP") == "TCP"]  # UDP may have the same number
        return next((protocol_of(each, annotations) for each in ports if each["port"] == port), "detect")

    async def endpoints(self, name: str) -> None:
        """Wait for the shadow's endpoints, which the cluster makes some hundredths of a second after it."""
        found = self._slices
        if found is not None and not found.forbidden:
            await until(lambda: self.sees_pods(name))

    def sees_pods(self, name: str) -> bool:
        """There is word of the shadow's pods, if only that there are none."""
        return bool(self._about(name))

    def tells(self, name: str, port: int) -> bool:
        """There is word of the pods of one port. While the port gets another name, there is none for a moment."""
        found, called = self._about(name), self._called(name, port)
        named = any((each.get("name") or "") in called for one in found for each in one.get("ports") or [])
        return bool(found) and (named or not any(one.get("endpoints") for one in found))

    def _about(self, name: str) -> list[Document]:
        return [each for each in self._slices.objects.values() if about(each, name)] if self._slices is not None else []

    def _called(self, name: str, port: int) -> list[str]:
        """What a port is called in the shadow's EndpointSlices: as in the shadow, which is behind where the Service's
        own has just been renamed; or as in the Service, whose endpoints may be there before the shadow is seen."""
        both = (self.services.get(each) for each in (shadow_name(name), name))
        ports = [port for each in both if each is not None for port in each["spec"].get("ports", [])]
        return list(dict.fromkeys(each.get("name", "") for each in ports if each["port"] == port))

    def pods(self, name: str, port: int) -> list[tuple[str, int]]:
        """The original pods of one port, the ready ones; or the shadow's own address if they can't be seen."""
        service = self.services.get(name)
        if service is None or self._slices is None:
            return []
        if self._slices.forbidden:
            shadow = self.services.get(shadow_name(name))
            address = shadow["spec"].get("clusterIP") if shadow is not None else None
            return [(address, port)] if address else []
        first = next(iter(service["spec"].get("ipFamilies") or ()), "")
        found = (addresses(self._about(name), each, first) for each in self._called(name, port))
        # EndpointSlices may be anybody's who may write them; the API server refuses some addresses in them, not all.
        known = ([each for each in several if not self._destinations.denial(*each)] for several in found)
        return next(filter(None, known), [])

    def also(self, name: str) -> dict[str, str]:
        """An address that `pods` gives to the same pod's of the other family, where there is one."""
        service = self.services.get(name)
        if service is None or self._slices is None:
            return {}
        if self._slices.forbidden:
            shadow = self.services.get(shadow_name(name))
            return own_pair(shadow) if shadow is not None else {}
        found = pairs(self._about(name), next(iter(service["spec"].get("ipFamilies") or ()), ""))
        return {one: other for one, other in found.items() if not self._destinations.denial(other, 0)}

    def close(self) -> None:
        """Watch no more."""
        for each in (self._services, self._slices):
            if each is not None:
                each.close()


async def until(there: Callable[[], bool]) -> None:
    """Until a watch has brought it, but no longer than a watch may take."""
    last = time.monotonic() + SEEN_SECONDS
    while not there() and time.monotonic() < last:  # noqa: ASYNC110 (many waiters, for a moment)
        await asyncio.sleep(0.005)


def about(found: Document, service: str) -> bool:
    """An EndpointSlice of a Service's shadow."""
    return bool(found["metadata"].get("labels", {}).get("kubernetes.io/service-name") == shadow_name(service))


def own_pair(service: Document) -> dict[str, str]:
    """A dual-stack Service's first address to its second one."""
    both = service["spec"].get("clusterIPs") or []
    return {both[0]: both[1]} if len(both) == 2 else {}


def pairs(found: Iterable[Mapping[str, Any]], first: str = "") -> dict[str, str]:
    """The addresses of pods that stand in EndpointSlices of both families (`addressType`): the one of the family
    `first`, which is the Service's own first, to the other."""
    known: dict[str, dict[str, str]] = {}
    for each in found:
        for endpoint in each.get("endpoints") or []:
            uid = (endpoint.get("targetRef") or {}).get("uid")
            if uid:
                known.setdefault(uid, {})[str(each.get("addressType"))] = endpoint["addresses"][0]
    out = {}
    for by_family in known.values():
        one, *other = sorted(by_family, key=lambda family: (family != first, family))
        if other:
            out[by_family[one]] = by_family[other[0]]
    return out


def addresses(found: Collection[Mapping[str, Any]], port_name: str, first: str = "") -> list[tuple[str, int]]:
    """Addresses of one port in EndpointSlices: those that are ready, else those that serve while they end.

    As kube-proxy has it (KEP-1669). In a stable order, so that nothing changes when nothing has. A pod has one, of the
    family `first` if it is in both; see `pairs`.
    """
    second = set(pairs(found, first).values())
    ready: set[tuple[str, int]] = set()
    ending: set[tuple[str, int]] = set()
    for each in found:
        for port in each.get("ports") or []:
            if (port.get("name") or "") != port_name or port.get("port") is None:
                continue
            for endpoint in each.get("endpoints") or []:
                conditions = endpoint.get("conditions") or {}
                entry = (endpoint["addresses"][0], int(port["port"]))
                if entry[0] in second:
                    continue
                if conditions.get("ready") is not False:
                    ready.add(entry)
                elif conditions.get("serving"):
                    ending.add(entry)
    return sorted(ready or ending)

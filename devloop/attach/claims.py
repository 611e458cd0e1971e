"""The API calls of an attachment, each in its place. What they write is decided in `devloop/agent/objects.py`.

    lease ─▶ shadow Service ─▶ (the agent listens) ─▶ the Service          and, to leave, by `next_step`:
    the Service ─▶ workload's size ─▶ shadow Service ─▶ lease

Nothing is written before the lease that tells of it, and the lease is the last to go. Every write of a Service has its
resourceVersion. Who may hold what is decided there too: the Service's record has all holders, and one of two who
write at the same time has to look again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus

from devloop.agent import objects
from devloop.agent.objects import Call, Dead, Document, Record, Snapshot, is_dead
from devloop.agent.overlap import conflicts
from devloop.agent.paths import STEPS, leases, scale, services
from devloop.agent.spec import Spec
from devloop.errors import RemoteError
from devloop.remote import roles
from devloop.remote.kubernetes.api import MERGE, Api, ApiError

from .seam import AttachError, HeldError
from .unsettled import WRITE_SECONDS, Unsettled

TRIES = 8


class GoneError(AttachError):
    """There is no such Service, or no more."""


class Claims:
    """One namespace's."""

    def __init__(self, api: Api, seconds: int = objects.LEASE_SECONDS) -> None:
        self.api = api
        self.seconds = seconds
        """How long a lease holds after it was renewed."""
        self.unsettled = Unsettled()
        """Workloads that may still be set to zero by a call of ours that has had no answer."""
        self._services = services(api.namespace)
        self._leases = leases(api.namespace)

    async def leases(self) -> list[Document]:
        """Every attachment's lease."""
        items = (await self.api.get(self._leases, labelSelector=objects.LEASE_LABEL)).get("items") or []
        return list(items)

    async def service(self, name: str) -> Document | None:
        """A Service."""
        return await self.api.find(f"{self._services}/{name}")

    # --- The lease --------------------------------------------------------------------------------------------------

    async def check(self, spec: Spec, found: list[Document]) -> None:
        """HeldError if others hold what `spec` asks for."""
        now = datetime.now(UTC)
        over = {held.id: seconds for held, seconds in objects.holdings(found, now)}
        clash = conflicts(spec, [held for held, _ in objects.holdings(found, now)])
        if clash:
            raise held(spec, clash, over, self.api.where)

    async def acquire(
        self, spec: Spec, *, key: str = "", replicas: int | None = None, kept: Record | None = None
    ) -> None:
        """Make the lease, or renew the one that is ours. HeldError. `key`: see `objects.lease`."""
        wanted = objects.lease(spec, key=key, replicas=replicas, seconds=self.seconds, kept=kept)
        name = wanted["metadata"]["name"]
        for _ in range(TRIES):
            try:
                await self.api.request("POST", self._leases, wanted)
                return
            except ApiError as problem:
                if problem.status != HTTPStatus.CONFLICT:
                    raise refused(problem, "holding a lease", self.api.where) from problem
            found = await self.api.find(f"{self._leases}/{name}")
            if found is None:
                continue
            held_by = objects.spec_of(found)
            if held_by is None or held_by.id != spec.id:
                others = [held_by] if held_by is not None else []
                now = datetime.now(UTC)
                raise held(spec, others, {each.id: objects.seconds_over(found, now) for each in others}, self.api.where)
            body = {
                **wanted,
                "metadata": {**wanted["metadata"], "resourceVersion": found["metadata"]["resourceVersion"]},
            }
            if replicas is None:
                for key in (objects.REPLICAS, objects.RECORD):
                    kept_text = (found["metadata"].get("annotations") or {}).get(key)
                    if kept_text is not None:
                        body["metadata"]["annotations"].setdefault(key, kept_text)
            try:
                await self.api.request("PUT", f"{self._leases}/{name}", body)
                return
            except ApiError as problem:
                if problem.status not in (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND):
                    raise
        raise AttachError(f"the lease {name} keeps changing", where=self.api.where)

    async def renew(self, spec: Spec) -> bool:
        """Say that we are there; False if the lease has gone, or is somebody else's."""
        path = f"{self._leases}/{objects.lease_name(spec)}"
        found = await self.api.find(path)
        held_by = objects.spec_of(found) if found is not None else None
        if found is None or held_by is None or held_by.id != spec.id:
            return False
        patch = {
            "metadata": {"resourceVersion": found["metadata"]["resourceVersion"]},
            "spec": {"renewTime": objects.stamp()},
        }
        try:
            await self.api.request("PATCH", path, patch, content_type=MERGE)
        except ApiError as problem:
            if problem.status == HTTPStatus.CONFLICT:
                return await self.renew(spec)
            if problem.status == HTTPStatus.NOT_FOUND:
                return False
            raise
        return True

    # --- The Service ------------------------------------------------------------------------------------------------

    async def shadow(self, service: Document) -> None:
        """Make the shadow Service, or make it right. AttachError."""
        wanted = objects.shadow(service)
        await self._place(
            wanted,
            "making the shadow Service",
            right=lambda found: objects.same_shadow(found, wanted),
            ours=lambda found: objects.shadows(found) is not None,
            renewed=lambda found: objects.renewed_shadow(found, wanted),  # in place: its endpoints are in use
            hint="The original pods are reached by a Service of that name: rename yours.",
        )

    async def mark(self, spec: Spec, key: str, service: Document | None = None, *, replicas: int | None = None) -> None:
        """Make what stands for an attachment in the pods, or for the size of a replaced workload, if it is not there.
        AttachError."""
        wanted = objects.marker(spec, key, service, replicas)
        await self._place(
            wanted,
            "making the Service that stands for it",
            right=lambda found: objects.same_marker(found, wanted),
            ours=objects.is_marker,
            renewed=lambda found: objects.renewed_marker(found, wanted),  # in place: nothing is ever without it
        )

    async def _place(
        self,
        wanted: Document,
        doing: str,
        *,
        right: Callable[[Document], bool],
        ours: Callable[[Document], bool],
        renewed: Callable[[Document], Document] | None = None,
        hint: str | None = None,
    ) -> None:
        """Have a Service of ours there. One that is not `right` is `renewed`, if its owner is the same, or made anew.

        AttachError, with `hint` if the name is taken by one that is not `ours`.
        """
        name = wanted["metadata"]["name"]
        path = f"{self._services}/{name}"
        for _ in range(TRIES):
            try:
                await self.api.request("POST", self._services, wanted)
                return
            except ApiError as problem:
                if problem.status != HTTPStatus.CONFLICT:
                    raise refused(problem, doing, self.api.where) from problem
            found = await self.api.find(path)
            if found is None:
                continue
            if right(found):
                return
            if not ours(found):
                what = f"there is a Service {name} already, and it is not devloop's"
                raise AttachError(what, where=self.api.where, hint=hint)
            try:
                if renewed is not None and objects.same_owner(found, wanted):
                    await self.api.request("PUT", path, renewed(found))
                    return
                await self.api.request("DELETE", path, objects.delete("services", found, "").body)
            except ApiError as problem:
                if problem.status not in (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND):
                    raise
            await asyncio.sleep(0.02)
        raise AttachError(f"the Service {name} keeps changing", where=self.api.where)

    async def lead(self, spec: Spec, listeners: Mapping[int, int], known: Document | None = None) -> int:
        """Lead the Service to the agent, with us among its holders; its resourceVersion then.

        `known`: the Service as it was a moment ago. If it has changed since, it is a conflict, and read again.
        HeldError if somebody else was quicker.
        """
        path = f"{self._services}/{spec.service}"
        for count in range(TRIES):
            found = known if known is not None and not count else await self.service(spec.service)
            if found is None:
                raise gone(spec, self.api.where)
            kept = objects.record(found) if objects.is_swapped(found) else None
            recorded = dict(kept.holders) if kept else {}
            # Others in the record may have gone since they wrote it. Whoever is in it had a lease before.
            held_now = await self.leases() if recorded.keys() - {spec.id} else []
            living = {spec.id, *(each.id for lease in held_now if (each := objects.spec_of(lease)))}
            holders = {key: value for key, value in recorded.items() if key in living}
            others = [each for each in (kept.specs if kept else []) if each.id in holders]
            if clash := conflicts(spec, others):
                over = {each.id: seconds for each, seconds in objects.holdings(held_now, datetime.now(UTC))}
                raise held(spec, clash, over, self.api.where)
            if spec.id in holders and holders[spec.id] == spec.document() and objects.listeners_of(found) == listeners:
                return version(found)
            holders[spec.id] = spec.document()
            try:
                body = objects.swapped(found, listeners, holders)
            except KeyError:
                raise AttachError("its ports have just been changed", where=f"Service {spec.service}") from None
            try:
                return version(await self.api.request("PUT", path, body))
            except ApiError as problem:
                if problem.status != HTTPStatus.CONFLICT:
                    raise refused(problem, f"changing the Service {spec.service}", self.api.where) from problem
        raise AttachError("it keeps changing", where=f"Service {spec.service}")

    async def unlead(self, name: str) -> None:
        """Lead a Service back to its pods at once, whoever holds it: the agent is gone. The leases stay."""
        for _ in range(TRIES):
            found = await self.service(name)
            if found is None or not objects.is_marked(found):
                return
            try:
                await self.api.request("PUT", f"{self._services}/{name}", objects.owners(found))
                return
            except ApiError as problem:
                if problem.status not in (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND):
                    raise

    # --- Putting back -----------------------------------------------------------------------------------------------

    async def snapshot(self) -> Snapshot:
        """What there is. Services before leases: whatever a Service is marked for had its lease before."""
        found = (await self.api.get(self._services)).get("items") or []
        held_now = await self.leases()
        sizes: dict[str, int | None] = {}
        for each in held_now:
            spec = objects.spec_of(each)
            if spec is not None and spec.workload and objects.REPLICAS in (each["metadata"].get("annotations") or {}):
                try:
                    size = await self.size(spec.workload)
                    # One that may still be set to zero is as one that can't be read: its lease has to stay.
                    if not size or spec.workload not in self.unsettled:
                        sizes[spec.workload] = size
                except ApiError as problem:
                    # A colleague's, of a kind that we may not read: theirs alone stays as it is.
                    if problem.status != HTTPStatus.FORBIDDEN:
                        raise
        return Snapshot(tuple(found), tuple(held_now), sizes)

    async def size(self, workload: str) -> int | None:
        """How many replicas a workload is to have; None if it isn't there."""
        found = await self.api.find(self._scale(workload))
        self._sees(workload, found)
        return int(found["spec"].get("replicas", 0)) if found is not None else None

    def _sees(self, workload: str, found: Document | None) -> None:
        text = str(found["metadata"].get("resourceVersion", "")) if found is not None else None
        self.unsettled.seen(workload, text, time.monotonic())

    async def resize(self, workload: str, replicas: int, *, only_from: int | None = None) -> Document:
        """Give it another size, if it has the size `only_from`; what its scale is then.

        If it was to be zero and there is no answer, it is `unsettled`: it may be set later.
        """
        path = self._scale(workload)
        for _ in range(TRIES):
            found = await self.api.get(path)
            self._sees(workload, found)
            size = int(found["spec"].get("replicas", 0))
            if size == replicas or (only_from is not None and size != only_from):
                return found
            body = {**found, "spec": {**found["spec"], "replicas": replicas}}
            before = None
            if not replicas:
                before = self.unsettled.writes(workload, str(found["metadata"].get("resourceVersion", "")))
            try:
                answer = await self.api.request("PUT", path, body, query={"timeout": f"{WRITE_SECONDS}s"})
            except ApiError as problem:
                # What the server has trouble with, it may have done all the same (etcd's timeouts).
                if not replicas and problem.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                    self.unsettled.refused(workload, before)
                if problem.status != HTTPStatus.CONFLICT:
                    raise refused(problem, f"changing the size of {workload}", self.api.where) from problem
            else:
                self.unsettled.answered(workload)
                return {**found, **answer}
        raise AttachError("its size keeps changing", where=workload)

    def _scale(self, workload: str) -> str:
        kind, _, name = workload.partition("/")
        return scale(self.api.namespace, f"{kind}s", name)

    async def restore(self, dead: Mapping[str, Dead] | Collection[str]) -> bool:
        """Put back what these leases stood for, and whatever else nobody holds. False if one of them has to stay: what
        it says is still needed, as the size of its workload can't be told now.

        What there is is read once, as each call carries the version of what it changes. Only who holds what is read
        again before a Service is changed or deleted: whoever has just come has a lease and relies on what is there.
        """
        known: Snapshot | None = None
        for count in range(STEPS):
            looked = known is None
            if known is None:
                known = await self.snapshot()
            step = objects.next_step(known, dead)
            if step is not None and step.kind == "services" and not looked:
                known = replace(known, leases=tuple(await self.leases()))
                step = objects.next_step(known, dead)
            if step is None:
                return not any(is_dead(each, dead) for each in known.leases)
            try:
                known = objects.after(known, step, await self.perform(step))
            except ApiError as problem:
                # Somebody else was quicker, and it is looked at anew.
                if problem.status not in (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND):
                    raise
                known = None
                await asyncio.sleep(0.01 * (count + 1))
        return False

    async def perform(self, call: Call) -> Document:
        """One call of a restoration; its answer."""
        if call.verb == "SCALE":
            return await self.resize(f"{call.kind.removesuffix('s')}/{call.name}", call.replicas, only_from=0)
        path = {"services": self._services, "leases": self._leases}[call.kind]
        return await self.api.request(call.verb, f"{path}/{call.name}", call.body)


def held(spec: Spec, clash: list[Spec], over: Mapping[str, float], where: str) -> HeldError:
    """Who, what and since when."""
    dead = bool(clash) and all(over.get(each.id, 0.0) > 0 for each in clash)
    lines = [
        f"{each.who} holds {' or '.join(str(route) for route in each.routes)} of {each.service or each.workload}"
        f" ({each.kind}) since {each.since}"
        + (f", and has not been there for {over[each.id]:.0f} s" if over.get(each.id, 0.0) > 0 else "")
        for each in clash
    ]
    hint = "Take another route: a header of your own, a path, a share."
    if any(each.user == spec.user and each.host != spec.host for each in clash):
        hint = f"You are both called {spec.user}: DEVLOOP_USER, or `[user] name`, gives you a name of your own."
    if dead:
        hint = "The agent puts it back by itself soon; where there is none, `devloop leave --take-over` does."
    what = "; ".join(lines) or "somebody holds it whose lease can't be read"
    return HeldError(what, where=f"{where} {spec.service or spec.workload}", hint=hint, holders=tuple(clash), dead=dead)


def version(found: Document) -> int:
    """An object's resourceVersion. They can be compared within a kind (KEP-5504)."""
    text = (found.get("metadata") or {}).get("resourceVersion", "")
    return int(text) if text.isdecimal() else 0


def gone(spec: Spec, where: str) -> GoneError:
    """There is no such Service."""
    return GoneError(f"there is no Service {spec.service}", where=where)


def refused(problem: ApiError, doing: str, where: str) -> RemoteError:
    """What the API server does not let us do: an AttachError. Its own trouble, or too many requests, is none: that
    passes, and who keeps an attachment tries again."""
    if problem.status == HTTPStatus.TOO_MANY_REQUESTS or problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ApiError(problem.status, problem.reason, f"{doing}: {problem.what}", where=where)
    hint = None
    if problem.status == HTTPStatus.FORBIDDEN:
        hint = roles.hint(problem.what) or "`devloop doctor` names the Roles that are missing."
    return AttachError(f"{doing}: {problem.what}", where=where, hint=hint)

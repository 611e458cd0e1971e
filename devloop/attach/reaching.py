"""Whether clients reach the agent, and the agent the original pods: before a Service is led here, and all the time.

A NetworkPolicy that names a workload's clients knows nothing of the agent, which is their server and the workload's
client from then on. What a policy keeps apart is dropped in silence: nobody would be refused, all would wait. So:

- The agent opens a connection to the original pods (`agent/reach.py`).
- What the namespace's policies say of each of its pods is worked out (`policies.py`). A pod that could connect to the
  original, and to the agent may not, tries both from within: no cluster has to enforce policies.
- It is all looked at again when a policy has changed. Who is in the way then gets the Service back. Where a policy says
  that it keeps somebody away, nobody waits until that shows: see `foreseeing`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeVar

from devloop.agent import objects
from devloop.agent.objects import Document
from devloop.errors import RemoteError
from devloop.failures import contained
from devloop.remote.kubernetes.api import Api, ApiError
from devloop.remote.kubernetes.podstate import running

from . import pods
from .attachment import Attachment
from .policies import Peer, Policies, Verdict
from .scalers import selects
from .scene import (
    LABEL,
    PEER,
    Scene,
    Suspect,
    address_of,
    admitting,
    barred_doors,
    kept_out,
    labels_of,
    outside,
    selecting,
    suspects,
)
from .seam import AttachError
from .session import Session
from .trying import Run, Target, tried

log = logging.getLogger(__name__)

T = TypeVar("T")

PROBED = 6
"""Kinds of pods that try it out; others of the same labels fare alike."""
PODS = 500
"""Pods that are looked at."""
SETTLE_SECONDS = (0.2, 1.0, 4.0)
"""After a policy has changed it takes a moment until it is in force."""
LATER_SECONDS = 60.0
SOON_SECONDS = 10.0
BARRED_SECONDS = 5.0
"""Between two looks where nothing tells of a change: without policies, with some (a new client may come), and while
one of them is in the way."""
DOOR_PORTS = (19999, 19998, 30000)
"""Where doors connect to at the agent: see `agent/doors.py`, `agent/back.py` and `agent/pods.py`."""
_PEER_HINT = f"Let the agent in: add {PEER} to the policy's `from`, for these pods."
_BY_PODS = (
    '`--way pods` (`way = "pods"`) works under these policies as they are: clients go on connecting to the pods '
    "themselves, each of which gets a container with NET_ADMIN."
)
_LET_OUT = f"Let the agent out: make a NetworkPolicy for the pods {{{LABEL}}} (docs/attachments.md has one)."


class BarredError(AttachError):
    """Somebody would wait in vain; the policy's name, and what can be done."""

    def __init__(self, what: str, *, where: str, hint: str, known: bool = True) -> None:
        super().__init__(what, where=where, hint=hint)
        self.known = known
        """A policy is why. Otherwise it may be the pods' own trouble."""


class Reaching:
    """One engine's. `session` gives the agent's session, if it is good; `bar` and `clear` are told what was found."""

    def __init__(
        self,
        api: Api,
        run: Run | None,
        service: Callable[[str], Awaitable[Document | None]],
        session: Callable[[], Session | None],
        bar: Callable[[Attachment, str], Awaitable[None]],
        clear: Callable[[Attachment], None],
    ) -> None:
        self._api, self._run, self._service = api, run, service
        self._session, self._bar, self._clear = session, bar, clear
        self._news = asyncio.Event()
        self._path = f"/apis/networking.k8s.io/v1/namespaces/{api.namespace}/networkpolicies"
        self._cache: dict[str, Document] | None = None
        """By name, as long as they are watched: an attach where there are none asks nothing for it."""
        self._any = True
        """There are policies, or they may not be read."""
        self._enforced: bool | None = None
        """Policies are in force in this cluster, as far as it has shown between the agent and an original."""
        self._foreseen: set[str] = set()
        """Attachments that give way to a policy whose force has not shown yet."""
        self._working = asyncio.Lock()
        self._reached: set[tuple[str, tuple[Target, ...]]] = set()
        """Who has reached the agent, by their uids, since policies were last changed."""

    # --- Before it is attached ------------------------------------------------------------------------------------

    async def check(
        self, found: Attachment, service: Document, listeners: Mapping[int, int], *, probed: bool = False
    ) -> None:
        """Whether the Service's clients reach the agent. BarredError. `listeners`: where the agent listens, by port.
        `probed`: it has just connected to the original."""
        scene = await self._scene(service)
        if scene is None:
            return
        if probed and await self._worked_out(lambda: kept_out(scene, service) != ""):
            self._enforced = False
        enforced = await self._try(scene, service, await self._worked_out(lambda: suspects(scene, service, listeners)))
        if enforced is not False and (what := await self._worked_out(lambda: outside(scene, service, listeners))):
            hint = admitting(Verdict(False))
            raise await self._barred(scene, service, f"{what}, so they would wait in vain", hint)

    async def check_doors(self, found: Attachment, service: Document) -> None:
        """Whether the pods of a Service reach the agent, to which their doors lead. BarredError."""
        scene = await self._scene(service)
        if scene is None:
            return
        for pod, barred in await self._worked_out(lambda: barred_doors(scene, DOOR_PORTS)):
            own = next((o for p in found.spec.ports if (o := pods.own_port(service, pod, p))), 0)
            targets: tuple[Target, ...] = ((address_of(scene.agent), DOOR_PORTS[0]), ("127.0.0.1", own))
            result = await self._ask(Suspect(pod, barred, True, targets))
            if isinstance(result, str) or result[0] is False:
                raise BarredError(
                    f"its pods can't connect to the agent, where their doors lead to: {barred}",
                    where=f"Service {found.spec.service}",
                    hint=f"{admitting(barred, min(DOOR_PORTS))} Nothing was changed.",
                )

    async def refusal(self, service: Document, unreached: Iterable[str]) -> BarredError:
        """The error for a Service whose pods the agent can't connect to; it names the policies if they may be read."""
        what = f"the agent can't connect to its pods ({', '.join(unreached)}), so all of its clients would wait in vain"
        scene = await self._scene(service, always=True)
        if scene is None:
            what += "; a NetworkPolicy may be why, and they may not be read"
            hint = f"{_PEER_HINT} {_BY_PODS} Nothing was changed."
            return BarredError(what, where=f"Service {service['metadata']['name']}", hint=hint, known=False)
        into, out = await self._worked_out(lambda: selecting(scene))
        said = [f"the NetworkPolicy {one} does not admit it" for one in into]
        known = bool(into or out)
        said += [f"the NetworkPolicy {one} does not let it out" for one in out]
        what += f": {' or '.join(said)}" if said else "; no NetworkPolicy of the namespace selects them"
        hint = " ".join(filter(None, [_PEER_HINT if into or not out else "", _LET_OUT if out else ""]))
        return await self._barred(scene, service, what, hint, known=known)

    async def out_of(self) -> str:
        """Policies that may keep the agent from the API server, for people; empty if none is known."""
        try:
            policies = await self._policies()
        except RemoteError:
            return ""
        names = policies.selecting(Peer(objects.AGENT_SELECTOR), "Egress") if policies is not None else []
        return " or ".join(f"the NetworkPolicy {each} does not let it out" for each in names)

    # --- While it is attached -------------------------------------------------------------------------------------

    async def watching(self) -> None:
        """Notice changes of the namespace's policies."""
        while True:
            try:
                listed = await self._api.get(self._path)
                self._cache = {each["metadata"]["name"]: each for each in listed.get("items") or []}
                self._tell()
                seen = str((listed.get("metadata") or {}).get("resourceVersion") or "0")
                async for kind, policy in self._api.watch(self._path, resourceVersion=seen):
                    self._cache.pop(policy["metadata"]["name"], None)
                    if kind != "DELETED":
                        self._cache[policy["metadata"]["name"]] = policy
                    self._tell()
                self._cache = None
                await asyncio.sleep(0.1)
            except ApiError as problem:
                self._cache = None
                log.info("NetworkPolicies can't be watched: %s", problem.what)
                await asyncio.sleep(LATER_SECONDS)
            except (RemoteError, OSError, TimeoutError):
                self._cache = None
                await asyncio.sleep(1)

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        self._reached.clear()
        news.set()

    async def keeping(self, found: Attachment) -> None:
        """Look again whenever a policy has changed, and now and then, until the attachment is over."""
        pauses: list[float] = []
        news = self._news
        while not found.over:
            usual = BARRED_SECONDS if found.barred else SOON_SECONDS if self._any else LATER_SECONDS
            told = bool(pauses)
            try:
                async with asyncio.timeout(pauses.pop(0) if pauses else usual):
                    await news.wait()
                news, pauses = self._news, list(SETTLE_SECONDS)  # also of what came while it was looked
                continue
            except TimeoutError:
                pass
            try:
                # The agent's own connections are seen by the pods: they are opened when there is a reason to.
                await self._look(found, agent=told or bool(found.barred), settled=not pauses)
            except (RemoteError, OSError, TimeoutError) as problem:
                log.info("who reaches %s: %s", found.spec.service, problem)
            except Exception as problem:  # of one Service; it is looked at again
                contained(problem, f"who reaches {found.spec.service} can't be looked at")

    async def foreseeing(self, found: Attachment) -> None:
        """Give the Service back as soon as a policy says that the agent is kept from the original, or a client from it.

        Whoever asks between the moment when that is in force and the one when the Service leads back waits in vain at
        the agent, or for it, and it takes seconds to see that by trying. So where a cluster is not known to enforce
        none, what the policy says is believed for as long as it may take until it shows.
        """
        news = self._news
        while not found.over:
            try:
                async with asyncio.timeout(LATER_SECONDS):
                    await news.wait()
            except TimeoutError:
                continue
            news = self._news
            try:
                await self._foresee(found)
            except (RemoteError, OSError, TimeoutError) as problem:
                log.info("who reaches %s: %s", found.spec.service, problem)
            except Exception as problem:  # of one Service; the next policy is to be seen
                contained(problem, f"who will reach {found.spec.service} can't be told")

    async def _foresee(self, found: Attachment) -> None:
        if self._enforced is False or found.spec.way != "service" or found.spec.kind == "replace":
            return
        why, service = "", await self._service(found.spec.service)
        owned = objects.owners(service) if service is not None else {}
        scene = await self._scene(owned) if service is not None else None
        if scene is not None:
            why = await self._worked_out(lambda: kept_out(scene, owned))
            why = f"the agent is kept from its pods: {why}" if why else ""
            if not why:
                suspected = await self._worked_out(lambda: suspects(scene, owned, found.listeners))
                sure = next((each for each in suspected if each.sure), None)
                why = f"pod {sure.name} is kept from the agent: {sure.verdict}" if sure is not None else ""
        if not why:
            self._foreseen.discard(found.spec.id)
        elif not found.barred and not found.over and found.task is not None:
            self._foreseen.add(found.spec.id)
            await self._bar(found, why)

    async def _look(self, found: Attachment, *, agent: bool, settled: bool) -> None:
        session = self._session()
        service = await self._service(found.spec.service)
        if session is None or service is None or found.over:
            return
        owned = objects.owners(service)
        try:
            if agent and (unreached := await session.reach(found.spec)):
                refusal = await self.refusal(owned, unreached)
                if refusal.known:
                    self._enforced = True
                    self._foreseen.discard(found.spec.id)
                raise refusal
            if found.spec.way == "pods":
                await self.check_doors(found, owned)
            else:
                await self.check(found, owned, found.listeners)
        except BarredError as problem:
            self._foreseen.discard(found.spec.id)
            if problem.known and found.barred != problem.what and not found.over:
                await self._bar(found, problem.what)
            return
        if found.spec.id in self._foreseen:
            if not settled:  # it may be in force in a moment
                return
            self._foreseen.discard(found.spec.id)
            self._enforced = False
        if found.barred:
            self._clear(found)

    # --- Looking --------------------------------------------------------------------------------------------------

    async def _worked_out(self, work: Callable[[], T]) -> T:
        """In a thread, one at a time: a namespace may have hundreds of policies and of kinds of pods, and an event loop
        that is busy for two seconds is taken for gone by the agent."""
        async with self._working:
            return await asyncio.to_thread(work)

    async def _policies(self) -> Policies | None:
        if self._cache is not None:
            return Policies(list(self._cache.values()), self._api.namespace)
        try:
            items = (await self._api.get(self._path)).get("items") or []
        except ApiError as problem:
            if problem.status in (401, 403, 404):
                return None
            raise
        return Policies(items, self._api.namespace)

    async def _scene(self, service: Document, *, always: bool = False) -> Scene | None:
        """None: nothing can be told by policies, since they may not be read, or (unless `always`) there is none."""
        policies = await self._policies()
        self._any = policies is None or bool(policies.items)
        if policies is None or not (policies.items or always):
            return None
        listed = await self._api.get(f"/api/v1/namespaces/{self._api.namespace}/pods", limit=str(PODS))
        found = [each for each in listed.get("items") or [] if pods.runs(each)]
        agents: list[Document] = []
        originals: list[Document] = []
        others: list[Document] = []
        selector = objects.owners(service)["spec"].get("selector") or {}
        for each in found:
            if selects({"matchLabels": objects.AGENT_SELECTOR}, labels_of(each)) and running(each):
                agents.append(each)
            elif not each["spec"].get("hostNetwork"):
                (originals if selects({"matchLabels": selector}, labels_of(each)) else others).append(each)
        return Scene(policies, agents[0], originals, others, selector) if agents else None

    async def _try(self, scene: Scene, service: Document, suspects: list[Suspect]) -> bool | None:
        """Whether the policies are in force, as far as it shows. BarredError if they keep somebody from the agent."""
        enforced: bool | None = None
        results = await asyncio.gather(*(self._ask(each) for each in suspects[:PROBED]))
        untried: list[tuple[Suspect, str]] = []
        for suspect, result in zip(suspects, results, strict=False):
            if isinstance(result, str):
                untried.append((suspect, result))
                continue
            agent, original = result
            if agent:
                enforced = False if suspect.verdict.may is False else enforced
            elif original:
                what = f"pod {suspect.name} can't connect to the agent ({suspect.verdict}), and would wait in vain"
                raise await self._barred(scene, service, what, admitting(suspect.verdict))
            elif original is None and suspect.sure:  # the original's pods are away
                untried.append((suspect, ""))
        sure = [each for each in untried if each[0].sure]
        if sure and enforced is None:
            suspect, why = sure[0]
            tried_out = f"; that can't be tried out there: {why}" if why else ""
            what = (
                f"pod {suspect.name} can't connect to the agent ({suspect.verdict}), and would wait in vain{tried_out}"
            )
            raise await self._barred(scene, service, what, admitting(suspect.verdict))
        return enforced

    async def _ask(self, suspect: Suspect) -> tuple[bool, bool | None] | str:
        """Whether it reaches the agent, and the original (None: there is none); or why that can't be tried."""
        if self._run is None:
            return "no command can be run"
        key = (str(suspect.pod["metadata"]["uid"]), suspect.targets)
        if key in self._reached:
            return True, None
        container = str(suspect.pod["spec"]["containers"][0]["name"])
        try:
            found = await tried(self._run, suspect.name, container, suspect.targets)
        except RemoteError as problem:
            return problem.what
        if found is None:
            return "its image has no program that connects somewhere"
        if found[0]:
            self._reached.add(key)
        return found[0], found[1] if len(found) > 1 else None

    async def _barred(
        self, scene: Scene, service: Document, what: str, hint: str, *, known: bool = True
    ) -> BarredError:
        doors = await self._worked_out(lambda: barred_doors(scene, DOOR_PORTS))
        if not doors and not objects.unsupported(service)[0]:
            hint += f" {_BY_PODS}"
        name = service["metadata"]["name"]
        return BarredError(what, where=f"Service {name}", hint=f"{hint} Nothing was changed.", known=known)

"""Traffic that is taken in the pods: a door for each that runs, put there by the engine, which alone has the right to.

The agent says which of its doors are there (`devloop/agent/pods.py`). What has none gets one: at first all of them, and
later the pods that a rollout, an autoscaler or a StatefulSet has made anew, and those whose door has died.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus

from devloop.agent.objects import Document, owners, unsupported
from devloop.errors import RemoteError
from devloop.failures import contained
from devloop.remote.kubernetes.api import Api, ApiError
from devloop.remote.kubernetes.install import SELECTOR
from devloop.remote.kubernetes.podstate import container_of, running

from . import pods
from .attachment import Attachment
from .claims import Claims, GoneError, gone
from .scalers import selects
from .seam import AttachError
from .session import Session, understood

log = logging.getLogger(__name__)

STRATEGIC = "application/strategic-merge-patch+json"
READY_SECONDS = 60.0
"""How long all doors may take at first; pulling an image is most of it."""
LOOK_SECONDS = (0.1, 0.5)
DOORS, DOORS_SECONDS = 3, 60.0
"""More doors than this in one pod within this time: something ends them, and another one would change nothing."""


@dataclass
class Look:
    """What one look has found."""

    caught: list[str] = field(default_factory=list)
    """Names of pods."""
    missing: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    """Of pods that can't be, or not now."""


class Doors:
    """One engine's. `held` gives its attachments."""

    def __init__(self, api: Api, claims: Claims, held: Callable[[], Iterable[Attachment]]) -> None:
        self._api = api
        self._claims = claims
        self._held = held
        self._path = f"/api/v1/namespaces/{api.namespace}/pods"
        self._put: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        """By a pod's uid and the agent's token, when doors were put there, in monotonic seconds."""
        self._selectors: dict[str, dict[str, str]] = {}
        self._needed = asyncio.Event()

    async def ready(self, found: Attachment, session: Session) -> None:
        """Every pod's traffic is taken when this returns. AttachError, RemoteError, SessionLostError."""
        until = time.monotonic() + READY_SECONDS
        self._needed.set()
        self._put.clear()
        while True:
            look = await self._look(found, session, new=True)
            if not look.caught and not look.missing and not look.problems:
                raise AttachError(
                    "no running pod stands behind it, so there is nobody whose traffic could be taken",
                    where=self._where(found),
                    hint="Start its workload; each pod's traffic is taken when it runs.",
                )
            if look.problems:
                name, why = next(iter(look.problems.items()))
                raise AttachError(f"pod {name}: {why}", where=self._where(found))
            if not look.missing:
                self._say(found, look)
                return
            if time.monotonic() > until:
                raise AttachError(
                    f"no door in {', '.join(look.missing)} after {READY_SECONDS:g} s", where=self._where(found)
                )
            await asyncio.sleep(LOOK_SECONDS[0])

    async def look(self, found: Attachment, session: Session) -> None:
        """Put doors where they are missing now, and say how it stands. It waits for none of them. GoneError,
        RemoteError, SessionLostError."""
        again = False
        try:
            look = await self._look(found, session, new=False)
            self._say(found, look)
            again = bool(look.missing)
        except GoneError:
            raise
        except AttachError as problem:  # what was once good is tried again
            found.unmet = f"the original answers: {problem.what}"
            again = True
        if again:
            asyncio.get_running_loop().call_later(LOOK_SECONDS[1], found.dirty.set)

    def _where(self, found: Attachment) -> str:
        return f"{self._api.where} Service {found.spec.service}"

    def _say(self, found: Attachment, look: Look) -> None:
        notes = [pods.note(look.caught)] if look.caught else []
        notes += [f"pod {name} answers by itself: {why}" for name, why in sorted(look.problems.items())]
        found.notes = tuple(notes)
        found.unmet = ""
        if not look.caught:
            found.unmet = "; ".join(notes) or "no pod of it has a door, and the original answers"

    async def _look(self, found: Attachment, session: Session, *, new: bool) -> Look:
        service = await self._claims.service(found.spec.service)
        if service is None:
            raise gone(found.spec, self._api.where)
        # Somebody may hold it at its address: then it selects the agent's pod, and by the agent's ports.
        service = owners(service)
        selector = service["spec"].get("selector") or {}
        self._selectors[found.spec.id] = selector
        query = ",".join(f"{key}={value}" for key, value in selector.items())
        items = (await self._api.get(self._path, labelSelector=query)).get("items") or []
        targets = pods.chosen(service, items, found.spec.ports, self._where(found), found.spec.datagrams)
        answer = await session.ask(do="doors", id=found.spec.id, pods=[each.document() for each in targets])
        with understood(self._api.where):
            said_of = {each.uid: str(answer["pods"].get(each.uid, "")) for each in targets}
            agent, token = str(answer["agent"]), str(answer["token"])
        look = Look()
        absent = []
        documents = {each["metadata"]["uid"]: each for each in items}
        for each in targets:
            said = said_of[each.uid]
            if said == "caught":
                look.caught.append(each.name)
            elif said:
                look.problems[each.name] = said
            else:
                absent.append(each)
        empty = [each for each in absent if self._is_empty(documents[each.uid], each, agent, token, look)]
        if empty:
            await self._fill(empty, agent, token, look, self._where(found), unsupported(service)[0], new=new)
        return look

    def _is_empty(self, document: Document, pod: pods.Pod, agent: str, token: str, look: Look) -> bool:
        """No door is in it or about to be, and one may be put there."""
        names = pods.doors(document, agent, token)
        there = [each for each in names if not pods.ended(document, each)]
        if there:
            if why := next(filter(None, (pods.stuck(document, each) for each in there)), ""):
                look.problems[pod.name] = f"its door does not start: {why}"
            else:
                look.missing.append(pod.name)
            return False
        now = time.monotonic()
        recent = self._put[pod.uid, token] = [each for each in self._put[pod.uid, token] if now - each < DOORS_SECONDS]
        if len(recent) >= DOORS:
            look.problems[pod.name] = f"its door ends again and again: {pods.last_words(document, names)}"
            return False
        if recent and not names:  # put there a moment ago, and this list is older
            look.missing.append(pod.name)
            return False
        return True

    async def _fill(
        self, empty: list[pods.Pod], agent: str, token: str, look: Look, where: str, why: str, *, new: bool
    ) -> None:
        image = await self._image(where)
        made = [(each, pods.container(secrets.token_hex(3), image, agent, token, each)) for each in empty]
        try:
            if new:
                # All are asked about first: after a refusal there is to be a door in none.
                await asyncio.gather(*(self._patch(*each, token, dry=True) for each in made))
            await asyncio.gather(*(self._patch(*each, token) for each in made))
        except ApiError as problem:
            refusal = pods.refused(problem, empty[0].name, where, why)
            if new:
                raise refusal from problem
            look.problems.update({each.name: refusal.what for each in empty})
            return
        look.missing += [each.name for each in empty]

    async def _patch(self, pod: pods.Pod, container: Document, token: str, *, dry: bool = False) -> None:
        body = {"metadata": {"uid": pod.uid}, "spec": {"ephemeralContainers": [container]}}
        query = {"fieldManager": "devloop", **({"dryRun": "All"} if dry else {})}
        path = f"{self._path}/{pod.name}/ephemeralcontainers"
        try:
            await self._api.request("PATCH", path, body, query=query, content_type=STRATEGIC)
        except ApiError as problem:
            if problem.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                raise
            return  # another pod has its name by now: it is looked at anew
        if not dry:
            self._put[pod.uid, token].append(time.monotonic())
            log.info("a door for pod %s", pod.name)

    async def _image(self, where: str) -> str:
        """The agent's own: what is in it, is in a door."""
        found = await self._api.get(self._path, labelSelector=SELECTOR)
        for each in found.get("items") or []:
            if running(each):
                return str(container_of(each)["image"])
        raise RemoteError("the agent's pod is not there", where=where)

    async def watching(self) -> None:
        """Look again whenever one of their pods has changed."""
        await self._needed.wait()
        while True:
            try:
                async for _, pod in self._api.watch(self._path):
                    try:
                        self._seen(pod)
                    except Exception as problem:  # of one pod; the others are to be watched
                        contained(problem, "a change of a pod can't be followed")
            except ApiError as problem:
                log.info("pods can't be watched: %s", problem.what)
                await asyncio.sleep(LOOK_SECONDS[1])
            except (RemoteError, OSError, TimeoutError):
                await asyncio.sleep(LOOK_SECONDS[1])

    def _seen(self, pod: Document) -> None:
        labels = pod["metadata"].get("labels") or {}
        for each in self._held():
            selector = self._selectors.get(each.spec.id)
            if each.spec.way == "pods" and selector and selects({"matchLabels": selector}, labels):
                each.dirty.set()

"""Moves connections that clients had before a Service was attached: each original pod gets what does it without a
request being lost (`devloop/agent/mover.py`), and their clients connect anew, where the Service leads by now."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from devloop.agent.mover import LONGEST, PLAN, Plan
from devloop.agent.objects import Document
from devloop.agent.protocols import Protocol, protocol_of
from devloop.errors import RemoteError
from devloop.remote.kubernetes.api import Api, ApiError
from devloop.remote.kubernetes.install import SELECTOR
from devloop.remote.kubernetes.podstate import container_of, running

from . import pods
from .attachment import Attachment
from .claims import gone
from .doors import STRATEGIC
from .earlier import Earlier
from .seam import AttachError

log = logging.getLogger(__name__)

PREFIX = "devloop-mover-"
MOVE_SECONDS = 12.0
"""How long a connection may take to be between two requests."""
START_SECONDS = 60.0
"""How long a container may take to start; pulling an image is most of it."""
LOOK_SECONDS = 0.1
SAID_BYTES = 64 << 10
"""What a mover says, in one line; it runs in somebody's pod."""
_UNTAKEN = "so connections are moved between two requests only"


@dataclass(frozen=True, slots=True)
class Moved:
    """What has become of them."""

    ended: int = 0
    left: tuple[tuple[str, int], ...] = ()
    """(client, how many) of those that could not be."""
    notes: tuple[str, ...] = ()
    """Why what is in use could not be, for people."""


class Mover:
    """One engine's."""

    def __init__(self, api: Api, earlier: Earlier) -> None:
        self._api = api
        self._earlier = earlier
        self._path = f"/api/v1/namespaces/{api.namespace}/pods"

    async def move(self, found: Attachment, *, force: bool) -> Moved:
        """Returns when each has moved or had its time. AttachError with what to do instead; RemoteError."""
        where = f"{self._api.where} Service {found.spec.service}"
        service = await self._earlier.service(found)
        if service is None:
            raise gone(found.spec, self._api.where)
        await self._earlier.look(found)
        chosen = await self._earlier.original(found)
        if not found.uncounted:
            chosen = [each for each in chosen if each[1].uid in found.leads_to]
        if not chosen:
            return Moved()
        items = (await self._api.get(self._path, labelSelector=SELECTOR)).get("items") or []
        image = next((str(container_of(each)["image"]) for each in items if running(each)), "")
        if not image:
            raise RemoteError("the agent's pod is not there", where=where)
        agents = [str(each["ip"]) for pod in items for each in pod["status"].get("podIPs") or []]
        speaks = spoken(service)
        made = []
        # What is in use is moved by a container that stays until its last request is answered: it is read, then.
        take = not force and await self._prints(chosen[0])
        for _, pod in chosen:
            ports = {own: speaks.get(port, "detect") for port, own in pod.ports.items()}
            known = [*agents, *pod.nodes, *pod.addresses]
            made.append((pod, container(secrets.token_hex(3), image, Plan(ports, known, MOVE_SECONDS, force, take))))
        await self._put(made, found, where)
        results = await asyncio.gather(*(self._ended(pod, each["name"], where, reads=take) for pod, each in made))
        left: Counter[str] = Counter()
        for each in results:
            left.update({str(client): int(number) for client, number in each.get("left", {}).items()})
        named = await self._earlier.named(left)
        found.look_again.set()
        notes = dict.fromkeys(str(each["why"]) for each in results if each.get("why"))
        if not take and not force:
            notes[
                f"nothing printed in its pods can be read here (the Role devloop-ingest: get pods/log), {_UNTAKEN}"
            ] = None
        return Moved(sum(int(each.get("ended", 0)) for each in results), named, tuple(notes))

    async def _prints(self, chosen: tuple[Document, pods.Pod]) -> bool:
        """Whether what a container of the pod prints may be read."""
        document, pod = chosen
        container = str(document["spec"]["containers"][0]["name"])
        try:
            async for _ in self._api.stream(f"{self._path}/{pod.name}/log", container=container, limitBytes="1"):
                break
        except ApiError as problem:
            return problem.status != HTTPStatus.FORBIDDEN
        return True

    async def _put(self, made: Sequence[tuple[pods.Pod, Document]], found: Attachment, where: str) -> None:
        try:
            # All are asked about first: after a refusal there is to be one in none.
            await asyncio.gather(*(self._patch(*each, dry=True) for each in made))
            await asyncio.gather(*(self._patch(*each) for each in made))
        except ApiError as problem:
            restarts = await self._earlier.restarts(found)
            again = f"Restarted clients connect anew: {restarts}" if restarts else "Restarted clients connect anew."
            if problem.status == 403 and "PodSecurity" in problem.what:
                raise AttachError(
                    "connections are ended from within the pod's network, and the namespace allows no NET_ADMIN in a "
                    f"pod, which that takes: {problem.what}",
                    where=where,
                    hint=again,
                ) from problem
            right = " (the Role devloop-attach: patch pods/ephemeralcontainers)" if problem.status == 403 else ""
            raise AttachError(
                f"connections are ended from within the pod's network, and nothing can be put into it{right}: "
                f"{problem.what}",
                where=where,
                hint=again,
            ) from problem

    async def _patch(self, pod: pods.Pod, container: Document, *, dry: bool = False) -> None:
        body = {"metadata": {"uid": pod.uid}, "spec": {"ephemeralContainers": [container]}}
        query = {"fieldManager": "devloop", **({"dryRun": "All"} if dry else {})}
        path = f"{self._path}/{pod.name}/ephemeralcontainers"
        try:
            await self._api.request("PATCH", path, body, query=query, content_type=STRATEGIC)
        except ApiError as problem:
            # The pod has gone meanwhile, and its connections with it; another one may have its name.
            if problem.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                raise

    async def _printed(self, pod: pods.Pod, name: str) -> Document:
        """What it has said, which it prints when it has moved what it could; nothing if that can't be read yet."""
        text = b""
        with contextlib.suppress(RemoteError, ValueError, RecursionError):  # it is asked for again
            async for part in self._api.stream(f"{self._path}/{pod.name}/log", container=name, follow="true"):
                text += part
                if len(text) > SAID_BYTES:
                    return {}
                if b"\n" in text:
                    found = json.loads(text.splitlines()[0])
                    return found if isinstance(found, dict) else {}
        return {}

    async def _ended(self, pod: pods.Pod, name: str, where: str, *, reads: bool) -> Document:
        """What it has said in the end; nothing if its pod has gone meanwhile. AttachError, RemoteError."""
        until = time.monotonic() + START_SECONDS + LONGEST * MOVE_SECONDS
        while time.monotonic() < until:
            document = await self._api.find(f"{self._path}/{pod.name}")
            if document is None or document["metadata"]["uid"] != pod.uid:
                return {}  # and its connections with it
            if why := pods.stuck(document, name):
                raise AttachError(f"pod {pod.name}: what ends connections there does not start: {why}", where=where)
            now = pods.state(document, name)
            if reads and "running" in now:
                said: Document = {}
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.1, until - time.monotonic())):
                        said = await self._printed(pod, name)
                if said and "error" not in said:
                    return said
            over = now.get("terminated")
            if over is not None:
                try:
                    said = json.loads(over.get("message") or "")
                    assert isinstance(said, dict)
                except (ValueError, AssertionError, RecursionError):
                    said = {"error": pods.ended(document, name)}
                if error := said.get("error"):
                    raise AttachError(f"pod {pod.name}: connections can't be ended: {error}", where=where)
                return said
            await asyncio.sleep(LOOK_SECONDS)
        raise RemoteError(f"pod {pod.name}: what ends connections there has not ended itself in time", where=where)


def spoken(service: Document) -> dict[int, Protocol]:
    """What each TCP port of a Service speaks. UDP may have the same number."""
    ports = [each for each in service["spec"].get("ports") or [] if each.get("protocol", "TCP") == "TCP"]
    annotations = service["metadata"].get("annotations")
    return {int(each["port"]): protocol_of(each, annotations) for each in ports}


def container(suffix: str, image: str, plan: Plan) -> Document:
    """As an ephemeral container. `suffix`: what tells it from others of this pod."""
    found = pods.ephemeral(f"{PREFIX}{suffix}", image, "devloop.agent.mover", {PLAN: plan.text()})
    return {**found, "terminationMessagePolicy": "File"}

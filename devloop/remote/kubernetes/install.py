"""The agent in a namespace: making it, joining it, and removing it.

What is in the cluster is a pod, `devloop-agent`, and beside it

- the ConfigMap `devloop-agent`, in which the agent publishes its host key's public half with its pod's uid. Every
  client pins it: the pin is as good as the API server's word, because it is read from there at each connection and
  never learned from the agent itself, and developers have no right to write it;
- a ConfigMap `devloop-agent-key-…` for each engine that has joined: by it the agent lets its developer's key in. It is
  made with the developer's own right and changed by nobody; the agent removes it, and Kubernetes does with the pod.

A namespace has one agent because the pod has a fixed name, and the API server lets one creator win. One that an
administrator has installed beforehand (`kept.py`) is joined in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import re
import time
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

from devloop.agent import keys
from devloop.errors import RemoteError

from .api import Api, ApiError
from .identity import Identity
from .joining import Agent, Joining, Tell
from .podstate import (
    AgentRefusedError,
    AgentStuckError,
    Manifest,
    allowed,
    container_of,
    ended,
    made_by_devloop,
    progress,
    running,
)

NAME = keys.AGENT
SELECTOR = f"app.kubernetes.io/name={NAME}"
MADE_BY = keys.WHO
"""Annotation of what devloop has made: user@host."""
MANIFEST = Path(__file__).parents[1] / "manifests" / "agent.yaml"
OUTSIDE = (
    *("sidecar.istio.io/inject", "kuma.io/sidecar-injection", "linkerd.io/inject"),
    "consul.hashicorp.com/connect-inject",
)
"""Labels and annotations by which the injectors of service meshes leave the pod alone."""
IMAGE = "devloop.test/agent:1"
LINGER_SECONDS = 60
START_SECONDS = 120.0
"""How long a new agent may take until it runs; pulling its image is most of it."""

_NONE: Mapping[str, str] = {}


def pod_manifest(
    image: str = IMAGE, linger: int = LINGER_SECONDS, annotations: Mapping[str, str] = _NONE, *, mesh: bool = False
) -> Manifest:
    """agent.yaml with an image; `linger` seconds after its last client it removes itself (0: never). With `mesh`, the
    namespace's injectors put their proxies into it as into any pod.
    """
    import yaml

    manifest: Manifest = yaml.safe_load(MANIFEST.read_text())
    if mesh:
        for place in ("labels", "annotations"):
            meta = manifest["metadata"]
            meta[place] = {key: value for key, value in meta[place].items() if key not in OUTSIDE}
    _annotate(manifest, annotations)
    for each in manifest["spec"]["containers"]:
        each["image"] = image
    container_of(manifest)["env"].append({"name": "DEVLOOP_AGENT_LINGER", "value": str(linger)})
    return manifest


def _annotate(manifest: Manifest, annotations: Mapping[str, str]) -> None:
    if annotations:
        manifest["metadata"].setdefault("annotations", {}).update(annotations)


async def delete(api: Api, path: str, **preconditions: str) -> bool:
    """Delete an object; whether it was there. Raises ApiError, 409 if it is no longer as the preconditions say."""
    try:
        await api.request("DELETE", path, {"preconditions": preconditions})
    except ApiError as problem:
        if problem.status != HTTPStatus.NOT_FOUND:
            raise
        return False
    return True


QUOTA = {
    ("limits", "cpu"): "500m",
    ("requests", "cpu"): "50m",
    ("limits", "memory"): "384Mi",
    ("requests", "memory"): "64Mi",
    ("limits", "ephemeral-storage"): "128Mi",
    ("requests", "ephemeral-storage"): "32Mi",
}
"""What each container of the agent's pod says of itself where a ResourceQuota wants it to be said."""


def fitting(manifest: Manifest, refusal: str) -> Manifest:
    """The pod with what a ResourceQuota has missed: "failed quota: NAME: must specify limits.cpu for: agent; …"."""
    _, found, missed = refusal.partition("must specify ")
    if not found:
        return manifest
    out = copy.deepcopy(manifest)
    words = re.findall(r"[a-z.-]+", missed)
    for (what, name), amount in QUOTA.items():
        plain = [name] if what == "requests" else []  # `cpu` in a quota means requests.cpu
        if f"{what}.{name}" in words or any(each in words for each in plain):
            for container in out["spec"]["containers"]:
                container.setdefault("resources", {}).setdefault(what, {}).setdefault(name, amount)
    return out


class AgentPod:
    """The agent's pod in one namespace: found, made, waited for."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self._pods = f"/api/v1/namespaces/{api.namespace}/pods"

    async def find(self) -> Manifest | None:
        """The agent's pod: devloop's own, or one that an administrator's Deployment keeps."""
        pods = await self.all()
        return pods[0] if pods else None

    async def all(self) -> list[Manifest]:
        """Those that there are, the likeliest first."""
        answer = await self.api.get(self._pods, labelSelector=SELECTOR)
        pods = [each for each in answer.get("items", []) if not ended(each)]
        return sorted(pods, key=lambda each: (not running(each), each["metadata"]["creationTimestamp"]))

    async def create(self, manifest: Manifest) -> Manifest | None:
        """Create the pod; None if another developer just has. One that is on its way out is waited for.

        Raises AgentRefusedError.
        """
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                return await allowed(self.api, "creating the agent's pod", "POST", self._pods, manifest)
            except AgentRefusedError as problem:
                # A ResourceQuota may want limits that agent.yaml does not set; they come off the quota of everybody.
                fitted = fitting(manifest, problem.what)
                if fitted == manifest:
                    raise
                manifest = fitted
                continue
            except ApiError as problem:
                if problem.status != HTTPStatus.CONFLICT or time.monotonic() > until:
                    raise
            there = await self.api.find(f"{self._pods}/{NAME}")
            if there is not None and not ended(there):
                return None
            if there is not None and not there["metadata"].get("deletionTimestamp"):
                await self.delete(there)  # evicted, or at its end
            await asyncio.sleep(0.1)

    async def started(self, tell: Tell) -> Manifest:
        """Watch until the agent's container runs. AgentStuckError, or RemoteError when it takes too long."""
        said = ""
        try:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    stream = self.api.watch(self._pods, labelSelector=SELECTOR)
                    async for kind, pod in stream:
                        if kind == "DELETED" or ended(pod):
                            continue
                        if running(pod):
                            return pod
                        what, stuck = progress(pod)
                        if stuck:
                            raise AgentStuckError(
                                f"the agent does not start: {what}",
                                where=self.api.where,
                                hint=f"kubectl describe pod {pod['metadata']['name']} -n {self.api.namespace}",
                            )
                        if what and what != said:
                            said = what
                            tell(f"the agent's pod: {what}")
        except TimeoutError:
            what = f"the agent does not run after {START_SECONDS:g} s" + (f": {said}" if said else "")
            raise RemoteError(what, where=self.api.where) from None

    async def delete(self, pod: Manifest) -> bool:
        """Delete this very pod, not a later one of its name; whether it was there. Raises ApiError."""
        return await delete(self.api, f"{self._pods}/{pod['metadata']['name']}", uid=pod["metadata"]["uid"])


class Installation:
    """The agent of one namespace, as this developer sees it."""

    def __init__(
        self, api: Api, who: Identity, image: str = IMAGE, linger: int = LINGER_SECONDS, *, mesh: bool = False
    ) -> None:
        self.api = api
        self.mesh = mesh
        self.who = who
        self.image = image
        self.linger = linger
        self._pod = AgentPod(api)
        self._pods = f"/api/v1/namespaces/{api.namespace}/pods"
        self.joining = Joining(api, who)

    async def provide(self, tell: Tell) -> Agent:
        """Find the agent, or make it, and let this developer in; returns as soon as it can be connected to.

        AgentRefusedError when a right is missing for that, or a pod that was made here can't start, or the agent
        and this devloop do not understand each other; nothing is left then. RemoteError when one that was there does
        not start.
        """
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self.joining.published())
                finding = group.create_task(self._pod.all())
        except BaseExceptionGroup as problems:
            raise problems.exceptions[0] from None
        published, pods = reading.result(), finding.result()
        of = ((published or {}).get("data") or {}).get(keys.POD_UID)
        pod = next((each for each in pods if each["metadata"]["uid"] == of), pods[0] if pods else None)
        made: Manifest | None = None
        if pod is None:
            tell("creating the agent's pod")
            draft = pod_manifest(self.image, self.linger, {MADE_BY: self.who.name}, mesh=self.mesh)
            pod = made = await self._pod.create(draft)
        try:
            if pod is None or not running(pod):
                pod = await self._pod.started(tell)
            return await self.joining.join(pod, published, tell)
        except (AgentStuckError, AgentRefusedError) as problem:
            if made is None:
                raise
            with contextlib.suppress(ApiError):
                await self._pod.delete(made)
            raise AgentRefusedError(problem.what, where=problem.where, hint=problem.hint) from problem

    async def remove(self, agent: Agent) -> bool:
        """Remove an agent that nobody else uses; False if it may not be removed. What is beside it goes with it.

        One that does not carry devloop's mark, or stands in a Deployment, is an administrator's and stays.
        """
        try:
            pod = await self.api.find(f"{self._pods}/{agent.pod}")
            if pod is None or pod["metadata"]["uid"] != agent.uid or not made_by_devloop(pod):
                return False
            await self._pod.delete(pod)
            return True
        except ApiError:
            return False

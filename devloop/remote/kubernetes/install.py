"""The agent in a namespace: making it, joining it, and removing it.

What is in the cluster is a Secret and a pod, both called `devloop-agent`. The Secret holds

- `host_key`, which the first developer makes and every client pins: the pin is as good as the API server's
  word, because it is read from there at each connection and never learned from the agent itself;
- `NAME-FINGERPRINT.pub`, a developer's public key: an entry of one's own, so that two who join at the same time
  do not write over each other. Removing an entry locks that key out at its next login.

A namespace has one agent because both have fixed names, and the API server lets one creator win. One that an
administrator has installed beforehand (`kept.py`) is joined in the same way.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devloop.agent.objects import kept
from devloop.errors import RemoteError
from devloop.remote.link import PermanentError
from devloop.user import login

from .api import MERGE, Api, ApiError

if TYPE_CHECKING:
    import asyncssh

NAME = "devloop-agent"
SELECTOR = f"app.kubernetes.io/name={NAME}"
MADE_BY = "devloop.dev/made-by"
"""Annotation of what devloop has made: user@host."""
MANIFEST = Path(__file__).parents[1] / "manifests" / "agent.yaml"
CONTAINER = "agent"
"""The name of its container."""
OUTSIDE = (
    *("sidecar.istio.io/inject", "kuma.io/sidecar-injection", "linkerd.io/inject"),
    "consul.hashicorp.com/connect-inject",
)
"""Labels and annotations by which the injectors of service meshes leave the pod alone."""
IMAGE = "devloop.test/agent:1"
LINGER_SECONDS = 60
START_SECONDS = 120.0
"""How long a new agent may take until it runs; pulling its image is most of it."""
Tell = Callable[[str], None]
Manifest = dict[str, Any]

_NONE: Mapping[str, str] = {}

# Waiting does not help here: kubelet's reasons of a container that waits (`state.waiting.reason`).
_STUCK = {
    "ErrImagePull": "its image can't be pulled",
    "ImagePullBackOff": "its image can't be pulled",
    "InvalidImageName": "its image has no valid name",
    "ErrImageNeverPull": "its image is not on the node",
    "CreateContainerConfigError": "its container can't be configured",
    "CreateContainerError": "its container can't be created",
    "RunContainerError": "its container can't be run",
    "CrashLoopBackOff": "it ends again and again",
}


class AgentRefusedError(RemoteError):
    """There can be no agent here, for this user at least; the link falls back to plain port-forwards."""


class AgentStuckError(RemoteError):
    """The agent's pod is there and does not start; waiting longer would not help."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A developer's key on this machine."""

    key: asyncssh.SSHKey
    name: str
    """As the agent's log and the Secret show it: user@host."""

    @property
    def entry(self) -> str:
        """The Secret's entry; keys of a Secret are limited to [-._a-zA-Z0-9]."""
        fingerprint = re.sub(r"[^a-zA-Z0-9]", "", self.key.get_fingerprint().split(":", 1)[1])[:12]
        return f"{re.sub(r'[^-._a-zA-Z0-9]', '-', self.name)[:100]}-{fingerprint}.pub"

    @property
    def line(self) -> str:
        """Its line for authorized_keys."""
        return f"{self.key.export_public_key().decode().strip()} {self.name}\n"


def user_name() -> str:
    """Who this is, for people: user@host."""
    return f"{login()}@{socket.gethostname()}"


def identity(file: Path) -> Identity:
    """Read the key, or make it: ed25519, mode 0600, for this machine and user alone. Blocking; RemoteError."""
    import asyncssh

    name = user_name()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not file.exists():
            made = asyncssh.generate_private_key("ssh-ed25519")
            # Two engines may start at once: whoever links first has made the key.
            draft = file.with_name(f"{file.name}.{os.getpid()}")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as out:
                out.write(made.export_private_key())
            try:
                os.link(draft, file)
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        return Identity(asyncssh.read_private_key(file), name)
    except (OSError, asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as problem:
        raise PermanentError(
            f"the key can't be used: {problem}", where=str(file), hint="Delete it: a new one is made."
        ) from problem


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


def secret_manifest(*identities: Identity, annotations: Mapping[str, str] = _NONE) -> Manifest:
    """A Secret with a new host key and these developers."""
    manifest: Manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": NAME,
            "labels": {"app.kubernetes.io/name": NAME, "app.kubernetes.io/managed-by": "devloop"},
        },
        "type": "Opaque",
        "stringData": {
            "host_key": new_host_key(),
            **{each.entry: each.line for each in identities},
        },
    }
    _annotate(manifest, annotations)
    return manifest


def new_host_key() -> str:
    """An ed25519 key in OpenSSH's format."""
    import asyncssh

    return asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()


def _annotate(manifest: Manifest, annotations: Mapping[str, str]) -> None:
    if annotations:
        manifest["metadata"].setdefault("annotations", {}).update(annotations)


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent that runs: its pod, and the key that it must prove to have."""

    pod: str
    uid: str
    host_key: asyncssh.SSHKey
    joined: bool
    """Our key was added just now: the agent may take a moment to know it."""
    addresses: tuple[str, ...] = ()
    """The pod's own; one of each family."""


async def allowed(api: Api, doing: str, method: str, path: str, body: object = None, **more: Any) -> Manifest:
    """A request whose refusal means that this user may have no agent: AgentRefusedError, beside ApiError."""
    try:
        return await api.request(method, path, body, **more)
    except ApiError as problem:
        if problem.status in (HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY):
            # RBAC, Pod Security, a quota or an admission webhook: the message says which.
            raise AgentRefusedError(f"{doing}: {problem.what}", where=api.where, hint=problem.hint) from problem
        raise


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
        answer = await self.api.get(self._pods, labelSelector=SELECTOR)
        pods = [each for each in answer.get("items", []) if not ended(each)]
        pods.sort(key=lambda each: (not running(each), each["metadata"]["creationTimestamp"]))
        return pods[0] if pods else None

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
        self._core = f"/api/v1/namespaces/{api.namespace}"
        self._secret = f"{self._core}/secrets/{NAME}"

    async def provide(self, tell: Tell) -> Agent:
        """Find the agent, or make it, and let this developer in; returns as soon as its container runs.

        AgentRefusedError when a right is missing for that, or a pod that was made here can't start; nothing is left
        then. RemoteError when one that was there does not start.
        """
        try:
            async with asyncio.TaskGroup() as group:
                joining = group.create_task(self._join())
                finding = group.create_task(self._pod.find())
        except BaseExceptionGroup as problems:
            raise problems.exceptions[0] from None
        host_key, joined, secret = joining.result()
        pod = finding.result()
        if pod is not None and not running(pod):
            pod = await self._pod.started(tell)
        if pod is None:
            try:
                pod = await self._make(tell)
            except AgentRefusedError:
                if secret is not None:
                    with contextlib.suppress(ApiError):
                        await self._delete_secret(secret)
                raise
        addresses = tuple(str(each["ip"]) for each in pod["status"].get("podIPs") or ())
        return Agent(pod["metadata"]["name"], pod["metadata"]["uid"], host_key, joined, addresses)

    async def _make(self, tell: Tell) -> Manifest:
        """A new pod, running."""
        tell("creating the agent's pod")
        made = await self._pod.create(pod_manifest(self.image, self.linger, {MADE_BY: self.who.name}, mesh=self.mesh))
        try:
            return await self._pod.started(tell)
        except AgentStuckError as problem:
            if made is None:
                raise
            with contextlib.suppress(ApiError):
                await self._pod.delete(made)
            raise AgentRefusedError(problem.what, where=problem.where, hint=problem.hint) from problem

    async def _join(self) -> tuple[asyncssh.SSHKey, bool, Manifest | None]:
        """The agent's host key, whether our key had to be added, and the Secret if it was made here."""
        import asyncssh

        for _ in range(5):
            try:
                found: Manifest | None = await allowed(self.api, "reading the agent's Secret", "GET", self._secret)
            except ApiError as problem:
                if problem.status != HTTPStatus.NOT_FOUND:
                    raise
                found = None
            try:
                if found is None:
                    draft = secret_manifest(self.who, annotations={MADE_BY: self.who.name})
                    path = f"{self._core}/secrets"
                    found = made = await allowed(self.api, "creating the agent's Secret", "POST", path, draft)
                    added = True
                else:
                    made = None
                    missing = self._missing(found)
                    added = self.who.entry in missing
                    if missing:
                        metadata = {"uid": found["metadata"]["uid"]}
                        if "host_key" in missing:
                            # Whoever comes first makes it, and nobody makes it anew.
                            metadata["resourceVersion"] = found["metadata"]["resourceVersion"]
                        patch = {"metadata": metadata, "stringData": missing}
                        doing = "adding your key to the agent's Secret"
                        found = await allowed(self.api, doing, "PATCH", self._secret, patch, content_type=MERGE)
            except ApiError as problem:
                # Another developer was quicker, in making it or in removing it.
                if problem.status in (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND):
                    continue
                raise
            try:
                key = asyncssh.import_private_key(base64.b64decode(found["data"]["host_key"]))
            except (KeyError, ValueError, asyncssh.KeyImportError) as problem:
                raise PermanentError(
                    f"the Secret {NAME} has no usable host_key: {problem}",
                    where=self.api.where,
                    hint=f"kubectl delete secret,pod {NAME} -n {self.api.namespace}: both are made anew.",
                ) from problem
            return key.convert_to_public(), added, made
        raise RemoteError(f"the Secret {NAME} keeps changing", where=self.api.where)

    def _missing(self, secret: Manifest) -> dict[str, str]:
        """What the Secret lacks: our key, and the host key if an administrator has made it empty."""
        data = secret.get("data") or {}
        missing = {} if self.who.entry in data else {self.who.entry: self.who.line}
        return missing if "host_key" in data else {**missing, "host_key": new_host_key()}

    async def remove(self, agent: Agent) -> bool:
        """Remove an agent that nobody else uses; False if somebody is just joining, or may not be removed.

        One that does not carry devloop's mark, or stands in a Deployment, is an administrator's and stays. So
        does a Secret that was installed to stay: another agent has that host key.
        """
        try:
            pod = await self.api.find(f"{self._core}/pods/{agent.pod}")
            if pod is None or pod["metadata"]["uid"] != agent.uid or not made_by_devloop(pod):
                return False
            secret = await self.api.find(self._secret)
            if secret is not None and not kept(secret):
                # If a developer has added a key meanwhile, this is a conflict, and both stay.
                await self._delete_secret(secret)
            await self._pod.delete(pod)
            return True
        except ApiError:
            return False

    async def _delete_secret(self, secret: Manifest) -> None:
        """As it is: ApiError (409) if anybody has changed it."""
        metadata = secret["metadata"]
        await delete(self.api, self._secret, uid=metadata["uid"], resourceVersion=metadata["resourceVersion"])


def container_of(pod: Manifest) -> Manifest:
    """The agent's own container; a mesh may have put its proxy before it."""
    containers = pod["spec"]["containers"]
    found: Manifest = next((each for each in containers if each.get("name") == CONTAINER), containers[0])
    return found


def made_by_devloop(pod: Manifest) -> bool:
    """It removes itself when nobody uses it: DEVLOOP_AGENT_LINGER is set, and nothing owns it."""
    if pod["metadata"].get("ownerReferences"):
        return False
    env = {each["name"]: each.get("value") for each in container_of(pod).get("env") or []}
    return env.get("DEVLOOP_AGENT_LINGER", "0") not in ("0", None, "")


def running(pod: Manifest) -> bool:
    """Its container runs. Not `Ready`: the probe's first answer would cost up to a second more."""
    statuses = pod.get("status", {}).get("containerStatuses") or []
    own = [each for each in statuses if each.get("name") == CONTAINER] or statuses
    return not pod["metadata"].get("deletionTimestamp") and any("running" in each["state"] for each in own)


def ended(pod: Manifest) -> bool:
    """On its way out, or at its end."""
    phase = pod.get("status", {}).get("phase")
    return bool(pod["metadata"].get("deletionTimestamp")) or phase in ("Failed", "Succeeded")


def progress(pod: Manifest) -> tuple[str, bool]:
    """What a pod that does not run yet waits for, and whether waiting longer does not help."""
    status = pod.get("status", {})
    # Those that come first, first: while they can't run, the others only say "PodInitializing".
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = container["state"].get("waiting") or {}
        reason = str(waiting.get("reason") or "")
        if reason in _STUCK:
            return f"{_STUCK[reason]} ({waiting.get('message') or reason})", True
        if reason:
            return str(waiting.get("message") or reason), False
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason") or ""), False
    return "", False

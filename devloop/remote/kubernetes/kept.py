"""The agent that stays: installed by somebody, told about, uninstalled. For `devloop agent` and `devloop doctor`.

There are three kinds of agent in a namespace, and clients join each in the same way (`install.py`):

- one that a client has made, which goes with its last client;
- one that `devloop agent install` has made: the same pod, with a linger of 0, and marked as kept;
- one of a Deployment, from the manifest that an administrator has applied. Developers then need no right to
  create anything.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from devloop.agent import keys
from devloop.agent.objects import KEPT, kept
from devloop.errors import DevloopError, RemoteError
from devloop.remote.roles import SMALLEST, Role

from .api import Api, ApiError
from .identity import user_name
from .install import MADE_BY, MANIFEST, AgentPod, pod_manifest
from .joining import Tell
from .podstate import (
    FOR_ADMINISTRATORS,
    AgentRefusedError,
    AgentStuckError,
    Manifest,
    container_of,
    made_by_devloop,
    progress,
    running,
)

DEPLOYMENT = MANIFEST.with_name("agent-deployment.yaml")
POLICY = MANIFEST.with_name("network-policy.yaml")
LISTED = 200
"""So many keys are shown."""


@dataclass(frozen=True, slots=True)
class Client:
    """A key that the agent lets in."""

    name: str
    """What the developer calls themself: user@host."""
    fingerprint: str
    """As `ssh-keygen -l` shows it."""


@dataclass(frozen=True, slots=True)
class Standing:
    """An agent that is there."""

    pod: str
    image: str
    running: bool
    state: str
    """"running", or what its pod waits for."""
    since: str
    """When its pod was made: RFC 3339, as the API says it."""
    made_by: str
    """user@host, or the Deployment; empty if nobody has said."""
    installed: bool
    """It stays until somebody removes it."""
    linger_seconds: int
    """0 if it stays, else how long it waits for a next client after the last."""
    clients: tuple[Client, ...] | None
    """Who has a key; None if this user may not list ConfigMaps."""


async def standing(api: Api) -> Standing | None:
    """The agent of the namespace. Raises ApiError if this user may not list pods, ApiUnreachableError."""
    pod = await AgentPod(api).find()
    if pod is None:
        return None
    try:
        clients: tuple[Client, ...] | None = clients_of(await _entries(api))
    except ApiError as problem:
        if problem.status != HTTPStatus.FORBIDDEN:
            raise
        clients = None
    installed = not made_by_devloop(pod)
    annotations = pod["metadata"].get("annotations") or {}
    return Standing(
        pod=pod["metadata"]["name"],
        image=container_of(pod)["image"],
        running=running(pod),
        state="running" if running(pod) else progress(pod)[0] or "starting",
        since=pod["metadata"]["creationTimestamp"],
        made_by=owner(pod) or annotations.get(MADE_BY, ""),
        installed=installed,
        linger_seconds=0 if installed else linger_of(pod),
        clients=clients,
    )


async def install(api: Api, image: str, tell: Tell) -> bool:
    """Make an agent that stays, and wait until it runs; False if one was there that does.

    AgentRefusedError when a right is missing, RemoteError when it does not start, DevloopError when the one that is
    there goes with its last client.
    """
    pods = AgentPod(api)
    there = await pods.find()
    if there is not None and made_by_devloop(there):
        maker = (there["metadata"].get("annotations") or {}).get(MADE_BY)
        raise DevloopError(
            f"there is an agent{f', made by {maker}' if maker else ''}, and it is in use: it goes with its last client",
            where=api.where,
            hint="Try again when nobody uses it: `devloop agent status` says who has a key.",
        )
    marks = {KEPT: "true", MADE_BY: user_name()}
    if there is not None:
        if not running(there):
            await pods.started(tell)
        return False
    pod = None
    try:
        tell("creating the agent's pod")
        pod = await pods.create(pod_manifest(image, 0, marks))
        await pods.started(tell)
    except RemoteError as problem:
        # As it was. What can't be removed either, `uninstall` finds by its mark.
        with contextlib.suppress(RemoteError):
            if pod is not None:
                await pods.delete(pod)
        if isinstance(problem, AgentRefusedError):
            raise AgentRefusedError(
                problem.what, where=problem.where, hint=problem.hint or FOR_ADMINISTRATORS
            ) from problem
        if isinstance(problem, AgentStuckError):
            hint = f"The image is {image}: another one is named by --image, or by `[remote] agent_image`."
            raise AgentStuckError(f"{problem.what}; it was removed again", where=problem.where, hint=hint) from problem
        raise
    return True


async def uninstall(api: Api) -> tuple[str, ...]:
    """Remove what `install` has made, what is beside it too; says what that was, in words. Raises ApiError.

    DevloopError for an agent that is somebody else's to remove.
    """
    pods = AgentPod(api)
    pod = await pods.find()
    if pod is not None and (deployment := owner(pod)):
        raise DevloopError(
            f"the agent belongs to the {deployment}, which an administrator has applied",
            where=api.where,
            hint=f"devloop agent manifest | kubectl delete -n {api.namespace} -f -",
        )
    if pod is not None and not kept(pod):
        raise DevloopError(
            "the agent was not made by `devloop agent install`",
            where=api.where,
            hint="It goes with its last client."
            if made_by_devloop(pod)
            else f"kubectl delete pod {pod['metadata']['name']} -n {api.namespace}",
        )
    removed = []
    if pod is not None and await pods.delete(pod):
        removed.append(f"pod {pod['metadata']['name']}")
    return tuple(removed)


async def _entries(api: Api) -> list[Manifest]:
    """Developers' keys: of each object the metadata alone, however large it is."""
    query = {"labelSelector": keys.SELECTOR, "limit": str(LISTED)}
    accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    found = await api.request("GET", keys.config_maps(api.namespace), query=query, accept=accept)
    items = found.get("items")
    return items if isinstance(items, list) else []


def owner(pod: Manifest) -> str:
    """What made a pod, if a controller did: "Deployment devloop-agent"."""
    for each in pod["metadata"].get("ownerReferences") or []:
        if each.get("controller"):
            digest = (pod["metadata"].get("labels") or {}).get("pod-template-hash", "")
            if each["kind"] == "ReplicaSet" and digest:
                return f"Deployment {each['name'].removesuffix(f'-{digest}')}"
            return f"{each['kind']} {each['name']}"
    return ""


def linger_of(pod: Manifest) -> int:
    """DEVLOOP_AGENT_LINGER, in seconds; 0 if it is not set."""
    env = {each["name"]: each.get("value") or "" for each in container_of(pod).get("env") or []}
    value = env.get("DEVLOOP_AGENT_LINGER", "")
    return int(value) if value.isdecimal() else 0


def clients_of(entries: Iterable[Manifest]) -> tuple[Client, ...]:
    """Whose keys these are, by name; a developer with several engines has one."""
    found = set()
    for each in entries:
        metadata = each.get("metadata") or {}
        if keys.is_entry(metadata):
            who = (metadata.get("annotations") or {}).get(keys.WHO)
            found.add(Client(str(who or "unknown"), keys.fingerprint(metadata["name"])))
    return tuple(sorted(found, key=lambda each: (each.name, each.fingerprint)))


def manifests(image: str, namespace: str | None = None, role: Role = SMALLEST) -> str:
    """What an administrator applies beforehand: the Roles, the service account, the NetworkPolicy, and an agent; none
    for who makes it themselves.
    """
    shared = [roles(namespace, role), _within(POLICY.read_text(), namespace)]
    if role is Role.SELF_SERVICE:
        return "---\n".join(shared)
    head, _, deployment = DEPLOYMENT.read_text().rpartition("\n---\n")
    comment = "".join(line for line in deployment.splitlines(keepends=True) if line.startswith("#"))
    return "---\n".join([*shared, _within(head + "\n", namespace), comment + _deployment(image, namespace)])


def roles(namespace: str | None = None, role: Role = SMALLEST) -> str:
    """A Role of developers' with those that it adds to, and the agent's own: each line with its reason, what its lack
    costs, and what it lets somebody do who is malicious.
    """
    files = [f"role-{each}.yaml" for each in (*role.smaller, role)] + ["role-agent.yaml"]
    if role in (Role.ATTACH, Role.SELF_SERVICE):
        files.append("role-agent-attach.yaml")
    return "---\n".join(_within(MANIFEST.with_name(each).read_text(), namespace) for each in files)


def _within(text: str, namespace: str | None) -> str:
    """The same objects, with a namespace of their own."""
    return re.sub(r"(?m)^metadata:$", f"metadata:\n  namespace: {namespace}", text) if namespace else text


def _deployment(image: str, namespace: str | None) -> str:
    """The Deployment, its pod completed from agent.yaml, so that there is one description of the agent."""
    import yaml

    made: dict[str, Any] = list(yaml.safe_load_all(DEPLOYMENT.read_text()))[-1]
    pod = pod_manifest(image, 0)
    template = made["spec"]["template"]
    template["metadata"]["labels"] = pod["metadata"]["labels"]
    template["metadata"]["annotations"] |= pod["metadata"]["annotations"]
    template["spec"] = pod["spec"]
    if namespace:
        made["metadata"] = {"namespace": namespace, **made["metadata"]}
    return _dump(made)


def _dump(item: Mapping[str, Any]) -> str:
    """YAML as people write it: no references, several lines as a block."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return yaml.dump(item, Dumper=Dumper, sort_keys=False, width=110)

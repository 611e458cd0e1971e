"""How far the agent's pod is, as its object says; and why there can be none."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from devloop.errors import RemoteError

from .api import Api, ApiError

CONTAINER = "agent"
"""The name of the agent's own container."""
FOR_ADMINISTRATORS = "`devloop doctor` names the Roles; `devloop agent manifest` is for an administrator."
WORDS = 500
"""So many characters of what a container has said last are shown."""
Manifest = dict[str, Any]

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


async def allowed(api: Api, doing: str, method: str, path: str, body: object = None, **more: Any) -> Manifest:
    """A request whose refusal means that this user may have no agent: AgentRefusedError, beside ApiError."""
    try:
        return await api.request(method, path, body, **more)
    except ApiError as problem:
        if problem.status in (HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY):
            # RBAC, Pod Security, a quota or an admission webhook: the message says which.
            raise AgentRefusedError(f"{doing}: {problem.what}", where=api.where, hint=problem.hint) from problem
        raise


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
            said = last_words(container) or waiting.get("message") or reason
            return f"{_STUCK[reason]} ({said})", True
        if reason:
            return str(waiting.get("message") or reason), False
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason") or ""), False
    return "", False


def last_words(status: Manifest) -> str:
    """The last line of what a container has said before it ended; empty if that is not known."""
    terminated = (status.get("lastState") or {}).get("terminated") or {}
    lines = str(terminated.get("message") or "").strip().splitlines()
    return lines[-1].strip()[:WORDS] if lines else ""

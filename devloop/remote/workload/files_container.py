"""The ephemeral container that mounts a pod's volumes, so that their files can be read.

Claims, emptyDir and hostPath volumes are nowhere but in the pod. An ephemeral container mounts the same
volumes, read-only, without a restart. It can't be removed from the pod's spec again; its process ends by
itself a few seconds after the last session.

A container that has the right name may be anybody's, with a program of theirs. So one is taken again only if this
process has made it.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections.abc import Iterable
from contextlib import aclosing
from typing import Any

from devloop.errors import RemoteError

from . import far_end
from . import references as kinds
from .cluster import AbsentError, Cluster
from .model import Object, Workload

PREFIX = "devloop-files-"
ROOT = "/devloop"
"""Each volume lies at ROOT/NAME in the container."""
START_SECONDS = 60
FIRST_SESSION_SECONDS = 60
IDLE_SECONDS = 10
_made: dict[tuple[str, str], dict[str, Any]] = {}
"""Containers that this process has made, by their pod's uid and their name, as they were asked for."""
_STUCK = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerError")
_STUCK_CONFIG = ("CreateContainerConfigError", "RunContainerError")


def spec(workload: Workload, image: str, volumes: Iterable[str]) -> dict[str, Any]:
    """The ephemeral container: what `restricted` allows, as the user of the workload's own container.

    As another user it could not read what the container has written for itself. A container that runs as
    root gets the one capability that reading others' files takes.
    """
    uid, gid = _user(workload)
    security: dict[str, Any] = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": uid != 0,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if uid is not None:
        security["runAsUser"] = uid
    if gid is not None:
        security["runAsGroup"] = gid
    if uid == 0:
        security["capabilities"]["add"] = ["DAC_OVERRIDE"]
    call = f"{inspect.getsource(far_end)}\nstay({FIRST_SESSION_SECONDS}, {IDLE_SECONDS})"
    return {
        "name": PREFIX + secrets.token_hex(3),
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", call],
        "securityContext": security,
        "volumeMounts": [{"name": each, "mountPath": f"{ROOT}/{each}", "readOnly": True} for each in sorted(volumes)],
    }


async def start(cluster: Cluster, workload: Workload, image: str, volumes: Iterable[str]) -> str:
    """The name of a running container that has these volumes; one that this process has made already is taken.

    Raises RemoteError, which says what is in the way.
    """
    wanted = spec(workload, image, volumes)
    pod = await cluster.get(kinds.POD, workload.pod_name)
    for each in pod["spec"].get("ephemeralContainers") or []:
        mine = _made.get((str(pod["metadata"].get("uid")), str(each["name"])))
        if mine and suits(each, mine, wanted) and _state(pod, each["name"]).get("running"):
            return str(each["name"])
    where = f"pod {workload.pod_name} of {workload.reference}"
    try:
        patch = {"spec": {"ephemeralContainers": [wanted]}}
        pod = await cluster.patch_pod(workload.pod_name, "ephemeralcontainers", patch)
    except AbsentError as absent:
        raise RemoteError(
            f"no ephemeral container can be added: {absent.what}",
            where=where,
            hint=f'{absent.hint or ""} Or set these volumes to "ignore".'.strip(),
        ) from absent
    await _until_running(cluster, workload, str(wanted["name"]), pod, where)
    _made[(str(pod["metadata"].get("uid")), str(wanted["name"]))] = wanted
    return str(wanted["name"])


async def _until_running(cluster: Cluster, workload: Workload, name: str, pod: Object, where: str) -> None:
    try:
        async with asyncio.timeout(START_SECONDS):
            while True:
                if _state(pod, name).get("running"):
                    return
                _give_up(_state(pod, name), where)
                version = pod["metadata"]["resourceVersion"]
                async with aclosing(cluster.watch(kinds.POD, workload.pod_name, version)) as events:
                    async for event in events:
                        if event.type == "DELETED":
                            raise RemoteError("the pod has gone", where=where)
                        if event.type != "BOOKMARK":
                            _give_up(_state(event.object, name), where)
                            if _state(event.object, name).get("running"):
                                return
                pod = await cluster.get(kinds.POD, workload.pod_name)
    except TimeoutError:
        state = _state(pod, name)
        what = f"the ephemeral container {name} does not start within {START_SECONDS} s"
        raise RemoteError(what, where=where, hint=f"Its state: {state or 'none'}") from None


def _give_up(state: Object, where: str) -> None:
    waiting, ended = state.get("waiting") or {}, state.get("terminated")
    if waiting.get("reason") in (*_STUCK, *_STUCK_CONFIG):
        what = f"the ephemeral container does not start: {waiting['reason']}: {waiting.get('message', '')}"
        raise RemoteError(what, where=where, hint="Can the node pull the agent's image?")
    if ended is not None:
        what = f"the ephemeral container has ended: {ended.get('reason')} {ended.get('message', '')}".strip()
        raise RemoteError(what, where=where)


def _state(pod: Object, name: str) -> Object:
    for each in (pod.get("status") or {}).get("ephemeralContainerStatuses") or []:
        if each["name"] == name:
            return dict(each.get("state") or {})
    return {}


def suits(there: Object, mine: Object, wanted: Object) -> bool:
    """Whether a container of the pod is the one that was asked for (`mine`), unchanged, and does for `wanted`."""

    def mounts(each: Object) -> set[tuple[str, str]]:
        return {(one["name"], one["mountPath"]) for one in each.get("volumeMounts") or []}

    security = there.get("securityContext") or {}
    return (
        all(there.get(key) == mine[key] for key in ("name", "image", "command"))
        and not any(there.get(key) for key in ("args", "env", "envFrom", "lifecycle", "workingDir"))
        and all(security.get(key) == value for key, value in mine["securityContext"].items())
        and all(mine[key] == wanted[key] for key in ("image", "command", "securityContext"))
        and mounts(there) >= mounts(wanted)
    )


def _user(workload: Workload) -> tuple[int | None, int | None]:
    """The user and group that the container runs as: what its status says, else what the spec asks for."""
    if linux := (workload.status.get("user") or {}).get("linux"):
        return linux.get("uid"), linux.get("gid")
    whole = workload.pod["spec"].get("securityContext") or {}
    own = workload.container.get("securityContext") or {}
    return own.get("runAsUser", whole.get("runAsUser")), own.get("runAsGroup", whole.get("runAsGroup"))

"""A pod's status, as the kubelet writes it, from what is known of its containers.

Pure: states in, an object out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from devloop.remote.workload.model import Object

HOST = "10.244.0.1"
"""The one node's address; nothing is there."""


@dataclass(slots=True)
class State:
    """What is known of one container."""

    name: str
    image: str
    role: Literal["init", "sidecar", "main", "ephemeral"]
    state: Mapping[str, Any] = field(default_factory=lambda: {"waiting": {"reason": "PodInitializing"}})
    last: Mapping[str, Any] = field(default_factory=dict)
    restarts: int = 0
    started: bool = False
    """It runs, and its startup probe has passed."""
    ready: bool = False
    over: bool = False
    """It has ended for good."""

    @property
    def code(self) -> int | None:
        """Its exit code, if it has ended."""
        ended = self.state.get("terminated")
        return None if ended is None else int(ended["exitCode"])

    def wait(self, reason: str, message: str = "") -> None:
        """It does not run, for this reason."""
        self.state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
        self.started = self.ready = False


def phase(states: Sequence[State]) -> str:
    """The pod's phase."""
    init = [each for each in states if each.role == "init"]
    main = [each for each in states if each.role == "main"]
    if any(each.over and each.code for each in init):
        return "Failed"
    if all(each.over for each in main):
        return "Failed" if any(each.code for each in main) else "Succeeded"
    if all("waiting" in each.state and not each.last for each in main):
        return "Pending"
    return "Running"


def is_ready(states: Sequence[State]) -> bool:
    """All containers that stay are ready."""
    return all(each.ready for each in states if each.role in ("main", "sidecar"))


def status(states: Sequence[State], address: str, since: str, changed: str) -> dict[str, Any]:
    """`since` is when the pod was started, `changed` when it last became ready or not."""
    whole, ready = phase(states), is_ready(states)
    initialised = all(each.over or each.started for each in states if each.role in ("init", "sidecar"))
    why = "PodCompleted" if whole == "Succeeded" else "ContainersNotReady"

    def condition(kind: str, holds: bool, at: str, reason: str = "") -> dict[str, Any]:
        made = {"type": kind, "status": str(holds), "lastTransitionTime": at}
        return made if holds or not reason else {**made, "reason": reason}

    return {
        "phase": whole,
        "conditions": [
            condition("PodScheduled", True, since),
            condition("Initialized", initialised, since, "ContainersNotInitialized"),
            condition("ContainersReady", ready, changed, why),
            condition("Ready", ready, changed, why),
        ],
        "hostIP": HOST,
        "hostIPs": [{"ip": HOST}],
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": since,
        "qosClass": "BestEffort",
        "containerStatuses": [_of(each) for each in states if each.role == "main"],
        "initContainerStatuses": [_of(each) for each in states if each.role in ("init", "sidecar")],
        "ephemeralContainerStatuses": [_of(each) for each in states if each.role == "ephemeral"],
    }


def _of(state: State) -> Object:
    return {
        "name": state.name,
        "image": state.image,
        "imageID": "",
        "containerID": f"devloop://{state.name}",
        "ready": state.ready or (state.role == "init" and state.code == 0),
        "started": state.started,
        "restartCount": state.restarts,
        "state": state.state,
        "lastState": state.last,
    }

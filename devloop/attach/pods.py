"""Which pods' traffic is taken by way of doors, and what a door is as a container. Pure: the API's JSON in and out.

A door (`devloop/agent/door.py`) is an ephemeral container, because nothing else can be added to a pod that runs. Its
one capability is NET_ADMIN, in the pod's own network: for its rules, and for the socket that they lead to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from devloop.agent.objects import Document
from devloop.remote import roles
from devloop.remote.kubernetes.api import ApiError

from .seam import AttachError

PREFIX = "devloop-door-"
STUCK = (
    *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
    *("CreateContainerError", "CreateContainerConfigError", "RunContainerError"),
)
"""The kubelet's reasons of a container that waits, where waiting does not help."""


@dataclass(frozen=True, slots=True)
class Pod:
    """One whose traffic is to be taken."""

    uid: str
    name: str
    addresses: tuple[str, ...]
    nodes: tuple[str, ...]
    """Its node's addresses: the kubelet's probes come from one of them, or from the pod's gateway."""
    ports: Mapping[int, int]
    """The Service's port to the pod's own."""
    datagrams: Mapping[int, int] = field(default_factory=dict)
    """The same of UDP."""

    def document(self) -> Document:
        """For the agent."""
        ports = {str(port): own for port, own in self.ports.items()}
        udp = {"udp": {str(port): own for port, own in self.datagrams.items()}} if self.datagrams else {}
        return {"uid": self.uid, "name": self.name, "addresses": list(self.addresses), "ports": ports, **udp}


def runs(pod: Document) -> bool:
    """Its containers have been started, and it is not on its way out."""
    return pod["status"].get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")


def chosen(
    service: Document, pods: Iterable[Document], wanted: Iterable[int], where: str, datagrams: Iterable[int] = ()
) -> list[Pod]:
    """Those that run behind a Service, with the ports of theirs that are asked for, and those of UDP. AttachError if
    one can't be."""
    found = []
    for pod in pods:
        if not runs(pod):
            continue
        name = pod["metadata"]["name"]
        if pod["spec"].get("hostNetwork"):
            raise AttachError(
                f"pod {name} has the network of its node (hostNetwork): what a door does there, it does to the whole "
                "node",
                where=where,
                hint="Its traffic can't be taken. `ingest` has its environment and files.",
            )
        ports = {port: own for port in wanted if (own := own_port(service, pod, port)) is not None}
        addresses = tuple(each["ip"] for each in pod["status"].get("podIPs") or [])
        nodes = tuple(each["ip"] for each in pod["status"].get("hostIPs") or [])
        if not nodes and pod["status"].get("hostIP"):
            nodes = (pod["status"]["hostIP"],)
        udp = {port: own for port in datagrams if (own := own_port(service, pod, port, "UDP")) is not None}
        if (ports or udp) and addresses:
            found.append(Pod(pod["metadata"]["uid"], name, addresses, nodes, ports, udp))
    return found


def own_port(service: Document, pod: Document, port: int, protocol: str = "TCP") -> int | None:
    """A pod's own port for one of a Service's: its targetPort, which may be a name of the pod's. None: it has none."""
    for each in service["spec"].get("ports") or []:
        if each["port"] != port or each.get("protocol", "TCP") != protocol:
            continue
        target = each.get("targetPort", port)
        if isinstance(target, int):
            return target or port
        for container in pod["spec"].get("containers") or []:
            for known in container.get("ports") or []:
                if known.get("name") == target and known.get("protocol", "TCP") == protocol:
                    return int(known["containerPort"])
    return None


def container(suffix: str, image: str, agent: str, token: str, pod: Pod) -> Document:
    """A door, as an ephemeral container. `suffix`: what tells it from others of this pod; letters and digits."""
    assert re.fullmatch(r"[a-z0-9]{1,16}", suffix)
    env = {
        "DEVLOOP_DOOR_AGENT": agent,
        "DEVLOOP_DOOR_TOKEN": token,
        "DEVLOOP_DOOR_POD": pod.uid,
        "DEVLOOP_DOOR_TABLE": f"devloop_{suffix}",
        "DEVLOOP_DOOR_PASS": ",".join(pod.nodes),
    }
    return ephemeral(f"{PREFIX}{suffix}", image, "devloop.agent.door", env)


def ephemeral(name: str, image: str, module: str, env: Mapping[str, str]) -> Document:
    """A module of the agent's as an ephemeral container with NET_ADMIN and nothing else."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-m", module],
        # Why it could not work is the last that it says.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "env": [{"name": key, "value": value} for key, value in env.items()],
        "securityContext": {
            # Root, because a capability that is added is in force for root alone; and with no other one.
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def doors(pod: Document, agent: str, token: str) -> list[str]:
    """The names of this agent's doors that were put into a pod, whatever has become of them. In no order: the API's
    merge puts new ones where it likes."""
    wanted = {"DEVLOOP_DOOR_AGENT": agent, "DEVLOOP_DOOR_TOKEN": token}
    found = []
    for each in pod["spec"].get("ephemeralContainers") or []:
        env = {entry["name"]: entry.get("value") for entry in each.get("env") or []}
        if each["name"].startswith(PREFIX) and wanted.items() <= env.items():
            found.append(str(each["name"]))
    return found


def state(pod: Document, name: str) -> Document:
    """How one of its ephemeral containers is; empty: the kubelet has not said."""
    for each in pod["status"].get("ephemeralContainerStatuses") or []:
        if each["name"] == name:
            return dict(each.get("state") or {})
    return {}


def stuck(pod: Document, name: str) -> str:
    """Why a door does not start, and will not; empty: it may yet."""
    waiting = state(pod, name).get("waiting") or {}
    if waiting.get("reason") in STUCK:
        return f"{waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
    return ""


def ended(pod: Document, name: str) -> str:
    """How a door has ended; empty: it has not."""
    found = state(pod, name).get("terminated")
    if found is None:
        return ""
    return f"{found.get('reason') or 'Ended'} ({found.get('exitCode')}) {found.get('message') or ''}".strip()


def last_words(pod: Document, names: Iterable[str]) -> str:
    """How that one of these doors has ended which was the last to end."""
    over = [(str((state(pod, each).get("terminated") or {}).get("finishedAt")), each) for each in names]
    return ended(pod, max(over)[1]) if over else "it has gone"


def refused(problem: ApiError, pod: str, where: str, why: str) -> AttachError:
    """The API server lets no door in: why, and what to do. `why`: why it takes one (`objects.unsupported`)."""
    reason = f"its traffic could be taken in its pods alone: {why or 'that was asked for'}"
    if problem.status == 403 and "PodSecurity" in problem.what:
        return AttachError(
            f"{reason}; and the namespace allows no NET_ADMIN in a pod, which that takes: {problem.what}",
            where=where,
            hint="The Pod Security level `privileged` allows it; or let its clients use a Service with an address, and "
            "attach that.",
        )
    hint = None
    if problem.status == 403:
        hint = roles.hint(problem.what) or roles.ask_for(roles.Role.ATTACH)
    return AttachError(f"{reason}; and nothing can be put into {pod}: {problem.what}", where=where, hint=hint)


def note(names: Iterable[str]) -> str:
    """What people should know of it."""
    pods = ", ".join(sorted(names))
    return (
        f"taken in its pods ({pods}), by an ephemeral container with NET_ADMIN in each; ended or not, it stays in a "
        "pod's list of containers until the pod is replaced"
    )

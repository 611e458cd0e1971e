"""EndpointSlices: which pods stand behind each Service, and which of them are ready.

After the EndpointSlice controller. Pure: objects in, objects out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from devloop.remote.workload.model import Object

from .objects import selected


def slices(service: Object, pods: Iterable[Object]) -> list[dict[str, Any]]:
    """The slices of a Service, one for each way in which its ports are the pods'; none without a selector."""
    spec, name = service["spec"], service["metadata"]["name"]
    if not spec.get("selector") or spec.get("type") == "ExternalName":
        return []
    found: dict[tuple[tuple[str, str, int], ...], list[dict[str, Any]]] = {}
    for pod in pods:
        if not behind(service, pod):
            continue
        ports = tuple(
            (str(each.get("name") or ""), str(each.get("protocol", "TCP")), number)
            for each in spec.get("ports") or []
            if (number := port_of(pod, each.get("targetPort", each["port"]))) is not None
        )
        found.setdefault(ports, []).append(_endpoint(service, pod))
    made = []
    for index, (ports, endpoints) in enumerate(sorted(found.items())):
        labels = {"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "devloop"}
        made.append({
            "metadata": {"name": f"{name}-{index}", "labels": labels},
            "addressType": "IPv4",
            "ports": [{"name": title, "protocol": protocol, "port": number} for title, protocol, number in ports],
            "endpoints": endpoints,
        })  # fmt: skip
    return made


def behind(service: Object, pod: Object) -> bool:
    """The Service selects the pod, which has an address and has not ended."""
    status, labels = pod.get("status") or {}, pod["metadata"].get("labels") or {}
    selector = service["spec"].get("selector")
    if not selector or not status.get("podIP") or status.get("phase") in ("Succeeded", "Failed"):
        return False
    return selected(labels, {"matchLabels": selector})


def port_of(pod: Object, target: int | str) -> int | None:
    """A container's port by number or name."""
    if isinstance(target, int):
        return target
    if target.isdecimal():
        return int(target)
    for container in pod["spec"]["containers"]:
        for each in container.get("ports") or []:
            if each.get("name") == target:
                return int(each["containerPort"])
    return None


def _endpoint(service: Object, pod: Object) -> dict[str, Any]:
    metadata, spec, status = pod["metadata"], pod["spec"], pod["status"]
    conditions = status.get("conditions") or []
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    ending = bool(metadata.get("deletionTimestamp"))
    taken = bool(service["spec"].get("publishNotReadyAddresses")) or (ready and not ending)
    made: dict[str, Any] = {
        "addresses": [status["podIP"]],
        "conditions": {"ready": taken, "serving": ready, "terminating": ending},
        "nodeName": spec.get("nodeName"),
        "targetRef": {
            "kind": "Pod", "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
        },
    }  # fmt: skip
    if spec.get("hostname") and spec.get("subdomain") == service["metadata"]["name"]:
        made["hostname"] = spec["hostname"]
    return made

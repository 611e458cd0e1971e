"""The downward API: `fieldRef` and `resourceFieldRef`, for variables and for files.

Source of the rules: the kubelet's `podFieldSelectorRuntimeValue` (variables), `pkg/fieldpath` (files),
`defaultPodLimitsForDownwardAPI` and `pkg/api/v1/resource/helpers.go`.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from . import quantity
from .model import Object, Sources, Workload

_ALLOCATABLE = ("cpu", "memory", "ephemeral-storage")


@dataclass(frozen=True, slots=True)
class Found:
    """A value, and what stands in for it if it is not the pod's own."""

    value: str
    stand_in: str = ""


class UnsupportedError(Exception):
    """The API server would not have taken this reference: which, and why."""


def field(path: str, workload: Workload, *, file: bool = False) -> Found:
    """The value of a `fieldRef`. Raises UnsupportedError.

    What only a running pod has is stood in for where there is none: addresses by the loopback's, the node
    by this machine. For files the API has fewer fields than for variables.
    """
    metadata = workload.pod["metadata"]
    name, subscript = _split(path)
    if subscript is not None:
        if name not in ("metadata.annotations", "metadata.labels"):
            raise UnsupportedError(f"field {path} can't have a key")
        pairs = with_kubelets(metadata) if name == "metadata.annotations" else metadata.get("labels") or {}
        return Found(pairs.get(subscript, ""))
    match path:
        case "metadata.annotations":
            return Found(formatted(with_kubelets(metadata)))
        case "metadata.labels":
            return Found(formatted(metadata.get("labels") or {}))
        case "metadata.namespace":
            return Found(workload.namespace)
        case "metadata.name":
            return _of_running(workload, workload.pod_name, workload.pod_name)
        case "metadata.uid":
            made_up = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{workload.namespace}/{workload.reference}"))
            return _of_running(workload, metadata.get("uid"), made_up)
    if not file:
        spec, status = workload.pod["spec"], workload.pod.get("status") or {}
        host, pod = status.get("hostIP"), status.get("podIP")
        match path:
            case "spec.nodeName" | "spec.host":
                return _of_running(workload, spec.get("nodeName"), socket.gethostname())
            case "spec.serviceAccountName":
                return Found(service_account(workload.pod))
            case "status.hostIP":
                return _of_running(workload, host, "127.0.0.1")
            case "status.hostIPs":
                several = ",".join(each["ip"] for each in status.get("hostIPs") or [])
                return _of_running(workload, several or host, "127.0.0.1")
            case "status.podIP":
                return _of_running(workload, pod, "127.0.0.1")
            case "status.podIPs":
                several = ",".join(_families(each["ip"] for each in status.get("podIPs") or []))
                return _of_running(workload, several or pod, "127.0.0.1")
    raise UnsupportedError(f"field {path} is none that the downward API has")


def resource(ref: Object, workload: Workload, sources: Sources, *, file: bool = False) -> Found:
    """The value of a `resourceFieldRef`. Raises UnsupportedError.

    A limit that is not set is the pod's (`spec.resources`), else all that the node has to allocate; where
    the node may not be read, what this machine has stands in for it.
    """
    name = ref.get("containerName")
    container = _container(workload, name) if name or file else workload.container
    kind, _, what = ref["resource"].partition(".")
    milli = what == "cpu"
    if kind not in ("limits", "requests") or not (what in _ALLOCATABLE or what.startswith("hugepages-")):
        raise UnsupportedError(f"resource {ref['resource']} is none that the downward API has")
    text = str(((container.get("resources") or {}).get(kind) or {}).get(what, ""))
    stand_in = ""
    is_zero = not text or quantity.parse(text) == 0
    if kind == "limits" and what in _ALLOCATABLE and is_zero:
        whole = ((workload.pod["spec"].get("resources") or {}).get("limits") or {}).get(what)
        if whole and not file and what != "ephemeral-storage":
            text = str(whole)
        elif sources.allocatable is not None:
            text = str(sources.allocatable.get(what, "0"))
        else:
            text = sources.local.get(what, "0")
            stand_in = "there is no limit, and the node may not be read; this machine's own stands in"
    return Found(quantity.divided(text, str(ref.get("divisor") or "0"), milli=milli), stand_in)


def with_kubelets(metadata: Object) -> Object:
    """A pod's annotations with the two that the kubelet adds to what it has from the API server
    (`kubetypes.ConfigSourceAnnotationKey`, `ConfigFirstSeenAnnotationKey`).

    When it first saw the pod is in no object; when the pod was made stands in for that.
    """
    made = metadata.get("creationTimestamp")
    seen = {"kubernetes.io/config.seen": str(made)} if made else {}
    return {**(metadata.get("annotations") or {}), **seen, "kubernetes.io/config.source": "api"}


def hostname(workload: Workload) -> str:
    """What the pod calls itself (the kubelet's `GeneratePodHostNameAndDomain`); runtimes set it as HOSTNAME."""
    spec = workload.pod["spec"]
    if spec.get("hostNetwork"):
        return str(spec.get("nodeName") or workload.pod_name)
    return str(spec.get("hostnameOverride") or spec.get("hostname") or workload.pod_name[:63].rstrip("-."))


def formatted(pairs: Object) -> str:
    """Labels or annotations as the kubelet prints them: `key="value"` a line, sorted, Go's quoting."""
    return "\n".join(f"{key}={quoted(value)}" for key, value in sorted(pairs.items()))


def quoted(text: str) -> str:
    """Go's strconv.Quote: printable characters as they are, others escaped."""
    named = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"}
    named |= {'"': r"\"", "\\": r"\\"}
    out = []
    for char in text:
        code = ord(char)
        if char in named:
            out.append(named[char])
        elif char.isprintable():
            out.append(char)
        elif code < 0x80:
            out.append(f"\\x{code:02x}")
        else:
            out.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return '"' + "".join(out) + '"'


def service_account(pod: Object) -> str:
    """The name of the service account that a pod runs as."""
    spec = pod["spec"]
    return str(spec.get("serviceAccountName") or spec.get("serviceAccount") or "default")


def described(ref: Object) -> str:
    """Where a `fieldRef` or `resourceFieldRef` gets its value, for people."""
    if "fieldPath" in ref:
        return f"field {ref['fieldPath']}"
    of = f" of container {ref['containerName']}" if ref.get("containerName") else ""
    return f"resource {ref['resource']}{of}"


def as_json(value: object) -> str:
    """A value for an error message, on one line."""
    return json.dumps(value, ensure_ascii=False)


def _of_running(workload: Workload, value: str | None, instead: str) -> Found:
    if value and "uid" in workload.pod["metadata"]:
        return Found(str(value))
    return Found(instead, f"no pod of {workload.reference} runs; {instead} stands in")


def _split(path: str) -> tuple[str, str | None]:
    """`metadata.labels['key']` → its two parts, as SplitMaybeSubscriptedPath."""
    name, bracket, rest = path.removesuffix("']").partition("['")
    return (name, rest) if path.endswith("']") and bracket and name else (path, None)


def _families(addresses: Iterable[str]) -> list[str]:
    """At most one address of each family, the first one's family first."""
    found: dict[int, str] = {}
    for each in addresses:
        address = ipaddress.ip_address(each)
        found.setdefault(address.version, str(address))
    return list(found.values())


def _container(workload: Workload, name: str | None) -> Object:
    spec = workload.pod["spec"]
    for each in (spec.get("containers") or []) + (spec.get("initContainers") or []):
        if each["name"] == name:
            return dict(each)
    raise UnsupportedError(f"there is no container {as_json(name)}")

"""Service meshes around an original: what the agent, which is no part of them as a rule, is to them.

A proxy that a mesh has put into a pod takes plain connections from outside of it, unless a policy says otherwise; and
proxies of clients see that the agent has none, and send it plain requests. So traffic can be taken. What the mesh gave
to it meanwhile (mTLS between pods, its own figures and rules) is not there on the way by the agent, and that is said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from devloop.agent import objects
from devloop.agent.objects import Document
from devloop.remote.kubernetes.api import Api, ApiError

from . import balancers, pods
from .seam import AttachError

PROXIES = {"istio-proxy": "Istio", "linkerd-proxy": "Linkerd", "kuma-sidecar": "Kuma", "consul-dataplane": "Consul"}
"""What their proxies' containers are called. Istio and Linkerd may have them among the init containers (KEP-753)."""
OUTSIDE = (
    "its pods are in the mesh of {mesh}, and the agent is not: what passes it is not encrypted by the mesh, nor counted"
)


def mesh_of(pod: Mapping[str, Any]) -> str:
    """The mesh whose proxy is in a pod; empty: none that is known."""
    spec = pod["spec"]
    names = (each["name"] for each in (*spec.get("containers", ()), *(spec.get("initContainers") or ())))
    return next((PROXIES[name] for name in names if name in PROXIES), "")


def strict(policies: Iterable[Mapping[str, Any]], labels: Mapping[str, str], ports: Iterable[int]) -> str:
    """Istio's PeerAuthentication that lets none but the mesh into a pod with these labels, at any of these ports of
    its; empty: none does. A workload's comes before its namespace's (Istio's reference, PeerAuthentication)."""
    found = ("", False)
    for each in sorted(policies, key=lambda one: bool((one.get("spec") or {}).get("selector"))):
        spec = each.get("spec") or {}
        wanted = (spec.get("selector") or {}).get("matchLabels") or {}
        if any(labels.get(key) != value for key, value in wanted.items()):
            continue
        mode = str((spec.get("mtls") or {}).get("mode", "UNSET"))
        of_ports = {int(port): str(one.get("mode", "UNSET")) for port, one in (spec.get("portLevelMtls") or {}).items()}
        modes = [of_ports.get(port, mode) for port in ports] or [mode]
        if set(modes) != {"UNSET"}:
            found = (str(each["metadata"]["name"]), "STRICT" in modes)
    return found[0] if found[1] else ""


async def look(api: Api, service: Document, ports: Iterable[int]) -> str:
    """What is to be known of a Service whose traffic is about to be led to the agent, of load balancers too; mostly
    nothing. AttachError."""
    owned = objects.owners(service)
    base = f"/namespaces/{api.namespace}"
    query = ",".join(f"{key}={value}" for key, value in (owned["spec"].get("selector") or {}).items())
    listed, bound = await asyncio.gather(api.get(f"/api/v1{base}/pods", labelSelector=query), balancers.bindings(api))
    behind = listed.get("items") or []
    balanced = balancers.told(owned, behind, bound)
    meshed = next((each for each in behind if pods.runs(each) and mesh_of(each)), None)
    if meshed is None:
        return balanced
    mesh = mesh_of(meshed)
    if mesh == "Istio":
        try:
            found = await api.get(f"/apis/security.istio.io/v1{base}/peerauthentications")
        except ApiError:  # a right lacks, or an older Istio: then it is not known beforehand
            found = {}
        own = (pods.own_port(owned, meshed, port) for port in ports)
        labels = meshed["metadata"].get("labels") or {}
        if name := strict(found.get("items") or (), labels, [each for each in own if each is not None]):
            raise AttachError(
                f"the PeerAuthentication {name} lets none but Istio's mesh into its pods (STRICT): the agent could not "
                "lead on what no route takes",
                where=f"Service {service['metadata']['name']}",
                hint="Another one of mode PERMISSIVE, for these pods alone, lets the agent in while it is there.",
            )
    return "; ".join(filter(None, (OUTSIDE.format(mesh=mesh), balanced)))

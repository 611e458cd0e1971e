"""Load balancers that send to a Service's pods themselves, past the nodes: what leading it to the agent means to them.

A new selector takes the pods from their targets, and makes the agent's pod one. That has to pass the load balancer's
health checks first, which takes it some ten seconds; the original's pods have to as well when somebody leaves. Which
Services that is true of is written where the cloud's own controllers write it:

- GKE's network endpoint groups: the annotations `cloud.google.com/neg` and `cloud.google.com/neg-status`, and a
  readiness gate of the pods (Google, "Container-native load balancing").
- AWS' load balancers with targets of type `ip`: annotations of the Service, a readiness gate of the pods, and a
  TargetGroupBinding for each target group (AWS Load Balancer Controller's reference).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from devloop.agent.objects import Document
from devloop.remote.kubernetes.api import Api, ApiError
from devloop.remote.said import json_of

NEG = "cloud.google.com/neg"
NEG_STATUS = "cloud.google.com/neg-status"
AWS = {
    "service.beta.kubernetes.io/aws-load-balancer-nlb-target-type": "ip",
    "service.beta.kubernetes.io/aws-load-balancer-type": "nlb-ip",
    "alb.ingress.kubernetes.io/target-type": "ip",
}
"""Annotations of a Service by which AWS' controller takes its pods as targets."""
GATES = ("cloud.google.com/load-balancer-neg-ready", "target-health.elbv2.k8s.aws/", "target-health.eks.amazonaws.com/")
"""Of pods: a load balancer has to have found them healthy before they are ready. Their beginnings."""
BINDINGS = ("elbv2.k8s.aws/v1beta1", "eks.amazonaws.com/v1")
TOLD = (
    "a load balancer sends to its pods themselves ({why}): requests from outside may fail until its health checks have "
    "found the agent's pod, and the original's when you leave; `--way pods` (`way = \"pods\"`) leaves its targets alone"
)


def of_service(service: Mapping[str, Any]) -> str:
    """What of a Service says that a load balancer sends to its pods; empty: nothing."""
    annotations = service["metadata"].get("annotations") or {}
    if _object(annotations.get(NEG_STATUS)).get("network_endpoint_groups"):
        return f"the annotation {NEG_STATUS}"
    if _object(annotations.get(NEG)).get(
        "exposed_ports"
    ):  # `ingress` alone: only if an Ingress names it, see the status
        return f"the annotation {NEG}"
    return next((f"the annotation {key}: {value}" for key, value in AWS.items() if annotations.get(key) == value), "")


def of_pods(pods: Iterable[Mapping[str, Any]]) -> str:
    """The same of its pods."""
    gates = (str(each.get("conditionType", "")) for pod in pods for each in pod["spec"].get("readinessGates") or [])
    return next((f"the readiness gate {each}" for each in gates if each.startswith(GATES)), "")


def of_bindings(bindings: Iterable[Mapping[str, Any]], service: str) -> str:
    """The same of TargetGroupBindings."""
    for each in bindings:
        spec = each.get("spec") or {}
        if spec.get("targetType") == "ip" and (spec.get("serviceRef") or {}).get("name") == service:
            return f"the TargetGroupBinding {each['metadata']['name']}"
    return ""


async def bindings(api: Api) -> list[Document]:
    """The namespace's TargetGroupBindings; none where there are no such, or they may not be read."""

    async def of(version: str) -> list[Document]:
        try:
            found = await api.get(f"/apis/{version}/namespaces/{api.namespace}/targetgroupbindings")
        except ApiError:
            return []
        return found.get("items") or []

    return [each for some in await asyncio.gather(*map(of, BINDINGS)) for each in some]


def told(owned: Document, pods: Iterable[Document], bound: Iterable[Document]) -> str:
    """What is to be known before a Service, as its owner has it, is led to the agent; mostly nothing."""
    why = of_service(owned) or of_bindings(bound, str(owned["metadata"]["name"])) or of_pods(pods)
    return TOLD.format(why=why) if why else ""


def _object(text: object) -> Mapping[str, Any]:
    try:
        return json_of(text) if isinstance(text, str) else {}
    except ValueError:
        return {}

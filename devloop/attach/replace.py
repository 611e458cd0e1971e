"""Before a workload is scaled to zero: what its owners want of its size. And after: until its pods have gone."""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from typing import Any

from devloop.agent.objects import Document
from devloop.agent.spec import Spec
from devloop.remote.kubernetes.api import Api, ApiError

from .claims import refused
from .seam import AttachError

KINDS = ("deployment", "statefulset", "replicaset")
GONE_SECONDS = 60.0
READY_SECONDS = 60.0
REST_SECONDS = 10.0


async def look(api: Api, spec: Spec, *, despite_budget: bool) -> tuple[int, tuple[str, ...]]:
    """The workload's size, and what people should know. AttachError if it may not be stopped."""
    kind, _, name = spec.workload.partition("/")
    where = f"{api.where} {spec.workload}"
    if kind not in KINDS:
        raise AttachError(
            f"a {kind} has no size that could be set to zero", where=where, hint=f"`replace` takes {', '.join(KINDS)}."
        )
    apps = f"/apis/apps/v1/namespaces/{api.namespace}"
    try:
        found, scalers, budgets = await asyncio.gather(
            api.find(f"{apps}/{kind}s/{name}"),
            api.get(f"/apis/autoscaling/v2/namespaces/{api.namespace}/horizontalpodautoscalers"),
            api.get(f"/apis/policy/v1/namespaces/{api.namespace}/poddisruptionbudgets"),
        )
    except ApiError as problem:
        raise refused(problem, "looking at what keeps its size", where) from problem
    if found is None:
        raise AttachError("there is no such workload", where=where)
    replicas = int(found["spec"].get("replicas", 1))
    notes = []
    for each in scalers.get("items") or []:
        target = each["spec"]["scaleTargetRef"]
        if (target["kind"].lower(), target["name"]) == (kind, name):
            # horizontalpodautoscaler: at zero replicas it does nothing ("ScalingDisabled"), and goes on after.
            notes.append(f"the autoscaler {each['metadata']['name']} rests while the workload has no pods")
            if each["spec"].get("minReplicas") == 0:
                raise AttachError(
                    f"the autoscaler {each['metadata']['name']} may scale it to zero and back by itself, so it would "
                    "start pods beside the local service",
                    where=where,
                    hint="Set its minReplicas to 1 for as long as you replace the workload.",
                )
    labels = found["spec"]["template"]["metadata"].get("labels") or {}
    for each in budgets.get("items") or []:
        if not selects(each["spec"].get("selector"), labels):
            continue
        said = budget(each, replicas)
        if said and not despite_budget:
            raise AttachError(
                f"the PodDisruptionBudget {each['metadata']['name']} wants {said}",
                where=where,
                hint="It says that this workload must not be down. `despite_budget` replaces it all the same.",
            )
        if said:
            notes.append(f"against the PodDisruptionBudget {each['metadata']['name']}, which wants {said}")
    return replicas, tuple(notes)


def budget(found: Document, replicas: int) -> str:
    """What a budget wants to run; empty if it lets all of so many pods go."""
    spec = found["spec"]
    if (least := spec.get("minAvailable")) is not None and str(least) not in ("0", "0%"):
        return f"{least} of its pods available"
    most = spec.get("maxUnavailable")
    if most is not None and str(most) != "100%" and not (isinstance(most, int) and most >= replicas):
        return f"no more than {most} of its pods unavailable"
    return ""


def selects(selector: Document | None, labels: dict[str, str]) -> bool:
    """Whether a LabelSelector takes these labels (an empty one takes all)."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for each in selector.get("matchExpressions") or []:
        value, values = labels.get(each["key"]), each.get("values") or []
        fits = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }.get(each["operator"], False)
        if not fits:
            return False
    return True


async def until_gone(api: Api, selector: str, where: str) -> None:
    """Until no pod of a workload is left, so that nobody works beside the local service."""
    until = time.monotonic() + GONE_SECONDS
    while time.monotonic() < until:
        found = await api.get(f"/api/v1/namespaces/{api.namespace}/pods", labelSelector=selector)
        left = [each for each in found.get("items") or [] if each["status"].get("phase") not in ("Succeeded", "Failed")]
        if not left:
            return
        await asyncio.sleep(0.1)
    raise AttachError(f"its pods have not ended in {GONE_SECONDS:g} s", where=where)


async def until_ready(api: Api, selector: str, replicas: int) -> None:
    """Until all pods answer again, before traffic is led back to them.

    Once one does, the others get `REST_SECONDS`. What never gets ready is not waited for.
    """
    until = time.monotonic() + READY_SECONDS
    first = False
    while replicas and time.monotonic() < until:
        try:
            found = await api.get(f"/api/v1/namespaces/{api.namespace}/pods", labelSelector=selector)
        except ApiError as problem:
            if problem.status != HTTPStatus.FORBIDDEN:
                raise
            return
        ready = sum(is_ready(each) for each in found.get("items") or [])
        if ready >= replicas:
            return
        if ready and not first:
            first, until = True, min(until, time.monotonic() + REST_SECONDS)
        await asyncio.sleep(0.1)


def is_ready(pod: dict[str, Any]) -> bool:
    """A pod that Services lead to."""
    conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions") or []}
    return conditions.get("Ready") == "True" and not pod["metadata"].get("deletionTimestamp")

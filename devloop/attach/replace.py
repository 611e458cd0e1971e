"""Before a workload is scaled to zero: what its owners want of its size. And after: until its pods have gone."""

from __future__ import annotations

import asyncio
import time
from http import HTTPStatus
from typing import Any

from devloop.agent.objects import Document
from devloop.agent.paths import GROUPS, slices, workloads
from devloop.agent.spec import Spec
from devloop.remote.kubernetes.api import Api, ApiError

from . import scalers
from .claims import refused
from .seam import AttachError

KINDS = ("deployment", "statefulset", "replicaset", "rollout")
GONE_SECONDS = 60.0
"""How long pods may take to end, besides what they ask for themselves (terminationGracePeriodSeconds)."""
READY_SECONDS = 60.0
REST_SECONDS = 10.0
SETTLE_SECONDS = 0.3


async def look(api: Api, spec: Spec, *, before: int | None = None, despite_budget: bool) -> tuple[int, tuple[str, ...]]:
    """The size that the workload is to have again, and what people should know. AttachError if it may not be stopped.

    `before` is what our own lease says of it: good while the workload is at zero, for that is our doing. Any other size
    is somebody's decision since then.
    """
    kind, _, name = spec.workload.partition("/")
    where = f"{api.where} {spec.workload}"
    if kind not in KINDS:
        raise AttachError(
            f"a {kind} has no size that could be set to zero", where=where, hint=f"`replace` takes {', '.join(KINDS)}."
        )
    try:
        found, autoscalers, budgets, scaled, rollouts = await asyncio.gather(
            api.find(f"{workloads(api.namespace, f'{kind}s')}/{name}"),
            _listed(api, "autoscaling/v2", "horizontalpodautoscalers"),
            _listed(api, "policy/v1", "poddisruptionbudgets"),
            _maybe(api, "keda.sh/v1alpha1", "scaledobjects"),
            _maybe(api, GROUPS["rollouts"], "rollouts"),
        )
    except ApiError as problem:
        raise refused(problem, "looking at what keeps its size", where) from problem
    if found is None:
        raise AttachError("there is no such workload", where=where)
    replicas = int(found["spec"].get("replicas", 1))
    if replicas == 0 and before is not None:
        replicas = before
    notes: list[str] = []
    for each in (
        scalers.owned(found, kind, name),
        *scalers.rolled(rollouts, kind, name),
        *scalers.autoscaled(autoscalers, kind, name),
        *scalers.driven(scaled, autoscalers, kind, name, api.namespace),
    ):
        if isinstance(each, scalers.Refusal):
            raise AttachError(each.what, where=where, hint=each.hint)
        if each:
            notes.append(each)
    labels = ((found["spec"].get("template") or {}).get("metadata") or {}).get("labels") or {}
    for budget in budgets:
        if not scalers.selects(budget["spec"].get("selector"), labels):
            continue
        said = scalers.budget(budget, replicas)
        if said and not despite_budget:
            raise AttachError(
                f"the PodDisruptionBudget {budget['metadata']['name']} wants {said}",
                where=where,
                hint="It says that this workload must not be down: loosen it for as long as you replace the workload.",
            )
        if said:
            notes.append(f"against the PodDisruptionBudget {budget['metadata']['name']}, which wants {said}")
    return replicas, tuple(notes)


async def _listed(api: Api, group: str, kind: str) -> list[Document]:
    return list((await api.get(f"/apis/{group}/namespaces/{api.namespace}/{kind}")).get("items") or [])


async def _maybe(api: Api, group: str, kind: str) -> list[Document]:
    """Of a kind that a cluster may not have, or that may not be read."""
    try:
        return await _listed(api, group, kind)
    except ApiError as problem:
        if problem.status in (HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN):
            return []
        raise


async def until_gone(api: Api, selector: str, seconds: float) -> float | None:
    """Until no pod of a workload is left, so that nobody works beside the local service; None then.

    Otherwise, after so many seconds, how long (seconds) the slowest of them may take to end by its own word.
    """
    until = time.monotonic() + seconds
    while True:
        found = await api.get(f"/api/v1/namespaces/{api.namespace}/pods", labelSelector=selector)
        left = [each for each in found.get("items") or [] if each["status"].get("phase") not in ("Succeeded", "Failed")]
        if not left:
            return None
        if time.monotonic() >= until:
            return max(float(each["spec"].get("terminationGracePeriodSeconds") or 0) for each in left)
        await asyncio.sleep(0.1)


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


async def until_endpoints(api: Api, service: str) -> None:
    """Until a ready pod is among the endpoints of a Service, which is a moment after the pod is ready.

    And `SETTLE_SECONDS` more, in which the agent hears of it and Envoy has it: nobody tells us that.
    """
    until = time.monotonic() + REST_SECONDS
    while time.monotonic() < until:
        try:
            found = await api.get(slices(api.namespace), labelSelector=f"kubernetes.io/service-name={service}")
        except ApiError as problem:
            if problem.status != HTTPStatus.FORBIDDEN:
                raise
            break
        ends = [end for each in found.get("items") or [] for end in each.get("endpoints") or []]
        if any((end.get("conditions") or {}).get("ready") for end in ends):
            break
        await asyncio.sleep(0.05)
    await asyncio.sleep(SETTLE_SECONDS)


def is_ready(pod: dict[str, Any]) -> bool:
    """A pod that Services lead to."""
    conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions") or []}
    return conditions.get("Ready") == "True" and not pod["metadata"].get("deletionTimestamp")

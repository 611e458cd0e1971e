"""Who else keeps a workload's size: owners, autoscalers, budgets. What they would do at zero replicas. Pure.

- A HorizontalPodAutoscaler does nothing while its target's `spec.replicas` is 0 ("ScalingDisabled"), unless its own
  `minReplicas` is 0 (Kubernetes: "implicit maintenance-mode deactivation").
- KEDA's operator starts a target from 0 by itself, whatever its HorizontalPodAutoscaler does, unless the ScaledObject
  has one of the annotations below (KEDA, "Pausing autoscaling").
- An Argo Rollout with a `workloadRef` runs the pods of the Deployment that it names, with a size of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from devloop.agent.objects import Document

PAUSED_AT = "autoscaling.keda.sh/paused-replicas"
PAUSED = "autoscaling.keda.sh/paused"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a workload may not be stopped, and what to do."""

    what: str
    hint: str


def controller(found: Document) -> tuple[str, str] | None:
    """The kind and name of the object that controls this one."""
    owners = found["metadata"].get("ownerReferences") or []
    return next(((str(each["kind"]), str(each["name"])) for each in owners if each.get("controller")), None)


def owned(found: Document, kind: str, name: str) -> Refusal | str:
    """What the workload's own controller means for its size; empty: it has none."""
    owner = controller(found)
    if owner is None:
        return ""
    reference = f"{owner[0].lower()}/{owner[1]}"
    if kind == "replicaset":
        return Refusal(
            f"{owner[0]} {owner[1]} keeps its size, and would start it again", f'Name that: workload = "{reference}".'
        )
    return f"{kind}/{name} belongs to {owner[0]} {owner[1]}, whose controller may start it again"


def autoscaled(scalers: Iterable[Document], kind: str, name: str) -> list[Refusal | str]:
    """What HorizontalPodAutoscalers of a workload mean. Those of KEDA are KEDA's (`driven`)."""
    out: list[Refusal | str] = []
    for each in scalers:
        target, called = each["spec"]["scaleTargetRef"], each["metadata"]["name"]
        if (target["kind"].lower(), target["name"]) != (kind, name):
            continue
        owner = controller(each)
        if owner is not None and owner[0] == "ScaledObject":
            continue
        if each["spec"].get("minReplicas") == 0:
            out.append(
                Refusal(
                    f"the autoscaler {called} may scale it to zero and back by itself, so it would start pods beside "
                    "the local service",
                    "Set its minReplicas to 1 for as long as you replace the workload.",
                )
            )
        else:
            out.append(f"the autoscaler {called} rests while the workload has no pods")
    return out


def driven(
    scaled: Iterable[Document], scalers: Iterable[Document], kind: str, name: str, namespace: str
) -> list[Refusal | str]:
    """What KEDA's ScaledObjects of a workload mean.

    Where they may not be read (`scaled` is empty), their HorizontalPodAutoscalers tell of them.
    """
    out: list[Refusal | str] = []
    seen = set()
    for each in scaled:
        target, called = each["spec"].get("scaleTargetRef") or {}, each["metadata"]["name"]
        seen.add(called)
        if ((target.get("kind") or "Deployment").lower(), target.get("name")) != (kind, name):
            continue
        annotations = each["metadata"].get("annotations") or {}
        at = annotations.get(PAUSED_AT)
        if at == "0" or (at is None and annotations.get(PAUSED) == "true"):
            out.append(f"KEDA's ScaledObject {called} is paused")
        else:
            out.append(_starts(called, namespace))
    for each in scalers:
        target, owner = each["spec"]["scaleTargetRef"], controller(each)
        if owner is None or owner[0] != "ScaledObject" or owner[1] in seen:
            continue
        if (target["kind"].lower(), target["name"]) == (kind, name):
            out.append(_starts(owner[1], namespace))
    return out


def _starts(called: str, namespace: str) -> Refusal:
    annotate = f"kubectl annotate scaledobject {called} -n {namespace} {PAUSED_AT}"
    return Refusal(
        f"KEDA's ScaledObject {called} starts it from zero by itself, beside the local service",
        f"Pause it first: `{annotate}=0`; and when you have left: `{annotate}-`.",
    )


def rolled(rollouts: Iterable[Document], kind: str, name: str) -> list[Refusal | str]:
    """What Argo Rollouts mean that take a workload's template."""
    out: list[Refusal | str] = []
    for each in rollouts:
        reference, called = each["spec"].get("workloadRef") or {}, each["metadata"]["name"]
        if (str(reference.get("kind", "")).lower(), reference.get("name")) == (kind, name):
            out.append(
                Refusal(
                    f"the Rollout {called} runs its pods, and has a size of its own",
                    f'Name that: workload = "rollout/{called}".',
                )
            )
    return out


def budget(found: Document, replicas: int) -> str:
    """What a PodDisruptionBudget wants to run; empty if it lets all of so many pods go."""
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

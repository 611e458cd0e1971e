"""From "deployment/web" to a pod and a container."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from devloop.errors import RemoteError, UsageError

from . import references as kinds
from .cluster import AbsentError, Cluster
from .model import Absence, Object, Workload
from .references import Kind, nearest

DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
_REVISIONS = ("deployment.kubernetes.io/revision", "rollout.argoproj.io/revision")


async def find(cluster: Cluster, reference: str, container: str | None = None) -> Workload:
    """The workload, the pod that stands for it and its container.

    A pod that runs is taken before the template, because admission may have changed it (sidecars, default
    limits, the service account's token): of those the newest revision's, then a ready one, then the newest.
    Raises UsageError for what is named wrongly, with the nearest name, and RemoteError.
    """
    kind, name = kinds.parse(reference)
    if kind is None:
        kind = await _kind_of(cluster, name)
    owner = await _read(cluster, kind, name)
    found = owner if kind is kinds.POD else await running_pod(cluster, kind, owner)
    pod = found or _from_template(kind, owner, cluster.namespace)
    chosen, is_init = choose_container(pod, container, f"{kind.name.lower()}/{name}")
    workload = Workload(cluster.namespace, kind.name, name, pod, chosen, False, is_init)
    running = found is not None and is_running(found) and workload.started_at is not None
    return Workload(cluster.namespace, kind.name, name, pod, chosen, running, is_init)


def choose_container(pod: Object, name: str | None, where: str) -> tuple[Object, bool]:
    """A container of a pod, and whether it is an init container.

    By its name; else the one that the annotation `kubectl.kubernetes.io/default-container` names; else the
    first. Raises UsageError.
    """
    spec = pod["spec"]
    main, init = spec.get("containers") or [], spec.get("initContainers") or []
    by_name = {each["name"]: (each, False) for each in main} | {each["name"]: (each, True) for each in init}
    if name is None:
        annotated = (pod["metadata"].get("annotations") or {}).get(DEFAULT_CONTAINER)
        return by_name.get(annotated) or (main[0], False)
    if name not in by_name:
        close = nearest(name, by_name)
        meant = f"Did you mean {close}? " if close else ""
        hint = f"{meant}It has {', '.join(by_name)}."
        raise UsageError(f"there is no container {name!r}", where=where, hint=hint)
    return by_name[name]


async def running_pod(cluster: Cluster, kind: Kind, owner: Object) -> Object | None:
    """The pod of a workload to take as its example; None if none runs."""
    owners: dict[str, int] = {owner["metadata"]["uid"]: 0}
    selector: Mapping[str, Any] | None = owner["spec"].get("selector")
    if kind in (kinds.DEPLOYMENT, kinds.ROLLOUT):
        owners = await _owned(cluster, kinds.REPLICA_SET, owner, selector)
    elif kind is kinds.CRON_JOB:
        owners, selector = await _owned(cluster, kinds.JOB, owner, None), None
    pods = (await cluster.listing(kinds.POD, labels=selector)).items
    mine = [
        (owners[uid], is_ready(pod), str(pod["metadata"].get("creationTimestamp", "")), index)
        for index, pod in enumerate(pods)
        if is_running(pod) and (uid := _controller(pod)) in owners
    ]
    return pods[max(mine)[-1]] if mine else None


def is_running(pod: Object) -> bool:
    """The pod's phase is Running, and it is not on its way out."""
    phase = (pod.get("status") or {}).get("phase")
    return phase == "Running" and not pod["metadata"].get("deletionTimestamp")


def is_ready(pod: Object) -> bool:
    """The pod's condition Ready is true."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


async def _read(cluster: Cluster, kind: Kind, name: str) -> Object:
    try:
        found = await cluster.get(kind, name)
        return found if kind is not kinds.ROLLOUT else await _with_template(cluster, found)
    except AbsentError as absent:
        if absent.absence is Absence.FORBIDDEN:
            raise
    reference = f"{kind.name.lower()}/{name}"
    there = await _there(cluster)
    others = [f"{each.name.lower()}/{name}" for each in there if each is not kind and name in there[each]]
    close = nearest(name, there.get(kind, ()))
    if others:
        hint = f"There is {' and '.join(others)}."
    elif close:
        hint = f"Did you mean {kind.name.lower()}/{close}?"
    else:
        hint = _listed(there) or f"kubectl get {kind.plural} -n {cluster.namespace} lists them."
    raise UsageError(f"{reference} does not exist in namespace {cluster.namespace}", hint=hint)


async def _with_template(cluster: Cluster, rollout: Object) -> Object:
    """A Rollout may take its pods' template from a Deployment (`workloadRef`)."""
    spec = rollout["spec"]
    reference = spec.get("workloadRef") or {}
    if "template" in spec or reference.get("kind") != kinds.DEPLOYMENT.name:
        return rollout
    deployment = (await cluster.get(kinds.DEPLOYMENT, str(reference["name"])))["spec"]
    lent = {key: deployment[key] for key in ("template", "selector")}
    return {**rollout, "spec": {**lent, **spec}}


async def _kind_of(cluster: Cluster, name: str) -> Kind:
    """The kind of the one workload of this name. Raises UsageError if there is none, or several."""
    refused: list[AbsentError] = []
    there = await _there(cluster, refused)
    found = [each for each in there if name in there[each]]
    if len(found) == 1:
        return found[0]
    if found:
        several = " or ".join(f"{each.name.lower()}/{name}" for each in found)
        raise UsageError(f"several workloads are called {name} in namespace {cluster.namespace}", hint=several)
    if refused:  # it may be among what can't be seen
        what = f"no workload that you may see is called {name}; {refused[0].what}"
        raise AbsentError(Absence.FORBIDDEN, what)
    by_name = {each: f"{kind.name.lower()}/{each}" for kind in reversed(there) for each in there[kind]}
    close = nearest(name, by_name)
    hint = f"Did you mean {by_name[close]}?" if close else _listed(there) or "No workload can be seen there."
    raise UsageError(f"no workload is called {name} in namespace {cluster.namespace}", hint=hint)


async def _there(cluster: Cluster, refused: list[AbsentError] | None = None) -> dict[Kind, list[str]]:
    """The names of all workloads that may be listed, those that people mean most often first. `refused` gets why the
    others may not.
    """
    found = {}
    for each in kinds.NAMED:
        try:
            found[each] = [str(item["metadata"]["name"]) for item in (await cluster.listing(each)).items]
        except AbsentError as absent:
            if refused is not None and absent.absence is Absence.FORBIDDEN:
                refused.append(absent)
        except RemoteError:
            continue
    return found


_SHOWN = 8


def _listed(there: Mapping[Kind, list[str]]) -> str:
    """Some of them, for people; those that only belong to others are left out."""
    own = [k for k in there if k not in (kinds.REPLICA_SET, kinds.POD)] or list(there)
    every = [f"{kind.name.lower()}/{name}" for kind in own for name in there[kind]]
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return f"There is {', '.join(every[:_SHOWN])}{more}." if every else ""


async def _owned(cluster: Cluster, kind: Kind, owner: Object, selector: Mapping[str, Any] | None) -> dict[str, int]:
    """The objects of a kind that an object controls: uid → revision, the higher the newer."""
    found: dict[str, int] = {}
    for each in (await cluster.listing(kind, labels=selector)).items:
        if _controller(each) == owner["metadata"]["uid"]:
            annotations = each["metadata"].get("annotations") or {}
            revision = next((annotations[key] for key in _REVISIONS if key in annotations), "0")
            found[each["metadata"]["uid"]] = int(revision) if revision.isdecimal() else 0
    return found


def _controller(item: Object) -> str | None:
    owners = item["metadata"].get("ownerReferences") or []
    return next((str(each["uid"]) for each in owners if each.get("controller")), None)


def _from_template(kind: Kind, owner: Object, namespace: str) -> Object:
    """A pod as it would be made: without what admission adds, but for the service account's token."""
    spec = owner["spec"]
    template = (spec["jobTemplate"]["spec"] if kind is kinds.CRON_JOB else spec)["template"]
    name = owner["metadata"]["name"] + ("-0" if kind is kinds.STATEFUL_SET else "")
    metadata = dict(template.get("metadata") or {}) | {"name": name, "namespace": namespace}
    return with_token({"metadata": metadata, "spec": {**template["spec"], **_claims(kind, owner, template)}})


def _claims(kind: Kind, owner: Object, template: Object) -> Object:
    """A StatefulSet's claims, as its first pod has them."""
    claims = owner["spec"].get("volumeClaimTemplates") if kind is kinds.STATEFUL_SET else None
    if not claims:
        return {}
    made = [
        {
            "name": each["metadata"]["name"],
            "persistentVolumeClaim": {
                "claimName": f"{each['metadata']['name']}-{owner['metadata']['name']}-0",
            },
        }
        for each in claims
    ]
    names = {each["name"] for each in made}
    given = template["spec"].get("volumes") or []
    return {"volumes": [each for each in given if each["name"] not in names] + made}


TOKEN_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"


def with_token(pod: Object) -> Object:
    """With the volume that the ServiceAccount admission plugin adds to a pod that does not refuse it."""
    spec = dict(pod["spec"])
    if spec.get("automountServiceAccountToken") is False:
        return pod
    volume = {
        "name": "kube-api-access",
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {
                    "configMap": {
                        "name": "kube-root-ca.crt",
                        "items": [{"key": "ca.crt", "path": "ca.crt"}],
                    }
                },
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
            ],
        },
    }
    mount = {"name": "kube-api-access", "mountPath": TOKEN_FOLDER, "readOnly": True}
    for key in ("containers", "initContainers"):
        spec[key] = [
            each
            if any(other["mountPath"] == TOKEN_FOLDER for other in each.get("volumeMounts") or [])
            else {**each, "volumeMounts": [*(each.get("volumeMounts") or []), mount]}
            for each in spec.get(key) or []
        ]
    spec["volumes"] = [*(spec.get("volumes") or []), volume]
    return {**pod, "spec": spec}

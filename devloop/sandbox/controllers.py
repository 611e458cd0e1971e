"""What the controllers of a cluster make of workloads: ReplicaSets, claims, and pods, each with its owner.

Pure: objects in, objects out.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from devloop.remote.workload import references as kinds
from devloop.remote.workload.model import Object
from devloop.remote.workload.references import Kind

from .manifests import pod_template
from .objects import CLAIM

NODE = "sandbox"
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
"""What Kubernetes' made-up names consist of: nothing that reads as a word (`util/rand`)."""


@dataclass(frozen=True, slots=True)
class Made:
    """An object that a controller makes."""

    kind: Kind
    object: Object


def replica_set(deployment: Object) -> Object:
    """The ReplicaSet of a Deployment, which is always at its first revision here."""
    metadata, spec = deployment["metadata"], deployment["spec"]
    code = _hash(spec["template"])
    selector = {**(spec.get("selector") or {})}
    selector["matchLabels"] = {**(selector.get("matchLabels") or {}), "pod-template-hash": code}
    template = spec["template"]
    labels = {**((template.get("metadata") or {}).get("labels") or {}), "pod-template-hash": code}
    return {
        "metadata": {
            "name": f"{metadata['name']}-{code}",
            "labels": labels,
            "annotations": {"deployment.kubernetes.io/revision": "1"},
            "ownerReferences": [_owner(kinds.DEPLOYMENT, deployment)],
        },
        "spec": {
            "replicas": spec.get("replicas", 1),
            "selector": selector,
            "template": {**template, "metadata": {**(template.get("metadata") or {}), "labels": labels}},
        },
    }


def pods(kind: Kind, owner: Object, draw: random.Random) -> Iterator[Made]:
    """The pods of a workload, those of a StatefulSet with their claims before them; none of a CronJob."""
    metadata, spec = owner["metadata"], owner["spec"]
    name = metadata["name"]
    if kind is kinds.POD:
        yield Made(kind, {**owner, "spec": _placed(spec)})
    elif kind is kinds.STATEFUL_SET:
        for index in range(spec.get("replicas", 1)):
            yield from _ordinal(owner, index)
    elif kind is kinds.REPLICA_SET:
        for _ in range(spec.get("replicas", 1)):
            yield Made(kinds.POD, _pod(kind, owner, f"{name}-{suffix(draw)}"))
    elif kind is kinds.DAEMON_SET:
        yield Made(kinds.POD, _pod(kind, owner, f"{name}-{suffix(draw)}"))  # there is one node
    elif kind is kinds.JOB:
        yield Made(kinds.POD, job_pod(owner, draw))


def job_pod(job: Object, draw: random.Random) -> Object:
    """One pod of a Job, with the labels that the API server adds."""
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    labels = {"batch.kubernetes.io/job-name": name, "job-name": name, "batch.kubernetes.io/controller-uid": uid}
    return _pod(kinds.JOB, job, f"{name}-{suffix(draw)}", labels)


def _ordinal(owner: Object, index: int) -> Iterator[Made]:
    spec, name = owner["spec"], f"{owner['metadata']['name']}-{index}"
    claims = []
    for claim in spec.get("volumeClaimTemplates") or []:
        title = claim["metadata"]["name"]
        claims.append({"name": title, "persistentVolumeClaim": {"claimName": f"{title}-{name}"}})
        yield Made(CLAIM, {**claim, "metadata": {**claim["metadata"], "name": f"{title}-{name}"}})
    labels = {"statefulset.kubernetes.io/pod-name": name, "apps.kubernetes.io/pod-index": str(index)}
    pod = _pod(kinds.STATEFUL_SET, owner, name, labels)
    names = {each["name"] for each in claims}
    volumes = [each for each in pod["spec"].get("volumes") or [] if each["name"] not in names]
    more = {"volumes": volumes + claims, "hostname": name}
    if service := spec.get("serviceName"):
        more["subdomain"] = service
    yield Made(kinds.POD, {**pod, "spec": {**pod["spec"], **more}})


def _pod(kind: Kind, owner: Object, name: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    template = pod_template(kind, owner)
    given = template.get("metadata") or {}
    metadata: dict[str, Any] = {
        "name": name,
        "generateName": f"{owner['metadata']['name']}-",
        "labels": {**(given.get("labels") or {}), **(labels or {})},
        "ownerReferences": [_owner(kind, owner)],
    }
    if given.get("annotations"):
        metadata["annotations"] = given["annotations"]
    return {"metadata": metadata, "spec": _placed(template["spec"])}


def _placed(spec: Object) -> dict[str, Any]:
    defaults = {"restartPolicy": "Always", "serviceAccountName": spec.get("serviceAccount") or "default"}
    return {**defaults, **spec, "nodeName": NODE}


def _owner(kind: Kind, owner: Object) -> dict[str, Any]:
    metadata = owner["metadata"]
    version = kind.group.removeprefix("apis/").removeprefix("api/")
    named = {"apiVersion": version, "kind": kind.name, "name": metadata["name"], "uid": metadata["uid"]}
    return {**named, "controller": True, "blockOwnerDeletion": True}


def _hash(template: Object) -> str:
    digest = hashlib.sha256(json.dumps(template, sort_keys=True, default=str).encode()).digest()
    return "".join(_LETTERS[each % len(_LETTERS)] for each in digest[:10])


def suffix(draw: random.Random) -> str:
    """Five letters that tell a pod from its fellows."""
    return "".join(draw.choice(_LETTERS) for _ in range(5))

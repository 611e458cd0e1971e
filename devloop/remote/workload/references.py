"""`kind/name`, as the command line and devloop.toml name a workload, and where the API has it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from devloop.errors import UsageError


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object and where it lies in the API."""

    name: str
    plural: str
    group: str = ""
    """The path before the namespace: "api/v1" or "apis/GROUP/VERSION"."""
    short: tuple[str, ...] = ()

    def path(self, namespace: str | None, name: str | None = None, sub: str | None = None) -> str:
        """The object's path at the API server, or its collection's; `namespace` is None for the cluster's."""
        parts = [self.group, *(("namespaces", namespace) if namespace else ()), self.plural]
        return "/" + "/".join(part for part in (*parts, name, sub) if part)


_CORE, _APPS, _BATCH = "api/v1", "apis/apps/v1", "apis/batch/v1"
POD = Kind("Pod", "pods", _CORE, ("po",))
SERVICE = Kind("Service", "services", _CORE, ("svc",))
CONFIG_MAP = Kind("ConfigMap", "configmaps", _CORE, ("cm",))
SECRET = Kind("Secret", "secrets", _CORE)
NODE = Kind("Node", "nodes", _CORE, ("no",))
SERVICE_ACCOUNT = Kind("ServiceAccount", "serviceaccounts", _CORE, ("sa",))
DEPLOYMENT = Kind("Deployment", "deployments", _APPS, ("deploy",))
STATEFUL_SET = Kind("StatefulSet", "statefulsets", _APPS, ("sts",))
DAEMON_SET = Kind("DaemonSet", "daemonsets", _APPS, ("ds",))
REPLICA_SET = Kind("ReplicaSet", "replicasets", _APPS, ("rs",))
JOB = Kind("Job", "jobs", _BATCH)
CRON_JOB = Kind("CronJob", "cronjobs", _BATCH, ("cj",))
ROLLOUT = Kind("Rollout", "rollouts", "apis/argoproj.io/v1alpha1", ("ro",))
"""Of Argo Rollouts: a Deployment that is rolled out otherwise. Most clusters have none."""
TRUST_BUNDLE = Kind("ClusterTrustBundle", "clustertrustbundles", "apis/certificates.k8s.io/v1beta1")

WORKLOADS = (DEPLOYMENT, STATEFUL_SET, DAEMON_SET, REPLICA_SET, JOB, CRON_JOB, POD)
_NAMED = (*WORKLOADS, ROLLOUT)
_BY_WORD = {word: kind for kind in _NAMED for word in (kind.name.lower(), kind.plural, *kind.short) if word}


def parse(reference: str) -> tuple[Kind, str]:
    """The kind and the name of a workload: "deployment/web", "deploy/web", "Pod/web-0".

    As in kubectl a group may follow the kind ("deployments.apps/web"). Raises UsageError.
    """
    word, slash, name = reference.partition("/")
    kind = _BY_WORD.get(word.lower().split(".")[0])
    kinds = ", ".join(each.name.lower() for each in _NAMED)
    if not slash or not name or "/" in name:
        raise UsageError(
            f"{reference!r} is no workload",
            hint=f"Write KIND/NAME, as in deployment/{word or 'web'}; the kinds are {kinds}.",
        )
    if kind is None:
        close = nearest(word.lower(), _BY_WORD)
        meant = f"Did you mean {close}/{name}? " if close else ""
        raise UsageError(f"{word!r} is no kind of workload", hint=f"{meant}The kinds are {kinds}.")
    return kind, name


def nearest(wrong: str, names: Iterable[str]) -> str | None:
    """The name that is most like a wrong one, if any is like it at all."""
    return next(iter(difflib.get_close_matches(wrong, list(names), 1)), None)

"""The kinds of objects that are read, and where the API has them; the kind that `kind/name` means."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from devloop.config import workload


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object and where it lies in the API."""

    name: str
    plural: str
    group: str = ""
    """The path before the namespace: "api/v1" or "apis/GROUP/VERSION"."""

    def path(self, namespace: str | None, name: str | None = None, sub: str | None = None) -> str:
        """The object's path at the API server, or its collection's; `namespace` is None for the cluster's."""
        parts = [self.group, *(("namespaces", namespace) if namespace else ()), self.plural]
        return "/" + "/".join(part for part in (*parts, name, sub) if part)


_CORE, _APPS, _BATCH = "api/v1", "apis/apps/v1", "apis/batch/v1"
POD = Kind("Pod", "pods", _CORE)
SERVICE = Kind("Service", "services", _CORE)
CONFIG_MAP = Kind("ConfigMap", "configmaps", _CORE)
SECRET = Kind("Secret", "secrets", _CORE)
NODE = Kind("Node", "nodes", _CORE)
SERVICE_ACCOUNT = Kind("ServiceAccount", "serviceaccounts", _CORE)
DEPLOYMENT = Kind("Deployment", "deployments", _APPS)
STATEFUL_SET = Kind("StatefulSet", "statefulsets", _APPS)
DAEMON_SET = Kind("DaemonSet", "daemonsets", _APPS)
REPLICA_SET = Kind("ReplicaSet", "replicasets", _APPS)
JOB = Kind("Job", "jobs", _BATCH)
CRON_JOB = Kind("CronJob", "cronjobs", _BATCH)
ROLLOUT = Kind("Rollout", "rollouts", "apis/argoproj.io/v1alpha1")
"""Of Argo Rollouts: a Deployment that is rolled out otherwise. Most clusters have none."""
TRUST_BUNDLE = Kind("ClusterTrustBundle", "clustertrustbundles", "apis/certificates.k8s.io/v1beta1")

WORKLOADS = (DEPLOYMENT, STATEFUL_SET, DAEMON_SET, REPLICA_SET, JOB, CRON_JOB, POD)
NAMED = (*WORKLOADS, ROLLOUT)
"""What a reference may name."""
_BY_NAME = {kind.name.lower(): kind for kind in NAMED}


def parse(reference: str) -> tuple[Kind | None, str]:
    """The kind and the name of a workload: "deployment/web", "deploy/web", "Pod/web-0". No kind for "web" alone.

    Raises UsageError: see `devloop.config.workload`.
    """
    found = workload.read(reference)
    return _BY_NAME.get(found.kind), found.name


def nearest(wrong: str, names: Iterable[str]) -> str | None:
    """The name that is most like a wrong one, if any is like it at all."""
    return next(iter(difflib.get_close_matches(wrong, list(names), 1)), None)

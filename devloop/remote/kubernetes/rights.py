"""What this user may do in a namespace, and what each missing right costs. For `devloop doctor`.

Asked of the API server itself (SelfSubjectAccessReview, which every user may create), so that whatever authorises
there (RBAC, a webhook) has answered. The rules are those of `manifests/role.yaml`; a test holds the two together.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from .api import Api

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
AT_ONCE = 16
READ = ("get", "list", "watch")
AGENT = "devloop-agent"
"""The ConfigMap with the agent's host key."""


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that devloop does, and the rights for it: (API group, resource with subresource, verbs, name)."""

    purpose: str
    cost: str
    rights: tuple[tuple[str, str, tuple[str, ...], str], ...]
    essential: bool = False
    """Without it there is no connection at all."""
    agent: bool = False
    """Only for the link by an agent."""
    maker: bool = False
    """Only where no agent was installed beforehand."""


NEEDS = (
    Need(
        "See workloads and pods",
        "nothing works",
        (
            ("", "pods", READ, ""),
            ("", "services", READ, ""),
            ("", "events", READ, ""),
            *(("apps", each, READ, "") for each in ("deployments", "statefulsets", "daemonsets", "replicasets")),
            *(("batch", each, READ, "") for each in ("jobs", "cronjobs")),
        ),
        essential=True,
    ),
    Need(
        "See which pods stand behind a Service",
        "only names of Services with an address of their own resolve",
        (("discovery.k8s.io", "endpointslices", READ, ""),),
    ),
    Need(
        "Read what pods print",
        "`devloop logs --remote` is refused, and `devloop move` leaves busy connections alone",
        (("", "pods/log", ("get",), ""),),
    ),
    Need(
        "Read ConfigMaps and claims",
        "environment variables and files from them are missing",
        (("", "configmaps", READ, ""), ("", "persistentvolumeclaims", READ, "")),
    ),
    Need(
        "Read Secrets",
        "environment variables and files from them are missing",
        (("", "secrets", READ, ""),),
    ),
    Need(
        "Connect to pods",
        "no connection to the cluster at all",
        (("", "pods/portforward", ("get", "create"), ""),),
        essential=True,
    ),
    Need(
        "Join an agent",
        "the link is plain port-forwards: slower, and to Services and pods of this namespace only",
        (
            ("", "configmaps", ("create",), ""),
            ("", "configmaps", ("get",), AGENT),
            ("", "secrets", ("update", "patch"), AGENT),
        ),
        agent=True,
    ),
    Need(
        "Make an agent",
        "unless an administrator has installed one (`devloop agent manifest`), the link is plain port-forwards: "
        "slower, and to Services and pods of this namespace only",
        (("", "pods", ("create", "delete"), ""), ("", "secrets", ("create",), ""), ("", "secrets", ("delete",), AGENT)),
        agent=True,
        maker=True,
    ),
    Need(
        "Read what an image sets",
        "variables that the image itself sets are missing",
        (("", "pods/exec", ("get", "create"), ""),),
    ),
    Need(
        "Read the files of claims, emptyDir and hostPath",
        "such volumes are refused, and so is the traffic of a pod that does not pass a Service",
        (("", "pods/ephemeralcontainers", ("get", "update", "patch"), ""),),
    ),
    Need(
        "Have the service account's token",
        "the token's file is missing",
        (("", "serviceaccounts/token", ("create",), ""),),
    ),
    Need(
        "Redirect a Service's traffic",
        "no intercept and no wiretap: `ingest` alone",
        (
            ("", "services", ("create", "update", "patch", "delete"), ""),
            ("coordination.k8s.io", "leases", (*READ, "create", "update", "patch", "delete"), ""),
        ),
    ),
    Need(
        "See whom a NetworkPolicy keeps from the agent",
        "clients that one keeps from it wait in vain, and one that keeps it from pods is not named",
        (("networking.k8s.io", "networkpolicies", READ, ""),),
    ),
    Need(
        "Know what Istio wants of the original's clients",
        "where a PeerAuthentication lets in none but the mesh, `attach` can't say so beforehand",
        (("security.istio.io", "peerauthentications", READ, ""),),
    ),
    Need(
        "Stop a workload",
        "`replace` is refused",
        (
            ("autoscaling", "horizontalpodautoscalers", READ, ""),
            ("policy", "poddisruptionbudgets", READ, ""),
            *(
                ("apps", f"{each}/scale", ("get", "update", "patch"), "")
                for each in ("deployments", "statefulsets", "replicasets")
            ),
        ),
    ),
    Need(
        "Stand for Argo Rollouts, and know KEDA",
        "where there are any: Rollouts are no workloads for devloop, and what KEDA may start from zero is known by its "
        "autoscaler alone",
        (
            ("argoproj.io", "rollouts", READ, ""),
            ("argoproj.io", "rollouts/scale", ("get", "update", "patch"), ""),
            ("keda.sh", "scaledobjects", READ, ""),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What came out for one need; `missing` are rights as people write them ("create pods")."""

    need: Need
    missing: tuple[str, ...]

    @property
    def granted(self) -> bool:
        """All of it."""
        return not self.missing


async def review(api: Api, needs: tuple[Need, ...] = NEEDS) -> list[Finding]:
    """Ask for every right; in the order of `needs`. Raises ApiError and ApiUnreachableError."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def allowed(group: str, resource: str, verb: str, name: str) -> bool:
        kind, _, subresource = resource.partition("/")
        attributes = {"namespace": api.namespace, "group": group, "resource": kind, "verb": verb}
        attributes |= {"subresource": subresource} if subresource else {}
        attributes |= {"name": name} if name else {}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        async with limit:
            answer = await api.request("POST", REVIEWS, body)
        return bool(answer.get("status", {}).get("allowed"))

    asked = [
        (need, verb, resource, name, allowed(group, resource, verb, name))
        for need in needs
        for group, resource, verbs, name in need.rights
        for verb in verbs
    ]
    answers = await asyncio.gather(*(each[-1] for each in asked))
    missing: dict[str, list[str]] = {}
    for (need, verb, resource, name, _), granted in zip(asked, answers, strict=True):
        if not granted:
            missing.setdefault(need.purpose, []).append(f"{verb} {resource}{f'/{name}' if name else ''}")
    return [Finding(need, tuple(missing.get(need.purpose, ()))) for need in needs]

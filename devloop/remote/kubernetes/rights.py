"""What this user may do in a namespace, and what each missing right costs. For `devloop doctor`.

Asked of the API server itself (SelfSubjectAccessReview, which every user may create), so that whatever authorises
there (RBAC, a webhook) has answered. The rules are those of `manifests/role-*.yaml`; a test holds the two together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devloop.remote.roles import FOR_WHAT, Role

if TYPE_CHECKING:
    from .api import Api

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
AT_ONCE = 16
READ = ("get", "list", "watch")
AGENT = "devloop-agent"
"""The ConfigMap with the agent's host key."""


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that devloop does, and the rights for it: (API group, resource with subresource, verbs, name)."""

    role: Role
    """Which gives them."""
    purpose: str
    cost: str
    rights: tuple[tuple[str, str, tuple[str, ...], str], ...]
    essential: bool = False
    """Without it there is no connection at all."""
    agent: bool = False
    """Only for the link by an agent."""
    maker: bool = False
    """Only where no agent was installed beforehand."""
    special: bool = False
    """Only for clusters that have what it is about."""


NEEDS = (
    Need(
        Role.LINK,
        "See Services and pods",
        "nothing works",
        (("", "pods", READ, ""), ("", "services", READ, "")),
        essential=True,
    ),
    Need(
        Role.LINK,
        "See which pods stand behind a Service",
        "only names of Services with an address of their own resolve",
        (("discovery.k8s.io", "endpointslices", READ, ""),),
    ),
    Need(
        Role.LINK,
        "Connect to pods",
        "no connection to the cluster at all",
        (("", "pods/portforward", ("get", "create"), ""),),
        essential=True,
    ),
    Need(
        Role.LINK,
        "Join an agent",
        "the link is plain port-forwards: slower, and to Services and pods of this namespace only",
        (("", "configmaps", ("create",), ""), ("", "configmaps", ("get",), AGENT)),
        agent=True,
    ),
    Need(
        Role.INGEST,
        "See workloads",
        "services start with no variables and files of a workload, and `devloop list` shows none",
        (
            *(("apps", each, READ, "") for each in ("deployments", "statefulsets", "daemonsets", "replicasets")),
            *(("batch", each, READ, "") for each in ("jobs", "cronjobs")),
        ),
    ),
    Need(
        Role.INGEST,
        "Read ConfigMaps and claims",
        "environment variables and files from them are missing",
        (("", "configmaps", READ, ""), ("", "persistentvolumeclaims", READ, "")),
    ),
    Need(
        Role.INGEST,
        "Read Secrets",
        "environment variables and files from them are missing",
        (("", "secrets", READ, ""),),
    ),
    Need(
        Role.INGEST,
        "Read what pods print",
        "`devloop logs --remote` is refused, and `devloop move` leaves busy connections alone",
        (("", "pods/log", ("get",), ""),),
    ),
    Need(
        Role.INGEST,
        "Stand for Argo Rollouts",
        "where there are any: Rollouts are no workloads for devloop",
        (("argoproj.io", "rollouts", READ, ""),),
        special=True,
    ),
    Need(
        Role.ATTACH,
        "Redirect a Service's traffic",
        "no intercept and no wiretap: `ingest` alone",
        (
            ("", "services", ("create", "update", "patch", "delete"), ""),
            ("coordination.k8s.io", "leases", (*READ, "create", "update", "patch", "delete"), ""),
        ),
    ),
    Need(
        Role.ATTACH,
        "Read what an image sets",
        "variables that the image itself sets are missing, and connections from before are not counted",
        (("", "pods/exec", ("get", "create"), ""),),
    ),
    Need(
        Role.ATTACH,
        "Read the files of claims, emptyDir and hostPath",
        "such volumes are refused (an emptyDir is empty), and so is the traffic of a pod that does not pass a Service",
        (("", "pods/ephemeralcontainers", ("get", "update", "patch"), ""),),
    ),
    Need(
        Role.ATTACH,
        "Have the service account's token",
        "the token's file is missing",
        (("", "serviceaccounts/token", ("create",), ""),),
    ),
    Need(
        Role.ATTACH,
        "See whom a NetworkPolicy keeps from the agent",
        "clients that one keeps from it wait in vain, and one that keeps it from pods is not named",
        (("networking.k8s.io", "networkpolicies", READ, ""),),
    ),
    Need(
        Role.ATTACH,
        "Know what Istio wants of the original's clients",
        "where a PeerAuthentication lets in none but the mesh, `attach` can't say so beforehand",
        (("security.istio.io", "peerauthentications", READ, ""),),
        special=True,
    ),
    Need(
        Role.ATTACH,
        "Know AWS load balancers that send to pods",
        "where there are any: `attach` can't say beforehand that their health checks take a while to find the agent",
        (
            ("elbv2.k8s.aws", "targetgroupbindings", READ, ""),
            ("eks.amazonaws.com", "targetgroupbindings", READ, ""),
        ),
        special=True,
    ),
    Need(
        Role.ATTACH,
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
        Role.ATTACH,
        "Stop a Rollout, and know KEDA",
        "where there are any: a Rollout can't be replaced, and what KEDA may start is known by its autoscaler alone",
        (
            ("argoproj.io", "rollouts/scale", ("get", "update", "patch"), ""),
            ("keda.sh", "scaledobjects", READ, ""),
        ),
        special=True,
    ),
    Need(
        Role.SELF_SERVICE,
        "Make an agent",
        "unless an administrator has installed one (`devloop agent manifest`), the link is plain port-forwards: "
        "slower, and to Services and pods of this namespace only",
        (("", "pods", ("create", "delete"), ""),),
        agent=True,
        maker=True,
    ),
)


def role_with(group: str, resource: str, verb: str, name: str = "") -> Role | None:
    """The smallest Role that gives a right; `name`: of the object, where it is known."""
    return next(
        (
            need.role
            for role in Role
            for need in NEEDS
            if need.role is role
            for known, kind, verbs, only in need.rights
            if (known, kind) == (group, resource) and verb in verbs and only in ("", name)
        ),
        None,
    )


def role_listing(plural: str) -> Role | None:
    """The smallest Role that may list a kind, whatever its group."""
    groups = {group for need in NEEDS for group, resource, *_ in need.rights if resource == plural}
    found = [role for group in groups if (role := role_with(group, plural, "list")) is not None]
    return min(found, key=tuple(Role).index, default=None)


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


@dataclass(frozen=True, slots=True)
class Roles:
    """The Roles as this user has them; what only some clusters have counts for none."""

    whole: tuple[Role, ...]
    part: tuple[Role, ...]
    """Something of them is missing: an administrator has narrowed them, say."""
    missing: tuple[Role, ...]

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Roles:
        """From all that was asked for."""
        known = [each for each in findings if not each.need.special]
        granted = {role: [each.granted for each in known if each.need.role is role] for role in Role}
        whole = tuple(role for role in Role if all(granted[role]))
        part = tuple(role for role in Role if role not in whole and any(granted[role]))
        return cls(whole, part, tuple(role for role in Role if role not in (*whole, *part)))

    def sentence(self, but: Collection[Role] = ()) -> str:
        """For people, in a line: "attach needs devloop-attach; you have devloop-link". `but`: not needed."""
        names = [each.object_name for each in self.whole] + [f"a part of {each.object_name}" for each in self.part]
        needs = [f"{FOR_WHAT[each]} needs {each.object_name}" for each in self.missing if each not in but]
        have = f"you have {_listed(names)}" if names else "you have none of devloop's Roles"
        return "; ".join([*needs, have])


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

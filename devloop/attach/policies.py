"""NetworkPolicies that keep the agent from the original pods: it is their client while a Service leads to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from devloop.agent.objects import Document, owners
from devloop.errors import RemoteError
from devloop.remote.kubernetes.api import Api
from devloop.remote.kubernetes.install import SELECTOR

from .scalers import selects
from .seam import AttachError


def selecting(policies: Iterable[Document], labels: dict[str, str], kind: str) -> list[str]:
    """Policies that say who may connect to pods of these labels (`kind` is "Ingress"), or where these may ("Egress").

    `policyTypes` may be left out: then it is Ingress, and Egress if there are egress rules (API reference,
    NetworkPolicySpec). Policies add up, so where none admits a connection each of them is one that doesn't. Pure.
    """
    found = []
    for each in policies:
        spec: Mapping[str, Any] = each["spec"]
        kinds = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
        if kind in kinds and selects(spec.get("podSelector") or {}, labels):
            found.append(str(each["metadata"]["name"]))
    return sorted(found)


async def refusal(api: Api, service: Document, unreached: Iterable[str]) -> AttachError:
    """The error for a Service whose pods the agent can't connect to; it names the policies if they may be read."""
    listed = ", ".join(unreached)
    name = service["metadata"]["name"]
    key, _, value = SELECTOR.partition("=")
    admit = f"{{podSelector: {{matchLabels: {{{key}: {value}}}}}}}"
    hint = (
        f"Let the agent in: add {admit} to the policy's `from`, for these pods. Nothing was changed. "
        '`way = "pods"` takes the same.'
    )
    what = f"the agent can't connect to its pods ({listed}), so all of its clients would wait in vain"
    try:
        found = await api.get(f"/apis/networking.k8s.io/v1/namespaces/{api.namespace}/networkpolicies")
        selector = owners(service)["spec"].get("selector") or {}
        query = ",".join(f"{one}={other}" for one, other in selector.items())
        pods = (await api.get(f"/api/v1/namespaces/{api.namespace}/pods", labelSelector=query)).get("items") or []
    except RemoteError:
        what += "; a NetworkPolicy may be why, and they may not be read"
    else:
        policies = found.get("items") or []
        labels = [each["metadata"].get("labels") or {} for each in pods]
        names = sorted({one for each in labels for one in selecting(policies, each, "Ingress")})
        out = selecting(policies, {key: value}, "Egress")
        said = [f"the NetworkPolicy {one} does not admit it" for one in names]
        said += [f"the NetworkPolicy {one} does not let it out" for one in out]
        what += f": {' or '.join(said)}" if said else "; no NetworkPolicy of the namespace selects them"
    return AttachError(what, where=f"Service {name}", hint=hint)

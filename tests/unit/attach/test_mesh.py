"""Service meshes, and controllers that keep a Service's selector."""

from __future__ import annotations

from typing import Any

import pytest

from devloop.agent.objects import unsupported
from devloop.attach.balancers import NEG, NEG_STATUS
from devloop.attach.draft import fitting
from devloop.attach.mesh import look, mesh_of, strict
from devloop.attach.seam import AttachError, Wanted
from devloop.remote.kubernetes.api import ApiError
from devloop.remote.kubernetes.install import OUTSIDE, pod_manifest
from devloop.remote.kubernetes.podstate import container_of

SERVICE: dict[str, Any] = {
    "metadata": {"name": "web"},
    "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080, "name": "http"}]},
}


def pod(*containers: str, **spec: Any) -> dict[str, Any]:
    meta = {"name": "web-1", "labels": {"app": "web"}}
    return {
        "metadata": meta,
        "spec": {"containers": [{"name": each} for each in containers], **spec},
        "status": {"phase": "Running"},
    }


def policy(name: str, mode: str, app: str = "", **ports: str) -> dict[str, Any]:
    spec: dict[str, Any] = {"mtls": {"mode": mode}}
    if app:
        spec["selector"] = {"matchLabels": {"app": app}}
    if ports:
        spec["portLevelMtls"] = {port.removeprefix("p"): {"mode": mode} for port, mode in ports.items()}
    return {"metadata": {"name": name}, "spec": spec}


@pytest.mark.parametrize(
    ("policies", "name"),
    [
        ([], ""),
        ([policy("all", "STRICT")], "all"),
        ([policy("all", "PERMISSIVE")], ""),
        ([policy("web", "PERMISSIVE", "web"), policy("all", "STRICT")], ""),
        ([policy("web", "STRICT", "web"), policy("all", "PERMISSIVE")], "web"),
        ([policy("db", "STRICT", "db")], ""),
        ([policy("all", "STRICT"), policy("web", "UNSET", "web")], "all"),
        ([policy("web", "STRICT", "web", p8080="DISABLE")], ""),
        ([policy("web", "PERMISSIVE", "web", p8080="STRICT")], "web"),
    ],
)
def test_which_policy_of_istios_lets_none_but_the_mesh_in(policies: list[dict[str, Any]], name: str) -> None:
    assert strict(policies, {"app": "web"}, [8080]) == name


class Api:
    namespace = "space"

    def __init__(self, pods: list[dict[str, Any]], policies: list[dict[str, Any]]) -> None:
        self._pods, self._policies = pods, policies

    async def get(self, path: str, **_: str) -> dict[str, Any]:
        return {"items": self._pods if path.endswith("/pods") else self._policies}


async def test_a_mesh_is_told_of_and_one_that_lets_nobody_in_refuses() -> None:
    api: Any = Api([pod("main")], [policy("all", "STRICT")])
    assert await look(api, SERVICE, [80]) == ""
    api = Api([pod("linkerd-proxy", "main")], [policy("all", "STRICT")])
    assert "Linkerd" in await look(api, SERVICE, [80])
    native = pod("main", initContainers=[{"name": "istio-proxy", "restartPolicy": "Always"}])
    assert mesh_of(native) == "Istio"
    assert "Istio" in await look(Api([native], []), SERVICE, [80])  # type: ignore[arg-type]
    with pytest.raises(AttachError, match="PeerAuthentication all"):
        await look(Api([native], [policy("all", "STRICT")]), SERVICE, [80])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("annotations", "why"),
    [
        ({}, ""),
        ({NEG: '{"ingress": true}'}, ""),  # GKE writes it into Services that no load balancer has
        ({NEG: '{"exposed_ports": {"80": {}}}'}, f"the annotation {NEG}"),
        ({NEG: '{"ingress": true}', NEG_STATUS: '{"network_endpoint_groups": {"80": "k8s1-x"}}'}, NEG_STATUS),
        ({NEG_STATUS: '{"network_endpoint_groups": {}}'}, ""),
        ({NEG_STATUS: "[" * 100_000}, ""),
        ({NEG: "[1]"}, ""),
        ({"service.beta.kubernetes.io/aws-load-balancer-nlb-target-type": "ip"}, "nlb-target-type: ip"),
        ({"service.beta.kubernetes.io/aws-load-balancer-nlb-target-type": "instance"}, ""),
        ({"service.beta.kubernetes.io/aws-load-balancer-type": "nlb-ip"}, "nlb-ip"),
    ],
    ids=range(10),
)
async def test_a_load_balancer_that_sends_to_pods_is_told_of(annotations: dict[str, str], why: str) -> None:
    found = {**SERVICE, "metadata": {"name": "web", "annotations": annotations}}
    said = await look(Api([pod("main")], []), found, [80])  # type: ignore[arg-type]
    assert bool(said) is bool(why) and why in said
    assert not said or "--way pods" in said


async def test_load_balancers_are_known_by_bindings_and_by_gates_of_pods() -> None:
    def binding(service: str, kind: str = "ip") -> dict[str, Any]:
        return {"metadata": {"name": "k8s-web"}, "spec": {"serviceRef": {"name": service}, "targetType": kind}}

    said = await look(Api([pod("main")], [binding("api"), binding("web")]), SERVICE, [80])  # type: ignore[arg-type]
    assert "the TargetGroupBinding k8s-web" in said
    others = [binding("api"), binding("web", "instance"), {"metadata": {"name": "odd"}}]
    assert await look(Api([pod("main")], others), SERVICE, [80]) == ""  # type: ignore[arg-type]
    gates = [{"conditionType": "own"}, {"conditionType": "target-health.elbv2.k8s.aws/k8s-web"}]
    said = await look(Api([pod("linkerd-proxy", readinessGates=gates)], []), SERVICE, [80])  # type: ignore[arg-type]
    assert "Linkerd" in said and "the readiness gate target-health" in said
    assert await look(Api([pod("main", readinessGates=gates[:1])], []), SERVICE, [80]) == ""  # type: ignore[arg-type]


async def test_bindings_that_may_not_be_read_are_none() -> None:
    class Refusing(Api):
        async def get(self, path: str, **query: str) -> dict[str, Any]:
            if path.endswith("/targetgroupbindings"):
                raise ApiError(403, "Forbidden", "no", where="x")
            return await super().get(path, **query)

    assert await look(Refusing([pod("main")], []), SERVICE, [80]) == ""  # type: ignore[arg-type]


def test_the_agent_stays_out_of_meshes_or_joins() -> None:
    def said(meta: dict[str, Any]) -> set[str]:
        return (meta["labels"].keys() | meta.get("annotations", {}).keys()) & set(OUTSIDE)

    assert said(pod_manifest()["metadata"]) == set(OUTSIDE)
    joined = pod_manifest(mesh=True, annotations={"a": "b"})["metadata"]
    assert not said(joined) and joined["annotations"]["a"] == "b"
    assert container_of(pod("istio-proxy", "agent"))["name"] == "agent"


@pytest.mark.parametrize(
    ("meta", "selector", "who"),
    [
        ({}, {"rollouts-pod-template-hash": "5f6d"}, "an Argo Rollout"),
        ({"annotations": {"argo-rollouts.argoproj.io/managed-by-rollouts": "shop"}}, {}, "the Argo Rollout shop"),
        (
            {"ownerReferences": [{"kind": "Canary", "apiVersion": "flagger.app/v1beta1", "name": "shop"}]},
            {},
            "Flagger's Canary shop",
        ),
    ],
)
def test_a_selector_that_a_controller_keeps_is_left_alone(
    meta: dict[str, Any], selector: dict[str, str], who: str
) -> None:
    service = {
        "metadata": {**SERVICE["metadata"], **meta},
        "spec": {**SERVICE["spec"], "selector": {"app": "web", **selector}},
    }
    why, by_pods = unsupported(service)
    assert who in why and by_pods
    with pytest.raises(AttachError) as told:
        fitting(service, Wanted("intercept", "web", {80: 1}))
    assert who in told.value.what and 'way = "pods"' in (told.value.hint or "")
    assert fitting(service, Wanted("intercept", "web", {80: 1}, way="pods"))[-1] == "pods"

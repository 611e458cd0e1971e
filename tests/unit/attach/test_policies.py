"""What NetworkPolicies say of a connection, as the API reference has it."""

from __future__ import annotations

from typing import Any

import pytest

from devloop.attach.policies import COMPARED, Peer, Policies, applies

NAME = "kubernetes.io/metadata.name"
API = Peer({"app": "api"}, ("10.0.0.1",), {"http": 8080})
WEB = Peer({"app": "web"}, ("10.0.0.2",))
AGENT = Peer({"devloop.dev/agent": "true"}, ("10.0.0.9",))
LISTENER = 20000
INGRESS = {"namespaceSelector": {"matchLabels": {NAME: "ingress"}}}


def policy(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"podSelector": {"matchLabels": {"app": "api"}}, **spec}}


def admits(*peers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return policy("only", ingress=[{"from": list(peers), **more}])


def pod(**labels: str) -> dict[str, Any]:
    return {"podSelector": {"matchLabels": labels}}


CLIENTS = admits(pod(app="web"))
DENY = policy("deny", podSelector={}, policyTypes=["Ingress"])
OUT = policy("out", podSelector={"matchLabels": {"app": "web"}}, egress=[{"to": [pod(app="api")]}])


@pytest.mark.parametrize(
    ("found", "direction", "does"),
    [
        (CLIENTS, "Ingress", True),
        (CLIENTS, "Egress", False),
        (policy("out", egress=[]), "Egress", False),
        (policy("out", egress=[{}]), "Egress", True),
        (policy("out", policyTypes=["Egress"]), "Ingress", False),
        (policy("all", podSelector={}), "Ingress", True),
        (policy("none", podSelector={"matchLabels": {"app": "other"}}), "Ingress", False),
    ],
)
def test_which_policies_apply_to_a_pod(found: dict[str, Any], direction: Any, does: bool) -> None:
    assert applies(found["spec"], {"app": "api"}, direction) is does


@pytest.mark.parametrize(
    ("policies", "source", "may"),
    [
        ([], WEB, True),
        ([CLIENTS], WEB, True),
        ([CLIENTS], AGENT, False),
        ([CLIENTS, policy("too", ingress=[{"from": [pod(**AGENT.labels)]}])], AGENT, True),
        ([DENY], WEB, False),
        ([policy("any", ingress=[{}])], AGENT, True),
        ([OUT], WEB, True),
        # Of this namespace by its name; of one by a label that can't be read; of another one.
        ([admits({"namespaceSelector": {"matchLabels": {NAME: "shop"}}})], AGENT, True),
        ([admits({"namespaceSelector": {}})], AGENT, True),
        ([admits({"namespaceSelector": {"matchLabels": {"team": "a"}}})], AGENT, None),
        ([admits({"namespaceSelector": {"matchLabels": {"team": "a"}}, **pod(app="web")})], AGENT, False),
        ([admits(INGRESS)], AGENT, False),
        # What a block says of a pod's address is the implementation's.
        ([admits({"ipBlock": {"cidr": "10.0.0.0/24"}})], AGENT, None),
        ([admits({"ipBlock": {"cidr": "10.0.0.0/24", "except": ["10.0.0.8/29"]}})], AGENT, False),
        ([admits({"ipBlock": {"cidr": "192.0.2.0/24"}})], AGENT, False),
        # Ports: the pod's own, by number, name or range; of TCP.
        ([admits(pod(app="web"), ports=[{"port": 8080}])], WEB, True),
        ([admits(pod(app="web"), ports=[{"port": "http"}])], WEB, True),
        ([admits(pod(app="web"), ports=[{"port": 8000, "endPort": 8090}])], WEB, True),
        ([admits(pod(app="web"), ports=[{"port": 8080, "protocol": "UDP"}])], WEB, False),
        ([admits(pod(app="web"), ports=[{"port": "grpc"}, {"port": 9090}])], WEB, False),
    ],
)
def test_who_may_connect_to_a_pod(policies: list[dict[str, Any]], source: Peer, may: bool | None) -> None:
    verdict = Policies(policies, "shop").connects(source, API, 8080)
    assert verdict.may is may and bool(verdict.out or verdict.into) is (may is not True)


@pytest.mark.parametrize(
    ("policies", "said"),
    [
        ([OUT], "the NetworkPolicy out does not let them out to it"),
        ([DENY], "the NetworkPolicy deny does not admit them"),
        # The agent's ports are not the original's, whatever they are called.
        ([policy("p", podSelector={}, egress=[{"ports": [{"port": "http"}]}])], "the NetworkPolicy p does not let"),
        ([policy("p", podSelector={}, egress=[{"ports": [{"port": 8080}]}])], "the NetworkPolicy p does not let"),
        ([policy("p", podSelector={}, ingress=[{"ports": [{"port": 8080}]}])], "the NetworkPolicy p does not admit"),
    ],
)
def test_what_keeps_a_client_from_the_agent_is_named(policies: list[dict[str, Any]], said: str) -> None:
    found = Policies(policies, "shop")
    assert said in str(found.connects(WEB, AGENT, LISTENER))
    assert found.connects(WEB, AGENT, LISTENER).may is False


def test_the_labels_of_the_namespace_count_where_they_are_known() -> None:
    policies = [admits({"namespaceSelector": {"matchLabels": {"team": "a"}}})]
    assert Policies(policies, "shop", {"team": "a"}).connects(AGENT, API, 8080).may is True
    assert Policies(policies, "shop", {"team": "b"}).connects(AGENT, API, 8080).may is False


FROM_SHOP = policy("shop", podSelector={}, ingress=[{"from": [{"podSelector": {}}]}])
WIDE, NARROW = ({"ipBlock": {"cidr": each}} for each in ("10.0.0.0/8", "10.1.0.0/16"))


@pytest.mark.parametrize(
    ("policies", "outsiders"),
    [
        ([], []),
        ([admits(INGRESS)], []),
        ([DENY, admits(INGRESS)], [INGRESS]),
        ([FROM_SHOP, admits(INGRESS)], [INGRESS]),
        ([FROM_SHOP, admits(pod(app="web"))], []),
        ([DENY, policy("any", ingress=[{}])], [{}]),
        ([DENY, admits(INGRESS), policy("agent", podSelector={}, ingress=[{"from": [INGRESS]}])], []),
        ([DENY, admits(INGRESS), policy("a", podSelector={}, ingress=[{"from": [{"namespaceSelector": {}}]}])], []),
        ([DENY, admits(NARROW), policy("agent", podSelector={}, ingress=[{"from": [WIDE]}])], []),
        ([DENY, admits(WIDE), policy("agent", podSelector={}, ingress=[{"from": [NARROW]}])], [WIDE]),
        ([policy("only-agent", podSelector={"matchLabels": dict(AGENT.labels)}, ingress=[])], [{}]),
    ],
)
def test_clients_of_other_namespaces_that_the_agent_would_not_admit(
    policies: list[dict[str, Any]], outsiders: list[dict[str, Any]]
) -> None:
    found = Policies(policies, "shop").outsiders(API, 8080, AGENT, LISTENER)
    assert [each for each in found if each in outsiders or not outsiders] == outsiders


@pytest.mark.slow
def test_policies_without_end_can_not_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    monkeypatch.setattr("devloop.attach.policies._within", lambda block, _: looked.append(block))
    blocks = [{"ipBlock": {"cidr": "192.0.2.0/24"}}] * 10_000
    found = Policies([policy(f"p{n}", ingress=[{"from": blocks}] * 4) for n in range(2)], "shop")
    verdicts = [found.connects(WEB, API, port).may for port in range(20)]
    assert verdicts[0] is False and verdicts[-1] is None
    assert COMPARED // 2 < len(looked) <= COMPARED
    assert found.outsiders(API, 8080, AGENT, LISTENER) == []

"""Traffic that is taken in the pods: which way, which pods, what a door is told, what Envoy is."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from devloop.agent import rules
from devloop.agent.envoy import files
from devloop.agent.gateways import ipv4, ipv6
from devloop.agent.member import Target
from devloop.agent.objects import Snapshot, holdings, lease, next_step
from devloop.agent.overlap import conflicts
from devloop.agent.plan import Local, PortPlan, ServicePlan
from devloop.agent.spec import ALL, Route, Spec, personal
from devloop.agent.view import RefusedError
from devloop.attach import pods
from devloop.attach.draft import fitting
from devloop.attach.seam import AttachError, Wanted
from devloop.remote.kubernetes.api import ApiError

from .fake_api import service
from .fake_pods import pod

HEADLESS = {"clusterIP": "None"}
DNS = {
    "ports": [
        {"name": "dns", "port": 53, "targetPort": "udp", "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "targetPort": 5353},
    ]
}


def spec(user: str = "ada", *routes: Route, **more: Any) -> Spec:
    return Spec(user, user, "h", "intercept", "now", "web", {80: 1}, routes or (ALL,), way="pods", **more)


# --- Which way ----------------------------------------------------------------------------------------------------


def test_the_pods_are_the_way_where_a_services_address_is_none() -> None:
    wanted = Wanted("intercept", "api", {"http": 1})
    asked = replace(wanted, way="pods")
    udp = {"ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}
    assert fitting(service(), wanted) == ({80: 1}, {}, "service")
    assert fitting(service(**HEADLESS), asked) == ({80: 1}, {}, "pods")
    assert fitting(service(**udp), asked) == ({80: 1}, {}, "pods")
    assert fitting(service(**HEADLESS), replace(asked, kind="wiretap")) == ({80: 1}, {}, "pods")
    assert fitting(service(), asked) == ({80: 1}, {}, "pods")
    # Nobody gets a container with NET_ADMIN into their pods who has not asked for it.
    for fields in (HEADLESS, udp):
        with pytest.raises(AttachError, match="can't be taken at its address") as problem:
            fitting(service(**fields), wanted)
        assert "--way pods" in str(problem.value.hint) and "NET_ADMIN" in str(problem.value.hint)


@pytest.mark.parametrize(
    ("fields", "wanted", "words"),
    [
        (HEADLESS, Wanted("replace", "api", {"http": 1}, workload="statefulset/api"), "headless.*has no pods"),
        ({"type": "ExternalName"}, Wanted("intercept", "api", {"http": 1}), "ExternalName"),
        ({"selector": {}, **HEADLESS}, Wanted("intercept", "api", {"http": 1}), "no selector"),
        ({"selector": {}}, Wanted("intercept", "api", {"http": 1}, way="pods"), "no selector"),
        (
            {"ports": [{"name": "sig", "port": 53, "protocol": "SCTP"}]},
            Wanted("intercept", "api", {"sig": 1}, way="pods"),
            "port sig is SCTP, and TCP and UDP alone",
        ),
        (DNS, Wanted("intercept", "api", {"dns": 1}), "at its address: it has ports of UDP"),
        (DNS, Wanted("replace", "api", {"dns": 1}, workload="deployment/api", way="pods"), "UDP.*has no pods"),
        (DNS, Wanted("intercept", "api", {"dns": 1}, (personal("ada"),), way="pods"), "port 53 is UDP: a datagram has"),
        (DNS, Wanted("intercept", "api", {"dns": 1}, (Route(share=10),), way="pods"), "port 53 is UDP: a datagram has"),
        (DNS, Wanted("wiretap", "api", {"dns": 1}, way="pods"), "UDP, which can't be copied"),
    ],
)
def test_what_no_way_leads_to_is_refused_with_the_reason(fields: Any, wanted: Wanted, words: str) -> None:
    with pytest.raises(AttachError, match=words):
        fitting(service(**fields), wanted)


@pytest.mark.parametrize(
    ("asked", "tcp", "udp"),
    [
        ({"dns": 1}, {}, {53: 1}),
        ({"dns-tcp": 1}, {53: 1}, {}),
        ({53: 1}, {53: 1}, {}),
        ({"53/udp": 1, "53/tcp": 2}, {53: 2}, {53: 1}),
    ],
)
def test_one_number_of_both_protocols(asked: Any, tcp: Any, udp: Any) -> None:
    assert fitting(service(**DNS), Wanted("intercept", "api", asked, way="pods")) == (tcp, udp, "pods")


def test_udp_ports_of_pods() -> None:
    one = pod("web-0", ports={})
    one["spec"]["containers"][0]["ports"] = [
        {"name": "udp", "containerPort": 9053, "protocol": "UDP"},
        {"name": "tcp", "containerPort": 9054},
    ]
    (found,) = pods.chosen(service("web", **HEADLESS, **DNS), [one], [53], "here", [53])
    assert (dict(found.ports), dict(found.datagrams)) == ({53: 5353}, {53: 9053})
    assert found.document()["udp"] == {"53": 9053}
    assert Target.read(found.document()).datagrams == {53: 9053}


def test_two_have_no_udp_port_of_one_service() -> None:
    def one(user: str, **more: Any) -> Spec:
        return Spec(user, user, "h", "intercept", "now", "web", way="pods", **more)

    assert Spec.read(one("ada", datagrams={53: 1}).document()).datagrams == {53: 1}
    assert "udp" not in one("ada", ports={53: 1}).document()
    assert conflicts(one("ada", datagrams={53: 1}), [one("ben", datagrams={53: 1})])
    assert not conflicts(one("ada", datagrams={53: 1}), [one("ben", ports={53: 1}), one("cyd", datagrams={54: 1})])


def test_a_document_from_before_there_were_two_ways_says_the_same_as_one_from_now() -> None:
    plain = Spec("ada", "ada", "h", "intercept", "now", "api", {80: 1})
    assert "way" not in plain.document()
    assert Spec.read(plain.document()) == plain
    assert Spec.read(spec().document()).way == "pods"


def test_its_lease_is_all_that_it_leaves_in_the_objects() -> None:
    held = lease(spec())
    headless = service("web", **HEADLESS)
    assert next_step(Snapshot((headless,), (held,)), ()) is None
    step = next_step(Snapshot((headless,), (held,)), {"devloop-ada"})
    assert step is not None and (step.verb, step.kind, step.name) == ("DELETE", "leases", "devloop-ada")
    assert [each.way for each, _ in holdings([held], datetime.now(UTC))] == ["pods"]


# --- The pods -----------------------------------------------------------------------------------------------------


def test_the_pods_that_run_with_the_ports_of_their_own() -> None:
    web = service("web", **HEADLESS, ports=[{"port": 80, "targetPort": "http"}, {"port": 81}])
    found = pods.chosen(
        web,
        [
            pod("web-0", ports={"http": 8080}),
            pod("web-1", ports={"http": 9090}),
            pod("web-2", ports={}),
            pod("web-3", phase="Pending"),
            pod("web-4", ending=True),
        ],
        [80, 81],
        "here",
    )
    assert [(each.name, dict(each.ports)) for each in found] == [
        ("web-0", {80: 8080, 81: 81}),
        ("web-1", {80: 9090, 81: 81}),
        ("web-2", {81: 81}),
    ]
    assert found[0].addresses == ("10.0.0.1",) and found[0].nodes == ("192.168.0.1",)
    assert Target.read(found[0].document()) == Target("uid-web-0", "web-0", ("10.0.0.1",), {80: 8080, 81: 81})


def test_a_pod_with_its_nodes_network_is_refused() -> None:
    with pytest.raises(AttachError, match=r"web-0 has the network of its node .*whole node"):
        pods.chosen(service("web", **HEADLESS), [pod("web-0", hostNetwork=True)], [80], "here")


def test_a_door_has_one_capability_and_nothing_to_write_to() -> None:
    found = pods.Pod("uid-1", "web-0", ("10.0.0.1",), ("192.168.0.1", "fd00::1"), {80: 8080})
    made = pods.container("abc123", "image:1", "10.0.0.9:19999", "secret", found)
    security = made["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
    assert "privileged" not in security and "volumeMounts" not in made
    env = {each["name"]: each["value"] for each in made["env"]}
    assert env["DEVLOOP_DOOR_PASS"] == "192.168.0.1,fd00::1"
    assert rules.checked(env["DEVLOOP_DOOR_TABLE"])


def test_only_this_agents_doors_are_counted_and_the_last_one_says_how_it_is() -> None:
    found = pods.Pod("uid-web-0", "web-0", ("10.0.0.1",), (), {80: 8080})
    one, two, old = (
        pods.container(suffix, "image:1", agent, "secret", found)
        for suffix, agent in (("a1", "10.0.0.9:19999"), ("a2", "10.0.0.9:19999"), ("a0", "10.0.0.8:19999"))
    )
    there = pod("web-0", doors=[old, one, two], states={"devloop-door-a1": {"terminated": {"exitCode": 137}}})
    assert pods.doors(there, "10.0.0.9:19999", "secret") == ["devloop-door-a1", "devloop-door-a2"]
    assert pods.doors(there, "10.0.0.9:19999", "other") == []
    assert pods.ended(there, "devloop-door-a1") == "Ended (137)"
    assert pods.ended(there, "devloop-door-a2") == pods.stuck(there, "devloop-door-a2") == ""
    waiting = pod("web-0", states={"devloop-door-a2": {"waiting": {"reason": "ErrImagePull", "message": "no such"}}})
    assert pods.stuck(waiting, "devloop-door-a2") == "ErrImagePull: no such"


def test_a_refusal_of_the_api_says_what_to_do() -> None:
    said = 'pods "web-0" is forbidden: violates PodSecurity "restricted:latest": must not include "NET_ADMIN"'
    security = pods.refused(ApiError(403, "Forbidden", said, where="x"), "web-0", "x", "it is headless")
    assert said in security.what and "it is headless" in security.what and "privileged" in str(security.hint)
    right = pods.refused(
        ApiError(403, "Forbidden", "cannot patch pods/ephemeralcontainers", where="x"), "web-0", "x", ""
    )
    assert "web-0" in right.what and "--role attach" in str(right.hint)
    assert pods.refused(ApiError(500, "", "boom", where="x"), "web-0", "x", "").hint is None


# --- What the kernel is told --------------------------------------------------------------------------------------


def test_rules_catch_what_comes_from_outside_and_lead_back_past_the_door() -> None:
    text = rules.rules("devloop_a1", {8080: 40001, 9090: 40002}, ["192.168.0.1", "fd00::1"], transparent=True)
    catch = [
        line.split(" catch ")[1] for line in text.splitlines() if line.startswith("add rule") and " catch " in line
    ]
    assert catch == [
        'iifname "lo" return',
        "ip saddr 192.168.0.1 return",
        "ip6 saddr fd00::1 return",
        "tcp dport 8080 tcp dport @live tproxy to :40001",
        "tcp dport 9090 tcp dport @live tproxy to :40002",
    ]
    back = [line.split(" back ")[1] for line in text.splitlines() if line.startswith("add rule") and " back " in line]
    assert back == [
        'iifname "lo" return',
        "tcp dport 40001 tcp dport @open redirect to :8080",
        "tcp dport 40002 tcp dport @open redirect to :9090",
    ]
    # What nobody says anew ends by itself.
    assert text.count("flags timeout; timeout 3s") == 3 and "udp dport" not in text


def test_rules_for_datagrams_track_nothing_and_give_answers_the_port_that_was_asked() -> None:
    text = rules.rules("devloop_a1", {}, ["192.168.0.1"], transparent=True, datagrams={9125: 40001})
    assert [line.removeprefix("add rule inet devloop_a1 ") for line in text.splitlines() if "add rule" in line] == [
        "say udp sport 40001 udp sport set 9125",
        'catch iifname "lo" return',
        "catch ip saddr 192.168.0.1 return",
        "catch udp dport 9125 udp dport @datagrams tproxy to :40001 accept",
        'back iifname "lo" return',
    ]
    assert "udp" not in rules.rules("devloop_a1", {}, [], transparent=False, datagrams={9125: 1})
    assert "add element inet devloop_a1 datagrams { 9125 }" in rules.alive("devloop_a1", [], [], [9125])


def test_without_tproxy_one_chain_does_both_and_the_agent_comes_first() -> None:
    text = rules.rules("devloop_a1", {8080: 40001}, ["192.168.0.1"], transparent=False)
    back = [line.split(" back ")[1] for line in text.splitlines() if line.startswith("add rule")]
    assert back == [
        'iifname "lo" return',
        "tcp dport 40001 tcp dport @open redirect to :8080",
        "ip saddr 192.168.0.1 return",
        "tcp dport 8080 tcp dport @live redirect to :40001",
    ]


def test_what_is_alive_is_said_in_one_transaction() -> None:
    assert rules.alive("devloop_a1", [9090, 8080], [40001]).splitlines() == [
        "flush set inet devloop_a1 live",
        "add element inet devloop_a1 live { 8080, 9090 }",
        "flush set inet devloop_a1 open",
        "add element inet devloop_a1 open { 40001 }",
        "flush set inet devloop_a1 datagrams",
    ]
    assert "add element" not in rules.alive("devloop_a1", [], [])


@pytest.mark.parametrize("table", ["devloop", "devloop_", "devloop_a; flush ruleset", "other_a"])
def test_nothing_but_numbers_and_addresses_gets_into_the_text(table: str) -> None:
    with pytest.raises(ValueError, match="table"):
        rules.gone(table)
    with pytest.raises(ValueError, match="port"):
        rules.rules("devloop_a", {0: 40001}, [], transparent=True)
    with pytest.raises(ValueError, match="address"):
        rules.rules("devloop_a", {}, ["10.0.0.1 accept"], transparent=True)


def test_the_gateways_of_a_pod() -> None:
    four = (
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t0100F40A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth0\t0000F40A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    )
    assert ipv4(four) == ["10.244.0.1"]
    zero = "0" * 32
    six = (
        f"{zero} 00 {zero} 00 fd000000000000000000000000000001 00000400 00000001 00000000 00000003     eth0\n"
        f"{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n"
    )
    assert ipv6(six) == ["fd00::1"]


# --- What Envoy is told -------------------------------------------------------------------------------------------


def made(*locals_: Local, protocol: Any = "http") -> dict[str, Any]:
    """Two pods of one Service."""
    plans = [
        ServicePlan("web", (PortPlan(80, 30000 + number, protocol, ((f"10.0.0.{number}", 40001),)),), locals_, pod=tag)
        for number, tag in ((1, "aaaa"), (2, "bbbb"))
    ]
    return {name: json.loads(text)["resources"] for name, text in files(plans, "/f").items()}


def endpoints(found: dict[str, Any], cluster: str) -> list[list[str]]:
    return [
        [
            each["endpoint"]["address"].get("pipe", {}).get("path")
            or "{address}:{port_value}".format(**each["endpoint"]["address"]["socket_address"])
            for each in level["lb_endpoints"]
        ]
        for level in found[f"eds/{cluster}.json"][0]["endpoints"]
    ]


def test_what_no_route_takes_is_answered_by_the_pod_that_was_asked() -> None:
    found = made(Local(spec("ada", personal("ada")), True))
    assert endpoints(found, "original-web-80@aaaa") == [["10.0.0.1:40001"]]
    assert endpoints(found, "original-web-80@bbbb") == [["10.0.0.2:40001"]]
    for tag in ("aaaa", "bbbb"):
        table = found[f"rds/web-80@{tag}-h1.json"][0]["virtual_hosts"][0]["routes"]
        assert [each["route"]["cluster"] for each in table] == [
            f"local-ada-80@{tag}",
            f"original-web-80@{tag}",
            f"original-web-80@{tag}",
        ]
        # A local service that refuses leaves the request to the same pod.
        level = endpoints(found, f"local-ada-80@{tag}")
        assert level == [[f"/f/ada-80@{tag}.sock"], endpoints(found, f"original-web-80@{tag}")[0]]
    names = [each["name"] for each in found["lds.json"]]
    assert names == ["web-80@aaaa", "web-80@bbbb"]
    # The log says the Service, as for any other.
    assert "r\\tweb\\t80\\t" in json.dumps(found["lds.json"])


def test_plain_connections_go_to_the_pod_that_was_asked() -> None:
    found = made(Local(spec(), True), protocol="tcp")
    assert endpoints(found, "tcp-web-80@bbbb") == [["/f/ada-80@bbbb.sock"], ["10.0.0.2:40001"]]
    assert endpoints(made(Local(spec(), False), protocol="tcp"), "tcp-web-80@aaaa") == [["10.0.0.1:40001"]]


def test_a_target_that_is_none_is_refused() -> None:
    with pytest.raises(RefusedError):
        Target.read({"uid": "1", "name": "web-0", "addresses": [], "ports": {"80": 0}})
    with pytest.raises(RefusedError):
        Target.read({"uid": "1"})

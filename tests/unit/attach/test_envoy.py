from __future__ import annotations

import json
import re
from typing import Any

import pytest

from devloop.agent.envoy import files, merged, version
from devloop.agent.plan import Local, PortPlan, ServicePlan
from devloop.agent.protocols import protocol_of
from devloop.agent.records import Request, answerer, read, service_of
from devloop.agent.spec import ALL, Header, Kind, Match, Route, Spec, personal
from devloop.agent.view import addresses, pairs

PODS = (("10.0.0.1", 8080), ("10.0.0.2", 8080))


def local(user: str, *routes: Route, kind: Kind = "intercept", up: bool = True, fail: Any = "open") -> Local:
    return Local(Spec(user, user, "h", kind, f"{len(user)}", "api", {80: 1}, routes or (ALL,), fail), up)


def made(*locals_: Local, protocol: Any = "http", pods: Any = PODS) -> dict[str, Any]:
    plan = ServicePlan("api", (PortPlan(80, 20000, protocol, pods),), locals_)
    return {name: json.loads(text)["resources"] for name, text in files([plan], "/f").items()}


def table(found: dict[str, Any], http: int = 1) -> list[tuple[str, str]]:
    """(route's name, its cluster or status) in order, without what doubles a route for its methods."""
    out: list[tuple[str, str]] = []
    for each in found[f"rds/api-80-h{http}.json"][0]["virtual_hosts"][0]["routes"]:
        entry = (each["name"], each["route"]["cluster"] if "route" in each else str(each["direct_response"]["status"]))
        if not out or out[-1] != entry:
            out.append(entry)
    return out


def routes(found: dict[str, Any], http: int = 1) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = found[f"rds/api-80-h{http}.json"][0]["virtual_hosts"][0]["routes"]
    return out


def endpoints(found: dict[str, Any], cluster: str) -> list[list[str]]:
    """The endpoints of a cluster, by priority."""
    return [
        [
            address.get("pipe", {}).get("path") or address["socket_address"]["address"]
            for address in (each["endpoint"]["address"] for each in level["lb_endpoints"])
        ]
        for level in found[f"eds/{cluster}.json"][0]["endpoints"]
    ]


@pytest.mark.parametrize("protocol", ["http", "tcp"])
def test_a_port_at_which_nothing_listens_is_the_originals_and_no_other(protocol: Any) -> None:
    spec = Spec("ada", "ada", "h", "intercept", "0", "api", {80: 1, 81: 2})
    ports = tuple(PortPlan(number, number + 20000, protocol, PODS) for number in (80, 81))

    def takers(deaf: frozenset[int]) -> list[int]:
        found = files([ServicePlan("api", ports, (Local(spec, True, deaf),))], "/f")
        name = "eds/tcp-api-{}.json" if protocol == "tcp" else "rds/api-{}-h1.json"
        sign = ".sock" if protocol == "tcp" else "local-ada"
        return [port for port in (80, 81) if sign in found[name.format(port)]]

    assert takers(frozenset()) == [80, 81]
    assert takers(frozenset({81})) == [80]


def test_whole_routes_come_before_shares_and_the_rest_goes_to_the_original() -> None:
    found = made(local("ada", Route(share=10)), local("ben", personal("ben")), local("cyd", Route(share=20)))
    assert table(found) == [
        ("ben", "local-ben-80"),
        ("ada", "local-ada-80"),
        ("cyd", "local-cyd-80"),
        ("original", "original-api-80"),
    ]
    shares = [each["match"].get("runtime_fraction", {}).get("default_value", {}) for each in routes(found)]
    # One draw decides: the second share reaches from 10 to 30 percent.
    assert [each.get("numerator") for each in shares] == [None, 100_000, 300_000, None, None]


def test_a_developer_who_is_not_there_has_no_route_and_shares_stay_in_their_places() -> None:
    found = made(local("ada", Route(share=10), up=False), local("ben", Route(share=20)))
    assert table(found) == [("original", "original-api-80"), ("ben", "local-ben-80"), ("original", "original-api-80")]
    assert routes(found)[0]["match"]["runtime_fraction"]["default_value"]["numerator"] == 100_000
    closed = made(local("ada", up=False, fail="closed"))
    assert table(closed)[0] == ("ada", "503")


def test_a_local_request_can_go_to_the_original_next_but_not_when_it_fails_closed_or_is_a_copy() -> None:
    pipe = ["/f/ada-80.sock"]
    assert endpoints(made(local("ada")), "local-ada-80") == [pipe, ["10.0.0.1", "10.0.0.2"]]
    assert endpoints(made(local("ada", fail="closed")), "local-ada-80") == [pipe]
    assert endpoints(made(local("ada", kind="wiretap")), "local-ada-80") == [pipe]
    assert endpoints(made(local("ada"), pods=()), "local-ada-80") == [pipe]


def test_what_may_be_tried_again() -> None:
    """HTTP/1: whatever ends without an answer. HTTP/2: that only for idempotent methods."""
    found = made(local("ada"))

    def policies(http: int, name: str) -> list[tuple[bool, set[str]]]:
        return [
            (
                any(each["name"] == ":method" for each in entry["match"].get("headers", [])),
                set(entry["route"]["retry_policy"]["retry_on"].split(",")),
            )
            for entry in routes(found, http)
            if entry["name"] == name
        ]

    assert policies(1, "ada") == [(False, {"reset", "connect-failure", "refused-stream"})]
    (some, repeatable), (rest, strict) = policies(2, "ada")
    assert some and not rest
    assert "reset" in repeatable and "reset" not in strict and "refused-stream" in strict
    assert "reset" not in policies(1, "original")[1][1]


def test_copies_go_beside_what_the_original_answers() -> None:
    tap = Route(path=Match("prefix", "/x"))
    found = made(local("ada", kind="wiretap"), local("ben", tap, kind="wiretap"), local("cyd", personal("cyd")))
    mirrors = [
        (each["name"], [copy["cluster"] for copy in each["route"].get("request_mirror_policies", [])])
        for each in routes(found)
    ]
    assert mirrors[0] == ("cyd", [])
    assert ("original", ["local-ada-80", "local-ben-80"]) in mirrors
    assert mirrors[-1] == ("original", ["local-ada-80"])
    assert all(name != "ada" for name, _ in mirrors)
    down = made(local("ada", kind="wiretap", up=False))
    assert "request_mirror_policies" not in routes(down)[-1]["route"]


def test_plain_connections() -> None:
    whole = made(local("ada"), protocol="tcp")
    assert endpoints(whole, "tcp-api-80") == [["/f/ada-80.sock"], ["10.0.0.1", "10.0.0.2"]]
    assert endpoints(made(local("ada", up=False), protocol="tcp"), "tcp-api-80") == [["10.0.0.1", "10.0.0.2"]]
    assert endpoints(made(local("ada", personal("ada")), protocol="detect"), "tcp-api-80") == [["10.0.0.1", "10.0.0.2"]]
    weights = made(local("ada", Route(share=10)), protocol="tcp")["eds/tcp-api-80.json"][0]["endpoints"][0]
    mine, *pods = (each["load_balancing_weight"] for each in weights["lb_endpoints"])
    assert mine / (mine + sum(pods)) == pytest.approx(0.1)


def test_listeners_do_not_change_when_developers_come_and_go() -> None:
    assert made(local("ada"))["lds.json"] == made()["lds.json"]
    chains = made(protocol="detect")["lds.json"][0]
    assert chains["default_filter_chain"]["filters"][0]["name"].endswith("tcp_proxy")
    assert "listener_filters" not in made(protocol="tcp")["lds.json"][0]


def test_the_same_gives_the_same_and_clusters_are_kept_until_routes_are_gone() -> None:
    plan = ServicePlan("api", (PortPlan(80, 20000, "http", PODS),), (local("ada"),))
    bare = ServicePlan("api", plan.ports)
    one, other = files([plan], "/f"), files([bare], "/f")
    assert one == files([plan], "/f")
    both = merged(one["cds.json"], other["cds.json"])
    names = [each["name"] for each in json.loads(both)["resources"]]
    assert names == ["local-ada-80", "original-api-80"]
    assert version(both) == version(merged(other["cds.json"], one["cds.json"])) != version(other["cds.json"])


def test_conditions_on_the_baggage_take_that_entry_and_no_other() -> None:
    pattern = routes(made(local("ada", personal("a.da"))))[0]["match"]["headers"][0]["string_match"]["safe_regex"]
    expression = re.compile(pattern["regex"])
    for text, taken in (
        ("devloop=a.da", True),
        ("x=1, devloop = a.da ;p=1,y=2", True),
        ("devloop=a.da,devloop=ben", True),
        ("devloop=axda", False),
        ("devloop=a.dam", False),
        ("mydevloop=a.da", False),
        ("x=devloop=a.da", False),
    ):
        assert bool(expression.fullmatch(text)) is taken, text


def test_all_conditions_of_a_route_are_asked_for() -> None:
    route = Route((Header("x", Match("regex", "a+")), Header("y", Match("prefix", "b"))), Match("exact", "/p"), "GET")
    match = routes(made(local("ada", route)))[0]["match"]
    assert match["path"] == "/p"
    assert [each["name"] for each in match["headers"]] == ["x", "y", ":method"]


@pytest.mark.parametrize(
    ("port", "protocol"),
    [
        ({"appProtocol": "http"}, "http"),
        ({"appProtocol": "kubernetes.io/h2c"}, "http2"),
        ({"appProtocol": "grpc"}, "http2"),
        ({"appProtocol": "kubernetes.io/ws"}, "http"),
        ({"appProtocol": "mysql", "name": "http"}, "tcp"),
        ({"name": "http-admin"}, "http"),
        ({"name": "grpc"}, "http2"),
        ({"name": "grpc-web"}, "http"),
        ({"name": "https"}, "https"),
        ({"name": "tls-db"}, "tls"),
        ({"appProtocol": "kubernetes.io/wss"}, "https"),
        ({"appProtocol": "HTTP2"}, "http2"),
        ({"appProtocol": "linkerd.io/opaque", "name": "http"}, "tcp"),
        ({"appProtocol": "grpc-web"}, "http"),
        ({"appProtocol": "mongo"}, "tcp"),
        ({"appProtocol": "https"}, "https"),
        ({"appProtocol": "acme.example/frames", "name": "http"}, "detect"),
        ({"name": "grpc-web-shop"}, "http"),
        ({"name": "mongo-x"}, "tcp"),
        ({"name": "httpish"}, "detect"),
        ({}, "detect"),
    ],
)
def test_what_a_port_speaks(port: dict[str, str], protocol: str) -> None:
    assert protocol_of(port) == protocol


def test_ports_that_linkerd_does_not_look_into() -> None:
    annotations = {"config.linkerd.io/opaque-ports": "3306, 8000-8080,mail"}
    ports: list[dict[str, Any]] = [{"port": 3306}, {"port": 8080, "appProtocol": "http"}, {"port": 1, "name": "mail"}]
    assert [protocol_of(each, annotations) for each in ports] == ["tcp"] * 3
    assert protocol_of({"port": 8081, "name": "http"}, annotations) == "http"


def test_the_log_has_no_query() -> None:
    text = json.dumps(made()["lds.json"])
    assert "%PATH(NQ:PATH)%" in text
    assert ":PATH)%" not in text.replace("%PATH(NQ:PATH)%", "")


REST = "-\t1500\t2\t1700000000.250\tHTTP/1.1\tGET\t/a\tb"


def test_a_line_of_the_log() -> None:
    line = f"r\tapi\t80\t/f/ada-x-80@ab12.sock\t-\tvia_upstream\t200\tada-x\t{REST}"
    assert service_of(line) == "api" and answerer(line) == "/ada-x"
    found = Request("api", 80, "GET", "/a\tb", 200, 1.5, "local", "ada-x", 1700000000.25, "HTTP/1.1", "", "ada-x")
    assert read(line) == found
    assert read("[info] Envoy says something") is None and service_of("[info]") is None


@pytest.mark.parametrize(
    ("who", "answered"),
    [
        # As Envoy 1.40 has said it: tests/integration/remote/test_access_log.py.
        ("10.0.0.1:8080\t-\tvia_upstream\t503\toriginal", "original"),
        ("10.0.0.1:8080\tURX\tvia_upstream\t200\tada", "original"),
        ("-\tUH\tno_healthy_upstream\t503\toriginal", "nobody"),
        ("10.0.0.1:8080\tUF,URX\tupstream_reset_before_response_started{connection_failure}\t503\toriginal", "nobody"),
        ("10.0.0.1:8080\tUC\tupstream_reset_after_response_started{connection_termination}\t200\toriginal", "nobody"),
        ("10.0.0.1:8080\tDC\tdownstream_remote_disconnect\t200\toriginal", "original"),
        ("10.0.0.1:8080\tDC\tdownstream_remote_disconnect\t0\toriginal", "nobody"),
        ("-\t-\tdirect_response\t503\tada", "nobody"),
        ("/f/ben-80.sock\t-\tvia_upstream\t200\tben", "/ben"),
        ("10.0.0.1:8080\t-\t-\t0\t-", "original"),
        ("10.0.0.1:8080\tUF,URX\t-\t0\t-", "nobody"),
    ],
)
def test_who_has_answered(who: str, answered: str) -> None:
    line = f"r\tapi\t80\t{who}\t{REST}"
    assert answerer(line) == answered
    found = read(line)
    assert found is not None
    assert (f"/{found.by}" if found.by else found.answered) == answered


def test_which_pods_answer() -> None:
    def slice_(*pods: tuple[str, dict[str, bool]], name: str = "http") -> dict[str, Any]:
        return {
            "ports": [{"name": name, "port": 8080}],
            "endpoints": [{"addresses": [address], "conditions": conditions} for address, conditions in pods],
        }

    ending = ("10.0.0.3", {"ready": False, "serving": True, "terminating": True})
    ready, broken = ("10.0.0.2", {"ready": True}), ("10.0.0.4", {"ready": False, "serving": False})
    assert addresses([slice_(ready, ending, broken), slice_(("10.0.0.1", {}))], "http") == [
        ("10.0.0.1", 8080),
        ("10.0.0.2", 8080),
    ]
    assert addresses([slice_(ending, broken)], "http") == [("10.0.0.3", 8080)]
    assert addresses([slice_(ready)], "other") == []


def family(kind: str, *pods: tuple[str, str]) -> dict[str, Any]:
    endpoints = [{"addresses": [address], "targetRef": {"kind": "Pod", "uid": uid}} for uid, address in pods]
    return {"addressType": kind, "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints}


@pytest.mark.parametrize(("first", "second"), [("IPv4", "IPv6"), ("IPv6", "IPv4")])
def test_a_pod_of_two_families_is_one_endpoint_with_two_addresses(first: str, second: str) -> None:
    four, six = family("IPv4", ("a", "10.0.0.1"), ("b", "10.0.0.2")), family("IPv6", ("a", "fd00::1"), ("b", "fd00::2"))
    by_kind = {"IPv4": four, "IPv6": six}
    ours, others = ([each["addresses"][0] for each in by_kind[kind]["endpoints"]] for kind in (first, second))
    assert addresses([six, four], "http", first) == [(each, 8080) for each in ours]
    also = pairs([six, four], first)
    assert also == dict(zip(ours, others, strict=True))
    # One that has a single address is an endpoint whichever it is.
    alone = family("IPv6", ("c", "fd00::3"))
    assert set(addresses([six, four, alone], "http", "IPv4")) == {
        ("10.0.0.1", 8080), ("10.0.0.2", 8080), ("fd00::3", 8080),
    }  # fmt: skip

    plan = ServicePlan("api", (PortPlan(80, 20000, "http", tuple((each, 8080) for each in ours), also),), ())
    found = {name: json.loads(text)["resources"] for name, text in files([plan], "/f").items()}
    assert endpoints(found, "original-api-80") == [ours]
    (level,) = found["eds/original-api-80.json"][0]["endpoints"]
    given = [each["endpoint"]["additional_addresses"][0]["address"]["socket_address"] for each in level["lb_endpoints"]]
    assert given == [{"address": each, "port_value": 8080} for each in others]
    # Without a second family there is nothing of it.
    assert "additional_addresses" not in json.dumps(made())

"""resolv.conf of a pod, from another's."""

from __future__ import annotations

from typing import Any

import pytest

from devloop.remote.link import Resolver
from devloop.remote.workload.dns_config import of_pod

CLUSTER = "search tools.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\n"
FOUND = Resolver.parse(CLUSTER + "options ndots:5\n")
SEARCH = ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example")


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({}, Resolver(("10.96.0.10",), SEARCH, 5, ("ndots:5",))),
        ({"dnsPolicy": "ClusterFirst", "dnsConfig": {}}, Resolver(("10.96.0.10",), SEARCH, 5, ("ndots:5",))),
        (
            {
                "dnsConfig": {
                    "nameservers": ["192.0.2.1", "10.96.0.10"],
                    "searches": ["one.example", "corp.example"],
                    "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
                }
            },
            Resolver(("10.96.0.10", "192.0.2.1"), (*SEARCH, "one.example"), 2, ("ndots:2", "edns0")),
        ),
        (
            {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.1"], "searches": ["one.example"]}},
            Resolver(("192.0.2.1",), ("one.example",), 1, ()),
        ),
    ],
)
def test_as_the_kubelet_makes_it(spec: dict[str, Any], wanted: Resolver) -> None:
    assert of_pod(FOUND, {"spec": spec}, "shop") == wanted


def test_a_host_has_no_namespaces() -> None:
    host = Resolver(("192.0.2.1",), ("corp.example",))
    assert of_pod(host, {"spec": {}}, "shop") == host

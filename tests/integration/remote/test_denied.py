"""A developer whose key an agent knows asks it for its node's credentials, in every way that there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests import needs

pytestmark = pytest.mark.slow
SECONDS = 60
CREDENTIALS = "credentials"


def inside(allowed: str = "") -> dict[str, str]:
    for each in ("unshare", "ip", "mount"):
        needs.program(each)
    new = ["unshare", "--net", "--mount", *(() if os.geteuid() == 0 else ("--user", "--map-root-user"))]
    tried = subprocess.run((*new, "true"), capture_output=True, text=True, check=False)
    if tried.returncode:
        needs.missing(f"no network namespace can be made here: {tried.stderr.strip()}")
    command = (*new, sys.executable, "-m", "tests.integration.remote.denied_inside", allowed)
    ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def test_an_agent_gives_nobody_what_is_its_nodes_and_still_asks_its_own_resolver() -> None:
    found = inside()
    given = {asked for asked, answer in found.items() if answer == CREDENTIALS}
    # The application's own, by address, by name and mapped; and NodeLocal DNSCache, at its port alone.
    names = ("10.96.0.1", "api.example.com", "::ffff:10.96.0.1", "fd00:96::1")
    assert given == {
        *(f"tcp {each}:80" for each in names),
        "udp 10.96.0.1:80",
        *("tcp 169.254.20.10:53", "udp 169.254.20.10:53"),
    }
    refused = {asked: answer for asked, answer in found.items() if asked not in given}
    by_channel = {asked: answer for asked, answer in refused.items() if asked.startswith("tcp")}
    assert all(answer.startswith("prohibited: ") for answer in by_channel.values()), by_channel
    assert all("is not connected to: it is " in answer for answer in refused.values()), refused


def test_an_administrator_allows_one_of_them() -> None:
    found = inside("169.254.169.254")
    for asked in ("169.254.169.254", "metadata.example.com", "2852039166", "::ffff:169.254.169.254"):
        assert found[f"tcp {asked}:80"] == CREDENTIALS
    assert found["udp 169.254.169.254:80"] == CREDENTIALS
    assert "is not connected to" in found["tcp 100.100.100.200:80"]

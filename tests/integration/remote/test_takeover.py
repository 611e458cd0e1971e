"""Connections are taken over while they are in use, by what a container with NET_ADMIN may do, and no end notices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests import needs

pytestmark = pytest.mark.slow
SECONDS = 120


def inside(kind: str, version: str) -> dict[str, Any]:
    for each in ("unshare", "nsenter", "ip", "nft"):
        needs.program(each)
    new = ("unshare", "--net") if os.geteuid() == 0 else ("unshare", "--user", "--map-root-user", "--net")
    tried = subprocess.run((*new, "nft", "list", "tables"), capture_output=True, text=True, check=False)
    if tried.returncode:
        needs.missing(f"no network namespace can be made here: {tried.stderr.strip()}")
    command = (*new, sys.executable, "-m", "tests.integration.remote.takeover_inside", kind, version)
    ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert (found.pop("tables"), found.pop("rules")) == ("", 0), "nothing is left in the pod's network"
    return dict(found)


@pytest.mark.parametrize("version", ["4", "6"])
def test_no_byte_of_what_is_under_way_is_lost(version: str) -> None:
    assert inside("bulk", version) == {"taken": 1, "bytes": 48 << 20, "same": True}


@pytest.mark.parametrize("version", ["4", "6"])
def test_a_busy_channel_moves_no_call_fails_and_a_stream_goes_on(version: str) -> None:
    pytest.importorskip("grpc")
    found = inside("grpc", version)
    assert found["moved"] >= 1  # they come back to the same server here, and are moved again
    assert found["why"] == ""
    assert found["failed"] == []
    assert found["streamed"] == [found["first"]]
    assert found["last"] != found["first"]


def test_http_1_moves_with_an_answer() -> None:
    found = inside("http", "4")
    assert (found["why"], found["connections"]) == ("", 2)

"""Up, down and up again, with nothing left on the machine: on a second cluster beside the suite's own.

`make test-cluster` runs this file alone: it looks at the whole machine, where a second worker has a cluster as well.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Target, unavailable
from .kube import footprint
from .kube.cluster import Cluster
from .kube.components import Components
from .kube.errors import ClusterError
from .kube.settings import Settings

UP_SECONDS = 120
"""It takes 12 s on two cores (docs/cluster-tests.md). This is no measurement: another cluster, and what tests before
this one have left to it to clear away, run on the same cores."""


@pytest.fixture
def second(cluster: Target, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster of another name and other addresses, down; at the end it is down again."""
    cluster.need_own("Starting and stopping a cluster")
    made = Cluster(Settings(f"test{os.getpid() % 1000}", 1))
    made.build()  # not part of what is timed
    yield made
    made.down()


def machine() -> footprint.Footprint:
    """The machine as it is now, without the suite's own cluster."""
    return footprint.take(apart=Cluster(Settings.of_environment()).sandbox.pid)


def left(before: footprint.Footprint, name: str) -> dict[str, list[str]]:
    """What is left, without the control groups and files of others, which may come and go meanwhile."""
    own = Settings.of_environment().cgroup
    found = machine().left_by(before)
    for kind in ("groups", "files"):
        named = [each for each in found.get(kind, []) if name in each or "k8s.io" in each or "cni" in each]
        found[kind] = [each for each in named if f"/{own}" not in each]
    return {kind: what for kind, what in found.items() if what}


def test_two_runs_in_a_row_leave_nothing_behind(second: Cluster) -> None:
    name = second.settings.name
    before = machine()
    for _ in range(2):
        started = time.monotonic()
        second.up()
        assert time.monotonic() - started < UP_SECONDS
        assert second.healthy()
        # It is there to see, so that its absence afterwards says something.
        seen = left(before, name)
        assert {"devices", "addresses", "groups", "process_namespaces", "programs"} <= seen.keys()
        # And it keeps within its namespaces even while it runs.
        assert not {"mounts", "rules", "files"} & seen.keys()
        pid = second.sandbox.pid
        second.up()
        assert second.sandbox.pid == pid, "a second `up` has started it anew"
        second.down()
        assert left(before, name) == {}
        assert not second.settings.state.exists()
    second.down()  # once more does no harm


def test_a_crashed_cluster_is_cleared_away_by_the_next_start(second: Cluster) -> None:
    before = machine()
    second.up()
    pid = second.sandbox.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    second.up()
    assert second.healthy()
    second.down()
    assert left(before, second.settings.name) == {}


def test_a_start_that_fails_half_way_cleans_up_and_says_why(second: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine()
    monkeypatch.setattr(Components, "etcd", lambda _: ["sh", "-c", "echo no disk here; exit 1"])
    monkeypatch.setattr(f"{Cluster.__module__}.READY_SECONDS", 2)
    with pytest.raises(ClusterError, match="The API server is not ready") as failed:
        second.up()
    assert left(before, second.settings.name) == {}
    logs = second.failed_logs
    assert str(logs) in str(failed.value)
    assert (logs / "etcd.log").read_text() == "no disk here\n"


def test_the_sysctls_that_the_kubelet_sets_are_put_back(second: Cluster) -> None:
    panic = Path("/proc/sys/kernel/panic")
    was = panic.read_text()
    try:
        panic.write_text("3")
    except OSError as problem:
        unavailable(f"kernel.panic can't be set here: {problem}")
    try:
        second.up()
        assert panic.read_text().strip() == "10"
        second.down()
        assert panic.read_text().strip() == "3"
    finally:
        panic.write_text(was)


def test_the_machines_own_network_is_left_alone(cluster: Target) -> None:
    own = cluster.need_own("The node's namespaces")
    rules = subprocess.run(own.sandbox.inside("nft", "list", "tables"), capture_output=True, text=True, check=True)
    assert "kube-proxy" in rules.stdout  # there, and not here:
    assert (
        "kube-proxy" not in subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    )
    assert not Path("/run/netns").exists() or not list(Path("/run/netns").glob("cni-*"))
    assert not Path("/sys/class/net/cni0").exists()

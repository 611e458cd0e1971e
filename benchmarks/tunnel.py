"""devloop's whole path beside `kubectl port-forward` and OpenSSH's `ssh -L`, at the cluster of the tests.

devloop: a process in its namespace → the engine's proxy → the link to the agent → a pod. The link goes straight to the
agent's pod, for this machine has a route to the pods meanwhile; and by the API server alone, as without one. kubectl:
to the same pod. ssh: to an sshd on the node, which has the pods' network; it needs neither the API server nor the
kubelet on its way, and beside it is devloop by its link of kind `ssh` to the same sshd. The ways take turns; figures
are medians of their rounds.

It needs root and the cluster of docs/cluster-tests.md, up (DEVLOOP_TEST_CLUSTER says which).
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.figures import Result, Table, percentile
from benchmarks.tunnel_engine import ADDRESS
from benchmarks.tunnel_programs import CLIENT, SERVER, SERVER_PORT
from tests.cluster import kit
from tests.cluster.kube import access, binaries
from tests.cluster.kube.link import Link
from tests.cluster.kube.routes import to_pods
from tests.cluster.kube.sandbox import Sandbox
from tests.cluster.kube.settings import Settings
from tests.ports import free_port

NAMESPACE = f"bench-{secrets.token_hex(4)}"
PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
MB = 1e6
MANY = 1000
SETTLE_SECONDS = 1.5
"""Between two measurements: kubectl goes on for more than a second with what was on its way when a download ended."""
TURNS = 4
"""So often round trips are measured in each round, shortly one way after the other: the machine is now quicker and now
slower, for seconds at a time."""
DELAY = 0.025
"""Seconds each way, for the second half."""


class Way:
    """One way to the pod."""

    name: str

    def run(self, *arguments: str) -> str:
        """Run the client; its output. Raises OSError."""
        raise NotImplementedError

    def address(self) -> tuple[str, str]:
        """Where the client connects to."""
        raise NotImplementedError

    def measure(self, what: str, amount: float) -> Any:
        return json.loads(self.run(what, *self.address(), str(amount)))


class Devloop(Way):
    """Through an engine: `way` is agent, direct or ssh."""

    def __init__(self, way: str, remote: Path, folder: Path, pod: str) -> None:
        self.name = f"devloop ({way})"
        self.names = way != "ssh"
        """It has the cluster's DNS."""
        arguments = [str(remote), str(folder / f"{way}_key"), pod, way]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.tunnel_engine", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit(f"{self.name}: the link was not made")

    def address(self) -> tuple[str, str]:
        return ADDRESS, str(SERVER_PORT)

    def run(self, *arguments: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        code, out, err = json.loads(self.process.stdout.readline())
        if code:
            raise OSError(err)
        return str(out)

    def close(self) -> None:
        self.process.communicate()


class Forwarder(Way):
    """A program that listens here and leads to the pod."""

    def __init__(self, name: str, command: list[str], port: int) -> None:
        self.name = name
        self.port = port
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(port, self.process)

    def address(self) -> tuple[str, str]:
        return "127.0.0.1", str(self.port)

    def run(self, *arguments: str) -> str:
        done = subprocess.run([PYTHON, "-I", "-S", "-c", CLIENT, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr)
        return done.stdout

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def wait_for(port: int, process: subprocess.Popen[Any], host: str = "127.0.0.1") -> None:
    end = time.monotonic() + 20
    while True:
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"{process.args!r} does not listen on {host}:{port}")
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
            return
        time.sleep(0.05)


@contextmanager
def a_pod(settings: Settings, folder: Path) -> Iterator[tuple[str, Path]]:
    """The server's pod, in a namespace of its own: (its address, a developer's kubeconfig)."""

    async def make() -> tuple[str, Path]:
        async with kit.connect(settings.admin) as api:
            core = kit.client.CoreV1Api(api)
            await core.create_namespace(kit.client.V1Namespace(metadata=kit.client.V1ObjectMeta(name=NAMESPACE)))
            await access.grant(api, NAMESPACE, [access.subject("bench", NAMESPACE, token=False)])
            await kit.until(
                core.list_namespaced_service_account,
                NAMESPACE,
                ready=lambda _: True,
                field_selector="metadata.name=default",
            )
            # As much as the agent asks for: on a busy node, one without a request gets nothing beside it.
            share = kit.client.V1LimitRangeItem(type="Container", default_request={"cpu": "100m"})
            limits = kit.client.V1LimitRange(
                metadata=kit.client.V1ObjectMeta(name="share"), spec=kit.client.V1LimitRangeSpec(limits=[share])
            )
            await core.create_namespaced_limit_range(NAMESPACE, limits)
            pod = await kit.run_pod(api, NAMESPACE, "server", ("python3", "-u", "-c", SERVER))
            file = folder / "bench.conf"
            file.write_text(json.dumps(access.by_certificate(settings, "bench", NAMESPACE)))
            return str(pod.status.pod_ip), file

    async def remove() -> None:
        async with kit.connect(settings.admin) as api:
            core = kit.client.CoreV1Api(api)
            await core.delete_collection_namespaced_pod(NAMESPACE, grace_period_seconds=0)
            await core.delete_namespace(NAMESPACE)

    try:
        yield asyncio.run(make())
    finally:
        asyncio.run(remove())


@contextmanager
def an_sshd(settings: Settings, folder: Path) -> Iterator[int]:
    """OpenSSH's server in the node's network; its port."""
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise SystemExit("there is no sshd: install openssh-server")
    node = Sandbox(settings).pid
    for name in ("host", "id"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "id.pub", folder / "authorized_keys")
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    port = 2022
    (folder / "sshd_config").write_text(
        f"Port {port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\nPidFile none\nUsePAM no\n"
        "StrictModes no\nPermitRootLogin prohibit-password\nMaxSessions 2000\nLogLevel ERROR\n"
    )
    process = subprocess.Popen(["nsenter", "-t", str(node), "-n", program, "-D", "-e", "-f", folder / "sshd_config"])
    try:
        wait_for(port, process, settings.node_ip)
        yield port
    finally:
        process.terminate()
        process.wait()


@contextmanager
def ways(settings: Settings, folder: Path, pod: str, kubeconfig: Path, node: str, sshd: int) -> Iterator[list[Way]]:
    kubectl = settings.state / "etc" / "programs" / "kubectl"
    ports = free_port(), free_port()
    known = folder / f"known_{node}"
    known.write_text(f"[{node}]:{sshd} {(folder / 'host.pub').read_text()}")
    config = folder / f"{node}.ssh"
    config.write_text(
        f"Host node\n  HostName {node}\n  Port {sshd}\n  User {getpass.getuser()}\n  IdentityFile {folder / 'id'}\n"
        f"  UserKnownHostsFile {known}\n"
    )
    forward = ["port-forward", "-n", NAMESPACE, "pod/server", f"{ports[0]}:{SERVER_PORT}"]
    ssh = ["ssh", "-F", "none", "-N", "-p", str(sshd), "-i", str(folder / "id"), "-o", f"UserKnownHostsFile={known}"]
    with ExitStack() as stack:
        made: list[Any] = []
        for make in (
            lambda: Devloop("direct", kubeconfig, folder, pod),
            lambda: Devloop("agent", kubeconfig, folder, pod),
            lambda: Devloop("ssh", config, folder, pod),
            lambda: Forwarder("kubectl", [str(kubectl), "--kubeconfig", str(kubeconfig), *forward], ports[0]),
            lambda: Forwarder(
                "ssh -L", [*ssh, "-L", f"{ports[1]}:{pod}:{SERVER_PORT}", f"{getpass.getuser()}@{node}"], ports[1]
            ),
        ):
            made.append(make())
            stack.callback(made[-1].close)
        yield made


def rounds(
    found: list[Way], count: int, seconds: float, upload: float, many: int, settle: float
) -> dict[str, dict[str, Any]]:
    """Each way's raw values: the ways take turns within each round, `settle` seconds apart."""
    raw: dict[str, dict[str, Any]] = {
        way.name: {"trips": [], "beside": [], "down": [], "up": [], "rate": [], "failed": 0, "many": None}
        for way in found
    }
    for _ in range(count):
        for what in (*["trips"] * TURNS, "down", "up", "connections", "beside"):
            for way in found:
                values = raw[way.name]
                # Round trips leave nothing behind that has to run dry.
                time.sleep(settle if way is found[0] or what != "trips" else 0)
                amount = upload if what == "up" else seconds / TURNS if what == "trips" else seconds
                got = way.measure(what, amount)
                if what == "connections":
                    values["rate"].append(got["rate"])
                    values["failed"] += got["failed"]
                else:
                    values[what].append(got)
    for way in found:
        raw[way.name]["many"] = way.measure("many", many)
    return raw


def names(way: Way, seconds: float) -> dict[str, list[float]]:
    """Answers of a service's DNS server, in seconds: of a name that is kept, and of one that was never asked for."""
    known = f"server.{NAMESPACE}.svc.cluster.local"
    return {
        "cached": json.loads(way.run("names", known, "0", str(seconds))),
        "uncached": json.loads(way.run("names", f"%d.{NAMESPACE}.svc.cluster.local", "0", str(seconds))),
    }


def p(values: dict[str, Any], at: float, what: str = "trips") -> float:
    """A percentile of the round trips: the median of what it was each time, in ms."""
    return statistics.median(percentile(each, at) for each in values[what]) * 1e3


FIGURES: dict[str, tuple[Callable[[dict[str, Any]], float], str]] = {
    "down, MB/s": (lambda v: statistics.median(v["down"]) / MB, ".0f"),
    "up, MB/s": (lambda v: statistics.median(v["up"]) / MB, ".0f"),
    "trip p50, ms": (lambda v: p(v, 50), ".2f"),
    "trip p99, ms": (lambda v: p(v, 99), ".2f"),
    "trip p50 beside a download, ms": (lambda v: p(v, 50, "beside"), ".2f"),
    "connections/s": (lambda v: statistics.median(v["rate"]), ".0f"),
}


def table(title: str, raw: dict[str, dict[str, Any]], many: int) -> Table:
    made = Table(title, ["", *FIGURES, f"{many} open at once"])
    peer = raw["kubectl"]
    for name, values in raw.items():
        row = [name]
        for figure, form in FIGURES.values():
            own, other = figure(values), figure(peer)
            row.append(f"{own:{form}}" + ("" if values is peer else f" ({own / other:.2f} x)"))
        made.rows.append([*row, f"{values['many']['good']} in {values['many']['seconds']:.1f} s"])
    made.notes.append("in brackets: beside kubectl; connections: eight clients at a time, a byte there and back")
    if failed := {name: values["failed"] for name, values in raw.items() if values["failed"]}:
        made.notes.append(f"connections that failed: {failed}")
    return made


def run(*, quick: bool, far: bool = True) -> Result:
    """Measure; without `far`, at the wire as it is alone."""
    settings = Settings.of_environment()
    if Sandbox(settings).pid is None:
        raise SystemExit(f"the cluster {settings.name} is not up: `make cluster`, or set DEVLOOP_TEST_CLUSTER")
    count, seconds = (1, 0.5) if quick else (5, 1.5)
    many = 100 if quick else MANY
    settle = 0 if quick else SETTLE_SECONDS
    tables: list[Table] = []
    raw: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="devloop-tunnel-")))
        pod, kubeconfig = stack.enter_context(a_pod(settings, folder))
        sshd = stack.enter_context(an_sshd(settings, folder))
        with (
            to_pods(*settings.node_ips),
            ways(settings, folder, pod, kubeconfig, settings.node_ip, sshd) as found,
        ):
            raw["near"] = rounds(found, count, seconds, 40e6 if quick else 99e6, many, settle)
            raw["names"] = {way.name: names(way, seconds) for way in found if isinstance(way, Devloop) and way.names}
        tables.append(table("Tunnel, near", raw["near"], many))
        dns = Table("DNS through the whole path", ["", "kept, p50 ms", "not kept, p50 ms"])
        for name, kinds in raw["names"].items():
            dns.rows.append([name, *(f"{statistics.median(values) * 1e3:.2f}" for values in kinds.values())])
        tables.append(dns)
        if not far:
            return Result("tunnel", tables, raw)
        wire = Link(settings, binaries.build())
        wire.start()
        stack.callback(wire.close)
        over = folder / "far.conf"
        over.write_text(json.dumps(access.with_server(json.loads(kubeconfig.read_text()), wire.server)))
        wire.set(delay=DELAY)
        with to_pods(settings.link_ips[1]), ways(settings, folder, pod, over, settings.link_ips[1], sshd) as found:
            raw["far"] = rounds(found, 1 if quick else 2, 2 * seconds, 5e6 if quick else 30e6, many, settle)
            raw["far names"] = {
                way.name: names(way, seconds) for way in found if isinstance(way, Devloop) and way.names
            }
        tables.append(table(f"Tunnel, with {DELAY * 2e3:.0f} ms of round trip", raw["far"], many))
        for name, kinds in raw["far names"].items():
            trips = ", ".join(f"{kind} {statistics.median(each) * 1e3:.1f} ms" for kind, each in kinds.items())
            tables[-1].notes.append(f"DNS, {name}: {trips}")
    return Result("tunnel", tables, raw)


if __name__ == "__main__":
    for each in run(quick="--quick" in sys.argv, far="--near" not in sys.argv).tables:
        print(each.markdown())

"""What a cluster could leave on a machine, listed: to record before and to compare after."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from dataclasses import dataclass, fields
from pathlib import Path

from .cgroups import TOP
from .sandbox import SYSCTLS, TUNABLES

# Settings of this machine's own network namespace that an installer of Kubernetes changes.
FORWARDING = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/bridge/bridge-nf-call-iptables")
# Where Kubernetes, containerd and CNI keep files by default.
PLACES = (
    *("/run", "/run/netns", "/run/containerd", "/var/lib", "/var/lib/cni", "/var/log", "/var/log/pods"),
    *("/etc/cni", "/etc/kubernetes", "/opt/cni", "/usr/libexec/kubernetes", "/tmp"),
)


@dataclass(frozen=True)
class Footprint:
    """The state of a machine, as far as a cluster touches it."""

    process_namespaces: frozenset[str]  # other than this process' own
    programs: frozenset[str]  # running ones with a name of the cluster's
    mounts: frozenset[str]
    devices: frozenset[str]
    addresses: frozenset[str]
    routes: frozenset[str]
    rules: frozenset[str]  # nftables' tables
    groups: frozenset[str]  # control groups
    files: frozenset[str]
    settings: frozenset[str]

    def left_by(self, before: Footprint) -> dict[str, list[str]]:
        """What is there now and was not, or was and no longer is, by kind; empty when nothing is.

        Processes that are no longer there were others', which may end at any time.
        """
        found = {each.name: getattr(self, each.name) ^ getattr(before, each.name) for each in fields(self)}
        for name in ("process_namespaces", "programs"):
            found[name] = getattr(self, name) - getattr(before, name)
        return {name: sorted(what) for name, what in found.items() if what}


def take(apart: int | None = None) -> Footprint:
    """Look at this machine now, without the process `apart` and what descends from it: another cluster's."""
    processes = [each for each in Path("/proc").glob("[0-9]*") if apart not in ancestry(each)]
    return Footprint(
        process_namespaces=frozenset(process_namespaces(processes)),
        programs=frozenset(programs(processes)),
        mounts=frozenset(line.split(" ", 4)[4].split()[0] for line in lines(Path("/proc/self/mountinfo"))),
        devices=frozenset(each["ifname"] for each in json.loads(said("ip", "-json", "link"))),
        addresses=frozenset(said("ip", "-brief", "address").splitlines()),
        routes=frozenset(each for kind in ("-4", "-6") for each in routes(kind)),
        rules=frozenset(said("nft", "list", "tables").splitlines()),
        groups=frozenset(str(each) for each in TOP.glob("**/*") if each.is_dir()),
        files=frozenset(str(each) for place in PLACES for each in entries(Path(place))),
        settings=frozenset(f"{each}={value(each)}" for each in (*TUNABLES, *FORWARDING)),
    )


def said(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def routes(kind: str) -> list[str]:
    """The routes of a family, without how long a router's word of one still holds."""
    return [
        re.sub(r" expires \d+sec", "", each) for each in said("ip", kind, "route", "show", "table", "all").splitlines()
    ]


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def value(sysctl: str) -> str:
    path = SYSCTLS / sysctl
    return path.read_text().strip() if path.exists() else "absent"


def ancestry(process: Path) -> list[int]:
    """A process' id, its parent's, and so on; a node's orphans have its PID 1 for a parent."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        while (pid := int(process.name)) > 0:
            found.append(pid)
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            process = Path("/proc") / parent
    return found


def process_namespaces(processes: list[Path]) -> set[str]:
    """The process namespaces that these run in."""
    found = set()
    for each in processes:
        with contextlib.suppress(OSError):
            found.add(str((each / "ns/pid").readlink()))
    return found


def programs(processes: list[Path]) -> set[str]:
    """The names and ids of those that a cluster is made of."""
    names = ("kube", "etcd", "containerd", "coredns", "pause", "unshare", "link")
    found = set()
    for each in processes:
        with contextlib.suppress(OSError):
            name = (each / "comm").read_text().strip()
            zombie = ") Z " in (each / "stat").read_text()
            if name.startswith(names) and not zombie:
                found.add(f"{each.name} {name}")
    return found

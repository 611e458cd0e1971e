"""Where the test cluster lives: its name, its folders and its addresses."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import ClusterError

SOURCES = Path(__file__).resolve().parent
CHECKOUT = SOURCES.parents[2]

KUBERNETES = "v1.36.3"  # go.mod's; stamped into the binaries
NODE = "node1"


@dataclass(frozen=True, slots=True)
class Family:
    """The addresses of pods and Services in IPv4 or in IPv6."""

    version: int
    pods: str
    services: str
    kubernetes: str
    """The Service `kubernetes`: the first address."""
    dns: str
    everywhere: str
    """A route's destination that stands for all."""


IPV4 = Family(4, "10.244.0.0/16", "10.96.0.0/16", "10.96.0.1", "10.96.0.10", "0.0.0.0/0")
# The node has one /64 of its own, as clusters with several nodes give them out.
IPV6 = Family(6, "fd00:10:244::/64", "fd00:10:96::/112", "fd00:10:96::1", "fd00:10:96::a", "::/0")
FAMILIES = {"ipv4": (IPV4,), "ipv6": (IPV6,), "dual": (IPV4, IPV6)}
"""What DEVLOOP_TEST_FAMILIES may say. The first is the one that a Service has which asks for none."""


def folder(variable: str, default: str) -> Path:
    """A base folder of the XDG Base Directory Specification."""
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else Path.home() / default


def cache() -> Path:
    """What is built is kept here, outside the checkout; deleting it costs a build and nothing else."""
    return folder("XDG_CACHE_HOME", ".cache") / "devloop" / "cluster"


def digest(*parts: str | bytes | Path) -> str:
    """A key for what is made from these: text, bytes, files, and folders with all their files."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            for file in files(part):
                whole.update(str(file.relative_to(part.parent)).encode() + b"\0")
                # The executable bit is part of an image; times and owners are not.
                whole.update(b"x" if os.access(file, os.X_OK) else b"-")
                whole.update(hashlib.sha256(file.read_bytes()).digest())
        else:
            data = part.encode() if isinstance(part, str) else part
            whole.update(len(data).to_bytes(8) + data)
    return whole.hexdigest()[:20]


def files(root: Path) -> Iterable[Path]:
    """The files at or under `root` in a stable order, without hidden ones and what Python leaves behind."""
    if root.is_file():
        return [root]

    def wanted(file: Path) -> bool:
        parts = file.relative_to(root).parts
        return file.is_file() and not any(each.startswith(".") or each == "__pycache__" for each in parts)

    return sorted(each for each in root.rglob("*") if wanted(each))


@dataclass(frozen=True, slots=True)
class Settings:
    """One cluster. Two of different `name` and `index` can run at the same time.

    The node's addresses are of 198.18.0.0/15 and 2001:2::/48, which RFC 2544 and RFC 5180 set aside for benchmarks:
    no real network has them.
    """

    name: str = "devloop"
    index: int = 0
    families: tuple[Family, ...] = (IPV4, IPV6)

    @classmethod
    def of_environment(cls) -> Settings:
        """DEVLOOP_TEST_CLUSTER is NAME or NAME:INDEX; index 0 to 63, one for each cluster on a machine.

        DEVLOOP_TEST_FAMILIES is "ipv4", "ipv6" or "dual", the default where this machine has IPv6.
        """
        name, _, index = os.environ.get("DEVLOOP_TEST_CLUSTER", "devloop").partition(":")
        if not (name.isidentifier() and len(name) <= 10 and (index or "0").isdigit() and int(index or 0) < 64):
            raise ClusterError(
                f"DEVLOOP_TEST_CLUSTER is {name}:{index}",
                "Use NAME or NAME:INDEX: a word of up to 10 letters, and a number from 0 to 63.",
            )
        default = "dual" if Path("/proc/net/if_inet6").exists() else "ipv4"
        chosen = os.environ.get("DEVLOOP_TEST_FAMILIES") or default
        if chosen not in FAMILIES:
            raise ClusterError(f"DEVLOOP_TEST_FAMILIES is {chosen}", f"Use one of {', '.join(FAMILIES)}.")
        return cls(name, int(index or 0), FAMILIES[chosen])

    @property
    def state(self) -> Path:
        """All that a running cluster writes: etcd, containers, logs, keys. Not there while it is down."""
        # Under pytest XDG_STATE_HOME is a folder for the tests alone (tests/conftest.py).
        of = "DEVLOOP_TEST_STATE_HOME" if "DEVLOOP_TEST_STATE_HOME" in os.environ else "XDG_STATE_HOME"
        return folder(of, ".local/state") / "devloop" / "cluster" / self.name

    @property
    def device(self) -> str:
        """The host's end of the cable to the node."""
        return f"{self.name}0"

    def host_ip(self, family: Family) -> str:
        """This machine's address on the cable."""
        return f"198.18.{self.index}.1" if family.version == 4 else f"2001:2:0:{self.index:x}::1"

    def node_ip_of(self, family: Family) -> str:
        """The node's address on the cable."""
        return f"198.18.{self.index}.2" if family.version == 4 else f"2001:2:0:{self.index:x}::2"

    def prefix(self, family: Family) -> int:
        """How many bits of an address the two ends of the cable have in common."""
        return 30 if family.version == 4 else 64

    @property
    def first(self) -> Family:
        """The family of what asks for none."""
        return self.families[0]

    @property
    def node_ip(self) -> str:
        """The node's address of the first family."""
        return self.node_ip_of(self.first)

    @property
    def node_ips(self) -> list[str]:
        return [self.node_ip_of(each) for each in self.families]

    @property
    def link_ips(self) -> tuple[str, str]:
        """The host's and the node's address on the slow link (`faults.Link`)."""
        return f"198.18.{64 + self.index}.1", f"198.18.{64 + self.index}.2"

    @property
    def server(self) -> str:
        return self.server_by(self.first)

    def server_by(self, family: Family) -> str:
        """The API server's URL, by its address of this family."""
        address = self.node_ip_of(family)
        return f"https://[{address}]:6443" if family.version == 6 else f"https://{address}:6443"

    @property
    def cgroup(self) -> str:
        """The control group that is the root of the node's (`init.py` binds it there)."""
        return f"{self.name}-cluster"

    @property
    def admin(self) -> Path:
        """The kubeconfig of a cluster administrator."""
        return self.state / "etc" / "admin.conf"

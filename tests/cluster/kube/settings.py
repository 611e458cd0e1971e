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
POD_CIDR = "10.244.0.0/16"
SERVICE_CIDR = "10.96.0.0/16"
SERVICE_IP = "10.96.0.1"
DNS_IP = "10.96.0.10"


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

    The addresses are of 198.18.0.0/15, which RFC 2544 sets aside for benchmarks: no real network has them.
    """

    name: str = "devloop"
    index: int = 0

    @classmethod
    def of_environment(cls) -> Settings:
        """DEVLOOP_TEST_CLUSTER is NAME or NAME:INDEX; index 0 to 63, one for each cluster on a machine."""
        name, _, index = os.environ.get("DEVLOOP_TEST_CLUSTER", "devloop").partition(":")
        if not (name.isidentifier() and len(name) <= 10 and (index or "0").isdigit() and int(index or 0) < 64):
            raise ClusterError(
                f"DEVLOOP_TEST_CLUSTER is {name}:{index}",
                "Use NAME or NAME:INDEX: a word of up to 10 letters, and a number from 0 to 63.",
            )
        return cls(name, int(index or 0))

    @property
    def state(self) -> Path:
        """All that a running cluster writes: etcd, containers, logs, keys. Not there while it is down."""
        return folder("XDG_STATE_HOME", ".local/state") / "devloop" / "cluster" / self.name

    @property
    def device(self) -> str:
        """The host's end of the cable to the node."""
        return f"{self.name}0"

    @property
    def host_ip(self) -> str:
        return f"198.18.{self.index}.1"

    @property
    def node_ip(self) -> str:
        return f"198.18.{self.index}.2"

    @property
    def link_ips(self) -> tuple[str, str]:
        """The host's and the node's address on the slow link (`faults.Link`)."""
        return f"198.18.{64 + self.index}.1", f"198.18.{64 + self.index}.2"

    @property
    def server(self) -> str:
        return f"https://{self.node_ip}:6443"

    @property
    def cgroup(self) -> str:
        """The control group that is the root of the node's (`init.py` binds it there)."""
        return f"{self.name}-cluster"

    @property
    def admin(self) -> Path:
        """The kubeconfig of a cluster administrator."""
        return self.state / "etc" / "admin.conf"

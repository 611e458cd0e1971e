"""The Debian packages that building and running the cluster takes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from .errors import ClusterError

# A program of each package, by which its presence is known.
PACKAGES = {
    "etcd-server": "etcd",
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "nftables": "nft",
    "conntrack": "conntrack",
    "iproute2": "ip",
    "kmod": "modprobe",
    "mount": "mount",
    "util-linux": "unshare",
    "debootstrap": "debootstrap",
}


def found(program: str) -> bool:
    """On PATH or where an administrator's programs lie, which an ordinary user's PATH leaves out."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return shutil.which(program, path=path) is not None


def missing() -> list[str]:
    """The names of the packages that are not there."""
    return [package for package, program in PACKAGES.items() if not found(program)]


def install() -> list[str]:
    """Install what is missing, starting no service; returns the packages installed."""
    lacking = missing()
    if not lacking:
        return []
    if os.geteuid() != 0 or not found("apt-get"):
        raise ClusterError(
            f"Missing from this machine: {', '.join(lacking)}",
            f"As root on Debian or Ubuntu: apt-get install --no-install-recommends {' '.join(lacking)}",
        )
    apt = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # Debian's etcd and containerd start when they are installed. Ours run apart from the machine's: ask
    # the way policy-rc.d is for (Debian Policy 9.3.3), unless the machine has a policy of its own.
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    try:
        if ours:
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
        for command in (
            ["apt-get", "update"],
            ["apt-get", "install", "-y", "--no-install-recommends", *lacking],
        ):
            done = subprocess.run(command, env=apt, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")
    finally:
        if ours:
            policy.unlink(missing_ok=True)
    return lacking

"""What a test needs of the machine. Where it is missing the test is skipped with what to do, and fails on CI.

CI is `.ci/run` with everything installed, and sets CI=true. The bare run (`tests/bare`) is a user's machine: there it
is not set.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest

PACKAGES = {
    "curl": "curl",
    "dig": "bind9-dnsutils",
    "gcc": "gcc",
    "go": "golang-go",
    "git": "git",
    "ip": "iproute2",
    "nft": "nftables",
    "node": "nodejs",
    "nsenter": "util-linux",
    "psql": "postgresql-client",
    "redis-cli": "redis-tools",
    "redis-server": "redis-server",
    "setpriv": "util-linux",
    "fish": "fish",
    "ssh-keygen": "openssh-client",
    "ss": "iproute2",
    "sshd": "openssh-server",
    "unshare": "util-linux",
    "tcsh": "tcsh",
    "zsh": "zsh",
}
"""Program → Debian's package with it."""
ADMINISTRATORS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where Debian keeps programs that an ordinary user's PATH does not lead to."""


def on_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true")


def missing(reason: str) -> NoReturn:
    """The test can't run here: skipped for a user, a failure on CI, where nothing may be missing."""
    if on_ci():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def program(name: str) -> str:
    """The path of a program."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *ADMINISTRATORS]))
    if found is None:
        package = PACKAGES.get(name, name)
        missing(f"{name} is not installed: `sudo apt-get install {package}`, or its package on your system")
    return found


@contextmanager
def open_files(count: int) -> Iterator[None]:
    """So many descriptors for this process and those that it starts; the soft limit is put back afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        missing(f"{count} open files are more than the hard limit of {hard}: `ulimit -Hn` as root, or limits.conf(5)")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

"""A route from this machine to the pods' addresses.

There is none as a rule, as with kind or behind a plain VPN. With one the cluster is like those whose pods have
addresses of the network around it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from .settings import POD_CIDR


@contextmanager
def to_pods(gateway: str) -> Iterator[None]:
    """While the context lasts, pods are reached by the node's address `gateway`. Raises CalledProcessError."""
    subprocess.run(["ip", "route", "replace", POD_CIDR, "via", gateway], check=True, capture_output=True, text=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "route", "del", POD_CIDR, "via", gateway], check=False, capture_output=True)

"""A route from this machine to the pods' addresses.

There is none as a rule, as with kind or behind a plain VPN. With one the cluster is like those whose pods have
addresses of the network around it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from .settings import IPV4, IPV6


@contextmanager
def to_pods(*gateways: str) -> Iterator[None]:
    """While the context lasts, pods are reached by these addresses of the node: one for each family that is wanted.

    Raises CalledProcessError.
    """
    routes = [((IPV6 if ":" in each else IPV4).pods, "via", each) for each in gateways]
    for route in routes:
        subprocess.run(["ip", "route", "replace", *route], check=True, capture_output=True, text=True)
    try:
        yield
    finally:
        for route in routes:
            subprocess.run(["ip", "route", "del", *route], check=False, capture_output=True)

"""Ports of this machine for tests that have to name one beforehand."""

from __future__ import annotations

import random
import socket

FIRST, LAST = 20_000, 29_999
"""Below the ports that Linux gives to connections by itself (ip_local_port_range, 32768 and up): a port out of that
range can be taken by any connection, or by any listener at port 0, between its choice and its use."""


def free_port() -> int:
    """A TCP port that nothing listens on now. Random, since pytest-xdist's workers choose side by side."""
    while True:
        port = random.SystemRandom().randint(FIRST, LAST)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port

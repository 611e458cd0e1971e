"""Who has connected to a port on the loopback: everybody on the machine can, and has no mode to be kept out by."""

from __future__ import annotations

import socket
from pathlib import Path

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_MAPPED = bytes(10) + b"\xff\xff"
"""Before an IPv4 address, as a socket of IPv6 has it."""


def user_of(client: tuple[str, int], own: tuple[str, int]) -> int | None:
    """The user whose socket is at the other end of a connection within this machine (proc(5), /proc/net/tcp).

    None if the kernel does not tell. A client that has closed its socket already has none: it counts as root's.
    """
    for table in _TABLES:
        wanted = {(_shown(client, *form), _shown(own, *form)) for form in _forms(table, client[0])}
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if len(fields) > 7 and (fields[1], fields[2]) in wanted:
                return int(fields[7])
    return None


def _forms(table: Path, host: str) -> list[tuple[int, bytes]]:
    v6 = table.name == "tcp6"
    if ":" in host:
        return [(socket.AF_INET6, b"")] if v6 else []
    return [(socket.AF_INET, _MAPPED if v6 else b"")]


def _shown(address: tuple[str, int], family: int, before: bytes) -> str:
    data = before + socket.inet_pton(family, address[0])
    words = (data[at : at + 4][::-1] for at in range(0, len(data), 4))  # as this kernel prints its words
    return f"{b''.join(words).hex().upper()}:{address[1]:04X}"

"""Who has connected to a port on the loopback: everybody on the machine can, and has no mode to be kept out by."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_MAPPED = bytes(10) + b"\xff\xff"
"""Before an IPv4 address, as a socket of IPv6 has it."""


_SOCK_DIAG, _BY_FAMILY, _REQUEST, _ERROR = 4, 20, 1, 2  # linux/netlink.h, linux/sock_diag.h
_HEADER = struct.Struct("=IHHII")
_PORTS_AT, _USER_AT = _HEADER.size + 4, _HEADER.size + 64  # of struct inet_diag_msg, linux/inet_diag.h
_SECONDS = 0.5


def user_of(client: tuple[str, int], own: tuple[str, int]) -> int | None:
    """The user whose socket is at the other end of a connection within this machine.

    None if the kernel does not tell. A client that has closed its socket already has none: it counts as root's.
    """
    try:
        return _by_netlink(client, own)
    except (OSError, struct.error):  # a kernel or a sandbox without it
        return _by_tables(client, own)


def works_here(uid: int) -> bool:
    """Whether a process of this user comes from this one: a service that root has started drops its rights, as nginx
    and PostgreSQL do."""
    me = os.getpid()
    parents: dict[int, int] = {}
    theirs: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(process.name)
            parents[pid] = int((process / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            if process.stat().st_uid == uid:
                theirs.append(pid)
        except (OSError, ValueError, IndexError):
            continue  # it has ended
    for pid in theirs:
        seen: set[int] = set()
        while pid in parents and pid not in seen:
            seen.add(pid)
            pid = parents[pid]
            if pid == me:
                return True
    return False


def _by_netlink(client: tuple[str, int], own: tuple[str, int]) -> int | None:
    """Asks for this one socket (sock_diag(7)): the tables have all of the machine's, tens of thousands after a load."""
    family = socket.AF_INET6 if ":" in client[0] else socket.AF_INET
    source, target = (socket.inet_pton(family, host).ljust(16, b"\0") for host, _ in (client, own))
    body = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF)
    ports = struct.pack(">HH", client[1], own[1])
    body += ports + source + target + struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG) as asking:
        asking.settimeout(_SECONDS)
        asking.send(_HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, _REQUEST, 1, 0) + body)
        answer = asking.recv(4096)
    if _HEADER.unpack_from(answer)[1] == _ERROR:
        error = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        if error == errno.ENOENT:
            return None
        raise OSError(error, os.strerror(error))
    if answer[_PORTS_AT : _PORTS_AT + 4] != ports:
        return None  # one that listens at the client's port
    return int(struct.unpack_from("=I", answer, _USER_AT)[0])


def _by_tables(client: tuple[str, int], own: tuple[str, int]) -> int | None:
    """By /proc/net/tcp (proc(5))."""
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

"""Which way the last bytes of each connection went, request or answer: told by the kernel of the pod's network.

The clock of tcp_info ticks every few milliseconds, and a request and its answer often share a tick. So the packets'
heads are asked for, by nftables' `log` and nfnetlink_log, in the order in which they pass.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import subprocess
from collections.abc import Collection, Iterator

TABLE = "devloop_order"
GROUP = 19998
MOST = 20_000
"""Packets that are read at a time."""
_SNAP = 160
"""Bytes of each packet: more than the longest heads of IP and TCP."""
_HEADER = struct.Struct("=IHHII")
_CONFIG, _PACKET = 4 << 8 | 1, 4 << 8  # NFNL_SUBSYS_ULOG with NFULNL_MSG_CONFIG, NFULNL_MSG_PACKET
_PAYLOAD = 9  # NFULA_PAYLOAD
_TCP = 6
_NFT_SECONDS = 10

Ends = tuple[int, str, int]
"""The pod's port, the client's address and its port."""


def rules(ports: Collection[int]) -> str:
    """For nft: log what carries something to and from these ports, but within the pod."""
    numbers = "{ " + ", ".join(str(int(port)) for port in sorted(ports)) + " }"
    log = f"log group {GROUP} snaplen {_SNAP} queue-threshold 1"
    return (
        f"add table inet {TABLE}\nflush table inet {TABLE}\n"
        f"add chain inet {TABLE} asked {{ type filter hook input priority 0; policy accept; }}\n"
        f"add chain inet {TABLE} answered {{ type filter hook output priority 0; policy accept; }}\n"
        f'add rule inet {TABLE} asked iifname != "lo" tcp dport {numbers} {log}\n'
        f'add rule inet {TABLE} answered oifname != "lo" tcp sport {numbers} {log}\n'
    )


def passed(packet: bytes, ports: Collection[int]) -> tuple[Ends, bool] | None:
    """Whose packet it is, and whether it goes to the pod; None: it carries nothing."""
    if len(packet) < 40:
        return None
    if packet[0] >> 4 == 4:
        start, total = (packet[0] & 15) * 4, struct.unpack_from(">H", packet, 2)[0]
        source, target = packet[12:16], packet[16:20]
        kind = packet[9]
    else:
        start, total = 40, 40 + struct.unpack_from(">H", packet, 4)[0]
        source, target = packet[8:24], packet[24:40]
        kind = packet[6]
    if kind != _TCP or len(packet) < start + 20:
        return None
    length = total - start - (packet[start + 12] >> 4) * 4
    # What is longer than IPv4 can say (big segments that stay within a machine) has 0 there.
    if total and length <= 0:
        return None
    from_port, to_port = struct.unpack_from(">HH", packet, start)
    asked = to_port in ports
    address = ipaddress.ip_address(source if asked else target)
    return ((to_port, str(address), from_port) if asked else (from_port, str(address), to_port)), asked


class Order:
    """While it is open. OSError where the kernel can't tell."""

    def __init__(self, ports: Collection[int]) -> None:
        self._ports = frozenset(ports)
        self.asked: dict[Ends, bool] = {}
        """Whether the last bytes were the client's, of each connection on which there were any."""
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)  # NETLINK_NETFILTER
        self._ours = False  # the table: another one at work here has the group, and one of that name
        try:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
            self._configure(1, b"\x01")  # bind; EBUSY if another socket has
            self._ours = True
            self._configure(2, struct.pack(">IBx", _SNAP, 2))  # copy packets
            self._configure(5, struct.pack(">I", 1))  # each at once
            self._nft(rules(self._ports))
        except BaseException:
            self.close()
            raise
        self._sock.setblocking(False)

    def close(self) -> None:
        """Leave nothing in the pod's network."""
        if self._ours:
            with contextlib.suppress(OSError):
                self._nft(f"add table inet {TABLE}\ndelete table inet {TABLE}\n")
        self._sock.close()  # last: who comes next has a table of that name

    def read(self) -> bool:
        """Take what has passed by now. False: some was missed, and nothing is known any more."""
        try:
            for _ in range(MOST):
                for packet in _packets(self._sock.recv(1 << 18)):
                    if (found := passed(packet, self._ports)) is not None:
                        self.asked[found[0]] = found[1]
        except BlockingIOError:
            return True
        except OSError:  # ENOBUFS
            pass
        # Or more come than can be read, and what is known is older than what was found.
        self.asked.clear()
        return False

    def _configure(self, kind: int, value: bytes) -> None:
        header = struct.pack("=BBH", socket.AF_UNSPEC, 0, socket.htons(GROUP))
        attribute = struct.pack("=HH", 4 + len(value), kind) + value
        body = header + attribute + bytes(-len(attribute) % 4)
        self._sock.send(_HEADER.pack(_HEADER.size + len(body), _CONFIG, 1 | 4, 1, 0) + body)
        number = -struct.unpack_from("=i", self._sock.recv(65536), _HEADER.size)[0]
        if number:
            raise OSError(number, "nfnetlink_log")

    def _nft(self, text: str) -> None:
        try:
            subprocess.run(
                ("nft", "-f", "-"), input=text.encode(), check=True, capture_output=True, timeout=_NFT_SECONDS
            )
        except (subprocess.SubprocessError, FileNotFoundError) as problem:
            raise OSError(f"nft: {problem}") from None


def _packets(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, *_ = _HEADER.unpack_from(data, at)
        if size < _HEADER.size:
            return
        if kind == _PACKET:
            inner, end = at + _HEADER.size + 4, at + size
            while inner + 4 <= end:
                length, name = struct.unpack_from("=HH", data, inner)
                if length < 4:
                    break
                if name & 0x3FFF == _PAYLOAD:
                    yield data[inner + 4 : inner + length]
                inner += (length + 3) & ~3
        at += (size + 3) & ~3

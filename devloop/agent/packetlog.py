"""Packets that nftables' `log` hands out, by nfnetlink_log. Takes CAP_NET_ADMIN."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

SNAP = 160
"""Bytes of each packet: more than the longest heads of IP and TCP."""
_HEADER = struct.Struct("=IHHII")
_CONFIG, _PACKET = 4 << 8 | 1, 4 << 8  # NFNL_SUBSYS_ULOG with NFULNL_MSG_CONFIG, NFULNL_MSG_PACKET
_PAYLOAD = 9  # NFULA_PAYLOAD
_TCP = 6
_NFT_SECONDS = 10


class PacketLog:
    """One group's, while it is open. OSError: the kernel can't, or somebody else has this group (EBUSY)."""

    def __init__(self, group: int) -> None:
        self._group = group
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)  # NETLINK_NETFILTER
        try:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
            self._configure(1, b"\x01")  # bind
            self._configure(2, struct.pack(">IBx", SNAP, 2))  # copy packets
            self._configure(5, struct.pack(">I", 1))  # each at once
        except BaseException:
            self.close()
            raise
        self._sock.setblocking(False)

    def close(self) -> None:
        """Give the group back."""
        self._sock.close()

    def read(self) -> Iterator[bytes]:
        """What one message has. BlockingIOError: nothing is there; another OSError: some was missed."""
        return _packets(self._sock.recv(1 << 18))

    def _configure(self, kind: int, value: bytes) -> None:
        header = struct.pack("=BBH", socket.AF_UNSPEC, 0, socket.htons(self._group))
        attribute = struct.pack("=HH", 4 + len(value), kind) + value
        body = header + attribute + bytes(-len(attribute) % 4)
        self._sock.send(_HEADER.pack(_HEADER.size + len(body), _CONFIG, 1 | 4, 1, 0) + body)
        number = -struct.unpack_from("=i", self._sock.recv(65536), _HEADER.size)[0]
        if number:
            raise OSError(number, os.strerror(number))


@dataclass(frozen=True, slots=True)
class Segment:
    """The heads of one packet of TCP, and what came along of its content."""

    source: str
    source_port: int
    target: str
    target_port: int
    sequence: int
    acknowledged: int
    window: int
    """As the packet says it, not scaled."""
    options: bytes
    carries: bool
    """Something, whether it came along or not."""
    content: bytes


def segment(packet: bytes) -> Segment | None:
    """A packet of IP, as far as it was copied; None: it is none of TCP's."""
    if len(packet) < 40:
        return None
    if packet[0] >> 4 == 4:
        start, total = (packet[0] & 15) * 4, struct.unpack_from(">H", packet, 2)[0]
        source, target = packet[12:16], packet[16:20]
        kind = packet[9]
    else:
        start, total = 40, struct.unpack_from(">H", packet, 4)[0]
        source, target = packet[8:24], packet[24:40]
        kind = packet[6]
        total = total and total + 40
    if kind != _TCP or len(packet) < start + 20:
        return None
    from_port, to_port, sequence, acknowledged, offset, _, window = struct.unpack_from(">HHIIBBH", packet, start)
    head = (offset >> 4) * 4
    # What is longer than an IP packet can say (big segments that stay within a machine) has 0 there.
    return Segment(
        str(ipaddress.ip_address(source)),
        from_port,
        str(ipaddress.ip_address(target)),
        to_port,
        sequence,
        acknowledged,
        window,
        packet[start + 20 : start + head],
        not total or total - start - head > 0,
        packet[start + head :],
    )


def nft(text: str) -> None:
    """Do what it says, in one transaction. OSError."""
    try:
        subprocess.run(("nft", "-f", "-"), input=text.encode(), check=True, capture_output=True, timeout=_NFT_SECONDS)
    except subprocess.CalledProcessError as problem:
        raise OSError(f"nft: {problem.stderr.decode(errors='replace').strip()[:300]}") from None
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

"""What comes from the kernel, taken apart."""

from __future__ import annotations

import socket
import struct

import pytest

from devloop.net.netlink import attribute, attributes, messages, nested
from devloop.net.router import Destination, canonical
from devloop.net.udp import udp_destination


def ipv4(destination: str, port: int, protocol: int = 17, options: bytes = b"") -> bytes:
    head = bytes([0x45 + len(options) // 4]) + bytes(8) + bytes([protocol]) + bytes(6)
    return head + socket.inet_aton(destination) + options + struct.pack(">HHHH", 1, port, 8, 0)


def ipv6(destination: str, port: int) -> bytes:
    head = bytes([0x60]) + bytes(5) + b"\x11\x40" + bytes(16)
    return head + socket.inet_pton(socket.AF_INET6, destination) + struct.pack(">HHHH", 1, port, 8, 0)


def test_udp_destinations() -> None:
    assert udp_destination(ipv4("10.0.0.1", 123)) == Destination("10.0.0.1", 123)
    assert udp_destination(ipv4("10.0.0.1", 123, options=bytes(8))) == Destination("10.0.0.1", 123)
    assert udp_destination(ipv6("2001:db8::1", 443)) == Destination("2001:db8::1", 443)


@pytest.mark.parametrize("cut", range(0, 28, 3))
def test_packets_that_are_cut(cut: int) -> None:
    packet = ipv4("10.0.0.1", 123)[:cut]
    assert udp_destination(packet) is None or cut >= 24


def test_other_protocols() -> None:
    assert udp_destination(ipv4("10.0.0.1", 123, protocol=6)) is None


def test_attributes_there_and_back() -> None:
    data = attribute(1, b"abc") + nested(2, attribute(3, b"x"))
    found = attributes(data)
    assert found[1] == b"abc"
    assert attributes(found[2]) == {3: b"x"}
    assert attributes(b"\x02\x00\x01\x00") == {}


def test_messages_that_are_cut() -> None:
    assert list(messages(bytes(10))) == []
    assert list(messages(struct.pack("=IHHII", 4, 0, 0, 0, 0))) == []


def test_addresses_in_their_canonical_form() -> None:
    assert canonical("::ffff:10.0.0.1") == "10.0.0.1"
    assert canonical("fe80::1%eth0") == "fe80::1"
    assert str(Destination("::1", 80)) == "[::1]:80"
    assert Destination("127.0.0.5", 80).is_loopback
    assert not Destination("10.0.0.1", 80).is_loopback

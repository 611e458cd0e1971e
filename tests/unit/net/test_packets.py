"""What comes from the kernel, taken apart."""

from __future__ import annotations

import socket
import struct

from hypothesis import given
from hypothesis import strategies as st

from devloop.net.netlink import attribute, attributes, messages, nested
from devloop.net.router import Destination, canonical
from devloop.net.udp import LONGEST_4, LONGEST_6, checksum, datagram, original, unreachable

FOUR, SIX = Destination("10.96.0.1", 8125), Destination("2001:db8::1", 443)
MINE_4, MINE_6 = Destination("198.18.0.1", 40000), Destination("fd5e:76c0:6f70::1", 40000)


def test_where_a_datagram_was_sent_to() -> None:
    four = struct.pack("=H", socket.AF_INET) + struct.pack(">H", 8125) + socket.inet_aton("10.96.0.1") + bytes(8)
    six = struct.pack("=H", socket.AF_INET6) + struct.pack(">HI", 443, 0)
    six += socket.inet_pton(socket.AF_INET6, "2001:db8::1") + bytes(4)
    pktinfo = (socket.IPPROTO_IP, 8, bytes(12))
    assert original([pktinfo, (socket.IPPROTO_IP, 20, four)]) == FOUR
    assert original([(socket.IPPROTO_IPV6, 74, six)]) == SIX
    assert original([pktinfo]) is None
    assert original([(socket.IPPROTO_IP, 20, four[:6]), (socket.IPPROTO_IPV6, 74, six[:20])]) is None


def words(data: bytes) -> int:
    """RFC 1071, as it is written: the sum of the words, with its carries."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(st.binary(max_size=200))
def test_a_checksum_makes_the_sum_all_ones(data: bytes) -> None:
    found = checksum(data)
    assert 0 < found <= 0xFFFF
    assert words(data + bytes(len(data) % 2) + found.to_bytes(2, "big")) == 0xFFFF


@given(st.binary(max_size=300))
def test_a_datagram_of_ipv6_has_the_checksum_of_all_of_it(data: bytes) -> None:
    packet = datagram(SIX, MINE_6, data)
    assert packet is not None
    assert (packet[0] >> 4, packet[6], int.from_bytes(packet[4:6], "big")) == (6, 17, len(packet) - 40)
    pseudo = packet[8:40] + struct.pack(">II", len(packet) - 40, 17)
    assert words(pseudo + packet[40:] + bytes(len(data) % 2)) == 0xFFFF
    assert packet[48:] == data


def test_a_datagram_of_ipv4() -> None:
    packet = datagram(FOUR, MINE_4, b"hello")
    assert packet is not None and len(packet) == 33
    assert packet[12:20] == socket.inet_aton("10.96.0.1") + socket.inet_aton("198.18.0.1")
    assert struct.unpack(">HHHH", packet[20:28]) == (8125, 40000, 13, 0)
    assert packet[28:] == b"hello"


def test_no_datagram_is_larger_than_a_packet() -> None:
    assert datagram(FOUR, MINE_4, bytes(LONGEST_4 + 1)) is None
    assert datagram(SIX, MINE_6, bytes(LONGEST_6 + 1)) is None
    assert len(datagram(FOUR, MINE_4, bytes(LONGEST_4)) or b"") == 65535
    assert len(datagram(SIX, MINE_6, bytes(LONGEST_6)) or b"") == 65536


def test_nobody_listens_is_said_with_the_head_of_what_was_sent() -> None:
    four = unreachable(MINE_4, FOUR)
    assert (four[9], four[20:22], words(four[20:])) == (1, b"\x03\x03", 0xFFFF)
    lost = four[28:]
    assert lost[12:20] == socket.inet_aton("198.18.0.1") + socket.inet_aton("10.96.0.1")
    assert struct.unpack(">HH", lost[20:24]) == (40000, 8125)
    six = unreachable(MINE_6, SIX)
    pseudo = six[8:40] + struct.pack(">II", len(six) - 40, 58)
    assert (six[6], six[40:42], words(pseudo + six[40:])) == (58, b"\x01\x04", 0xFFFF)


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

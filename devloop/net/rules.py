"""The nftables rules of a service's namespace, through netlink (nft(8), linux/netfilter/nf_tables.h).

As nft(8) would show them:

    table inet devloop {
      set host { type inet_service }                 # ports on which the host's loopback listens
      chain own {                                    # connections to the service's own addresses
        socket …  accept                             # something inside listens: it is its
        tcp dport @host tproxy to :PROXY accept      # else the host's, if the host has it
      }                                              # else the kernel refuses, as it should
      chain tcp { type filter hook prerouting priority mangle;
        meta l4proto != tcp accept
        meta mark MARK accept                        # the engine's own connections into the namespace
        tcp flags & (fin|syn|rst|ack) != syn accept
        ip daddr 127.0.0.0/8 goto own;  ip6 daddr ::1 goto own;  ip daddr OWN goto own; …
        tcp dport 53 accept                          # the DNS server listens on every address
        tproxy to :PROXY accept
      }
      chain udp { type filter hook prerouting priority mangle;
        the same for udp: MARK, loopback, own addresses, multicast and port 53 are accepted
        tproxy to :PROXY accept
      }
    }

Why tproxy and not `redirect`: with a local default route every packet comes back in through lo, where `socket`
finds what listens before a connection is made. So "nothing inside listens on this port of localhost" is decided
by the kernel, at the SYN, with nothing to keep in step. There is no address translation and no connection
tracking either, and getsockname(2) of an accepted connection is where the service wanted to go (IPv4 and IPv6).

UDP needs no `own` chain: what is sent to an own address is the kernel's alone, who answers for a port that nobody has.
What comes back is sent by a marked raw socket (`devloop.net.udp`), and so not caught again.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence

from devloop.net.netlink import (
    ACK,
    APPEND,
    CREATE,
    NETLINK_NETFILTER,
    Message,
    attribute,
    be32,
    connect,
    nested,
    text,
    transact,
)

TABLE = "devloop"
MARK = 0xD0C
"""The mark of sockets that the holder makes for the engine: they reach what listens inside, and nothing else."""
PROXY_PORT = 65529
"""Where the proxy listens inside: above the ephemeral ports (32768 to 60999), and nobody's registered one."""

_NFPROTO_INET, _IPV4, _IPV6 = 1, 2, 10
_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEWTABLE, _NEWCHAIN, _NEWRULE, _NEWSET, _NEWSETELEM, _DELSETELEM = 0, 3, 6, 9, 12, 14
_PREROUTING = 0
_MANGLE = -150
_TCP, _UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
_DNS = 53
_INET_SERVICE = 13  # the type's number in nft(8), for people who list the set

_NETWORK, _TRANSPORT = 1, 2
_META_MARK, _META_NFPROTO, _META_L4PROTO = 3, 15, 16
_EQ, _NEQ = 0, 1
_VERDICT, _REGISTER = 0, 1
_ACCEPT, _GOTO = 1, -4 & 0xFFFFFFFF

Rule = bytes
"""Expressions, one after another."""


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *attributes))


def _meta(key: int, value: bytes, operation: int = _EQ) -> bytes:
    return _expression("meta", be32(1, _REGISTER), be32(2, key)) + _compare(value, operation)


def _payload(base: int, offset: int, length: int) -> bytes:
    return _expression("payload", be32(1, _REGISTER), be32(2, base), be32(3, offset), be32(4, length))


def _compare(value: bytes, operation: int = _EQ) -> bytes:
    return _expression("cmp", be32(1, _REGISTER), be32(2, operation), nested(3, attribute(1, value)))


def _verdict(code: int, chain: str = "") -> bytes:
    target = (text(2, chain),) if chain else ()
    return _expression("immediate", be32(1, _VERDICT), nested(2, nested(2, be32(1, code), *target)))


def _protocol(number: int, operation: int = _EQ) -> bytes:
    return _meta(_META_L4PROTO, bytes([number]), operation)


def _to(address: str) -> bytes:
    """`ip daddr ADDRESS` or `ip6 daddr ADDRESS`; 127.0.0.1 stands for 127.0.0.0/8."""
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address)
        return _meta(_META_NFPROTO, bytes([_IPV6])) + _payload(_NETWORK, 24, 16) + _compare(packed)
    packed = socket.inet_aton(address)
    length = 1 if address == "127.0.0.1" else 4
    return _meta(_META_NFPROTO, bytes([_IPV4])) + _payload(_NETWORK, 16, length) + _compare(packed[:length])


def _multicast(family: int) -> bytes:
    """`ip daddr 224.0.0.0/4` or `ip6 daddr ff00::/8`: between the sockets of one namespace."""
    first = _meta(_META_NFPROTO, bytes([family]))
    if family == _IPV6:
        return first + _payload(_NETWORK, 24, 1) + _compare(b"\xff")
    mask = nested(4, attribute(1, b"\xf0"))
    xor = nested(5, attribute(1, b"\0"))
    masked = _expression("bitwise", be32(1, _REGISTER), be32(2, _REGISTER), be32(3, 1), mask, xor)
    return first + _payload(_NETWORK, 16, 1) + masked + _compare(b"\xe0")


def _to_port(port: int) -> bytes:
    return _payload(_TRANSPORT, 2, 2) + _compare(port.to_bytes(2, "big"))


def _only_syn() -> bytes:
    """`tcp flags & (fin|syn|rst|ack) != syn`: what is not the first packet of a connection."""
    mask = nested(4, attribute(1, b"\x17"))
    xor = nested(5, attribute(1, b"\0"))
    masked = _expression("bitwise", be32(1, _REGISTER), be32(2, _REGISTER), be32(3, 1), mask, xor)
    return _protocol(_TCP) + _payload(_TRANSPORT, 13, 1) + masked + _compare(b"\x02", _NEQ)


def _tproxy(port: int, protocol: int = _TCP) -> bytes:
    load = nested(2, attribute(1, port.to_bytes(2, "big")))
    # No family: the proxy's port at the first address of lo, whichever family the packet is of.
    return (
        _protocol(protocol)
        + _expression("immediate", be32(1, _REGISTER), load)
        + _expression("tproxy", be32(1, 0), be32(3, _REGISTER))
        + _verdict(_ACCEPT)
    )


def _something_listens() -> bytes:
    """`socket …`: goes on to the next expression only if there is a socket for the packet (Linux 4.18)."""
    return _expression("socket", be32(1, 0), be32(2, _REGISTER))


def _in_host_set() -> bytes:
    lookup = _expression("lookup", text(1, "host"), be32(2, _REGISTER))
    return _protocol(_TCP) + _payload(_TRANSPORT, 2, 2) + lookup


def _message(kind: int, *attributes: bytes, flags: int = CREATE, family: int = _NFPROTO_INET) -> Message:
    return _SUBSYSTEM | kind, flags | ACK, struct.pack("=BBH", family, 0, 0) + b"".join(attributes)


def _chain(name: str, hook: int | None = None, priority: int = 0) -> Message:
    attributes = [text(1, TABLE), text(3, name)]
    if hook is not None:
        place = nested(4, be32(1, hook), attribute(2, struct.pack(">i", priority)))
        attributes += [place, be32(5, _ACCEPT), text(7, "filter")]
    return _message(_NEWCHAIN, *attributes)


def _rule(chain: str, expressions: Rule) -> Message:
    return _message(_NEWRULE, text(1, TABLE), text(2, chain), nested(4, expressions), flags=CREATE | APPEND)


def _batch(*batch: Message) -> list[Message]:
    marker = struct.pack("=BBH", 0, 0, socket.htons(10))
    return [(_BATCH_BEGIN, 0, marker), *batch, (_BATCH_END, 0, marker)]


def ruleset(own: Sequence[str], *, proxy_port: int = PROXY_PORT) -> list[Message]:
    """The whole table; `own` are the service's addresses besides the loopback."""
    mark = _meta(_META_MARK, struct.pack("=I", MARK)) + _verdict(_ACCEPT)
    addresses = ("127.0.0.1", "::1", *own)
    udp = _protocol(_UDP)
    key = (be32(4, _INET_SERVICE), be32(5, 2), be32(10, 1))
    return _batch(
        _message(_NEWTABLE, text(1, TABLE)),
        _message(_NEWSET, text(1, TABLE), text(2, "host"), be32(3, 0), *key),
        _chain("own"),
        _rule("own", _something_listens() + _verdict(_ACCEPT)),
        _rule("own", _in_host_set() + _tproxy(proxy_port)),
        _chain("tcp", _PREROUTING, _MANGLE),
        _rule("tcp", _protocol(_TCP, _NEQ) + _verdict(_ACCEPT)),
        _rule("tcp", mark),
        _rule("tcp", _only_syn() + _verdict(_ACCEPT)),
        *(_rule("tcp", _to(address) + _verdict(_GOTO, "own")) for address in addresses),
        _rule("tcp", _protocol(_TCP) + _to_port(_DNS) + _verdict(_ACCEPT)),
        _rule("tcp", _tproxy(proxy_port)),
        _chain("udp", _PREROUTING, _MANGLE),
        _rule("udp", _protocol(_UDP, _NEQ) + _verdict(_ACCEPT)),
        _rule("udp", mark),
        *(_rule("udp", _to(address) + _verdict(_ACCEPT)) for address in addresses),
        *(_rule("udp", _multicast(family) + _verdict(_ACCEPT)) for family in (_IPV4, _IPV6)),
        _rule("udp", udp + _to_port(_DNS) + _verdict(_ACCEPT)),
        _rule("udp", _tproxy(proxy_port, _UDP)),
    )


def install(own: Sequence[str], *, proxy_port: int = PROXY_PORT) -> None:
    """Put the rules into this process' network namespace. Raises OSError."""
    with connect(NETLINK_NETFILTER) as sock:
        transact(sock, ruleset(own, proxy_port=proxy_port))


def change_host_ports(add: Iterable[int], remove: Iterable[int]) -> None:
    """Add to and remove from the set `host`. Raises OSError, FileNotFoundError for one that was not in it."""
    batch = []
    for kind, ports in ((_DELSETELEM, sorted(set(remove))), (_NEWSETELEM, sorted(set(add)))):
        elements = [nested(1, nested(1, attribute(1, port.to_bytes(2, "big")))) for port in ports]
        # One attribute holds at most 64 KiB.
        for start in range(0, len(elements), 1000):
            part = nested(3, *elements[start : start + 1000])
            batch.append(_message(kind, text(1, TABLE), text(2, "host"), part))
    if batch:
        with connect(NETLINK_NETFILTER) as sock:
            transact(sock, _batch(*batch))

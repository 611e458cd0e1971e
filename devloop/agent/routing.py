"""A rule and a route of a network namespace, by rtnetlink: packets with a mark stay in it. Takes CAP_NET_ADMIN."""

from __future__ import annotations

import contextlib
import os
import socket
import struct

PRIORITY = 99
_NEW_ROUTE, _DEL_ROUTE, _NEW_RULE, _DEL_RULE = 24, 25, 32, 33  # linux/rtnetlink.h
_REQUEST, _ACK, _CREATE, _EXCLUSIVE = 1, 4, 0x400, 0x200
_TO_TABLE = 1  # FR_ACT_TO_TBL, linux/fib_rules.h
_PRIORITY, _MARK, _TABLE_OF_RULE = 6, 10, 15  # FRA_PRIORITY, FRA_FWMARK, FRA_TABLE
_OUT, _TABLE = 4, 15  # RTA_OIF, RTA_TABLE
_BY_BOOT, _HOST, _LOCAL = 3, 254, 2  # RTPROT_BOOT, RT_SCOPE_HOST, RTN_LOCAL
_HEADER = struct.Struct("=IHHII")
_BODY = struct.Struct("=BBBBBBBBI")


def keep_within(mark: int, family: socket.AddressFamily) -> None:
    """Packets with this mark are delivered here, wherever they are for. The table's number is the mark. OSError."""
    _ask(_NEW_RULE, _rule(mark, family), _CREATE | _EXCLUSIVE)
    try:
        _ask(_NEW_ROUTE, _route(mark, family), _CREATE | _EXCLUSIVE)
    except OSError:
        let_go(mark, family)
        raise


def let_go(mark: int, family: socket.AddressFamily) -> None:
    """The reverse; what is not there is no error."""
    for kind, body in ((_DEL_ROUTE, _route(mark, family)), (_DEL_RULE, _rule(mark, family))):
        with contextlib.suppress(OSError):
            _ask(kind, body, 0)


def _rule(mark: int, family: socket.AddressFamily) -> bytes:
    body = _BODY.pack(family, 0, 0, 0, 0, 0, 0, _TO_TABLE, 0)
    return body + _word(_PRIORITY, PRIORITY) + _word(_MARK, mark) + _word(_TABLE_OF_RULE, mark)


def _route(mark: int, family: socket.AddressFamily) -> bytes:
    body = _BODY.pack(family, 0, 0, 0, 0, _BY_BOOT, _HOST, _LOCAL, 0)
    return body + _word(_TABLE, mark) + _word(_OUT, socket.if_nametoindex("lo"))


def _word(kind: int, value: int) -> bytes:
    return struct.pack("=HHI", 8, kind, value)


def _ask(kind: int, body: bytes, flags: int) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:  # NETLINK_ROUTE
        sock.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _ACK | flags, 1, 0) + body)
        number = -struct.unpack_from("=i", sock.recv(65536), _HEADER.size)[0]
    if number:
        raise OSError(number, os.strerror(number))

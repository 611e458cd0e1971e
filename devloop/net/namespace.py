"""The namespaces of one local service: made and kept by its holder (user_namespaces(7), network_namespaces(7)).

The holder makes a `Namespace` of a SOCK_SEQPACKET socket that the engine gave it, and calls `obey` when there is
something to read. The first message, `enter`, moves the holder itself, and so everything that it starts from then
on, into namespaces of its own; user and group stay what they are, files and processes too. The engine is
outside and works through the descriptors that it gets. Nothing has a name or a file: when the holder and its
processes are gone, the kernel removes the namespaces, mounts and sockets with them.

An ordinary user needs a user namespace for this. Root with CAP_SYS_ADMIN does not, and keeps all users that way.

Messages, JSON, one a packet; each has one answer, in order:
  {op: enter, addresses: [v4, v6]} → {ok, pid, user, ipv6, low_ports} + [proxy, dns udp, dns tcp, diag, udp, raw, raw6?]
  {op: sockets, count}             → {ok} + that many TCP sockets, made inside, marked, not yet connected
  {op: ports, add, remove}         → {ok}         ports on which the host's loopback listens
  {op: mount, binds: [{source, target, read_only}], remove: [target]} → {ok, made, failed: {target: why}}
An answer to what failed is {error, step, errno}.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from devloop.net import rules
from devloop.net.listeners import diag_socket
from devloop.net.mounts import Bind, Grafts, private
from devloop.net.netlink import NETLINK_ROUTE, add_address, connect, link_up, local_default

ADDRESSES = ("198.18.0.1", "fd5e:76c0:6f70::1")
"""What a service that asks for its address sees, if it does not get its pod's: RFC 2544's and RFC 4193's ranges."""
MAX_FDS = 64
"""Descriptors in one message (SCM_MAX_FD is 253)."""
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000  # sched.h
_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75  # linux/in.h, linux/in6.h
_SO_MARK = 36
_IPV6_RECVPKTINFO, _IP_PKTINFO = 49, 8
_IPV6_RECVORIGDSTADDR, _IP_RECVORIGDSTADDR = 74, 20
_DNS_PORT = 53
_BACKLOG = 4096
_RECEIVE_BYTES = 4 << 20
"""Of datagrams that the engine has not read yet; the kernel gives what its own limit allows."""

_libc = ctypes.CDLL(None, use_errno=True)


class StepError(Exception):
    """A step of `enter` that the kernel refused; `step` is a key of `devloop.net.check.HINTS`."""

    def __init__(self, step: str, error: OSError) -> None:
        super().__init__(f"{step}: {error.strerror}")
        self.step = step
        self.errno = error.errno or 0
        self.strerror = error.strerror or str(error)


def _unshare(flags: int) -> None:
    if _libc.unshare(flags):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def unshare() -> bool:
    """Enter new network and mount namespaces; whether a user namespace was needed for it. Raises StepError.

    The calling process must have one thread (unshare(2)).
    """
    uid, gid = os.getuid(), os.getgid()
    if uid == 0 and _may_send_raw():  # root in a container may lack that one alone; in a namespace of its own it may
        try:
            _unshare(_CLONE_NEWNET | _CLONE_NEWNS)
        except PermissionError:
            pass  # root in a container
        else:
            return False
    try:
        _unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWNS)
    except OSError as error:
        raise StepError("unshare", error) from None
    try:
        # user_namespaces(7): groups can be mapped only when setgroups(2) is given up.
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    except OSError as error:
        raise StepError("map", error) from None
    return True


def _may_send_raw() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW).close()
    except OSError:
        return False
    return True


def _has_ipv6() -> bool:
    """Whether this namespace has IPv6, which a host without it hands down but a namespace may switch on."""
    switch = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
    try:
        if switch.read_text().strip() != "0":
            switch.write_text("0")
    except OSError:
        return False
    return True


def _allow_low_ports() -> bool:
    """Let an ordinary user listen on 80. Where /proc/sys is read-only (containers), it stays as it is."""
    try:
        Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0")
    except OSError:
        return False
    return True


def _listener(kind: int, port: int, *, ipv6: bool) -> socket.socket:
    """A socket on every address of both families."""
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    if ipv6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # So that answers can come from the address that was asked, whosever it is.
    sock.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
    if ipv6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    if kind == socket.SOCK_DGRAM:
        sock.setsockopt(socket.SOL_IP, _IP_PKTINFO, 1)
        if ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
    sock.bind(("::" if ipv6 else "0.0.0.0", port))
    if kind == socket.SOCK_STREAM:
        sock.listen(_BACKLOG)
    return sock


def _datagrams(*, ipv6: bool) -> socket.socket:
    """Gets all UDP that leaves, with where it was sent to."""
    sock = _listener(socket.SOCK_DGRAM, rules.PROXY_PORT, ipv6=ipv6)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
    sock.setsockopt(socket.SOL_IP, _IP_RECVORIGDSTADDR, 1)
    if ipv6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVORIGDSTADDR, 1)
    return sock


def _raw(family: int) -> socket.socket:
    """Sends whole packets, and receives none (raw(7), IPPROTO_RAW)."""
    sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW)
    sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, rules.MARK)
    return sock


def inner_sockets(count: int, *, ipv6: bool) -> list[socket.socket]:
    """TCP sockets for connections into this namespace; with IPv6 they reach IPv4 too, as ::ffff:127.0.0.1."""
    made = []
    for _ in range(count):
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, rules.MARK)
        if ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.append(sock)
    return made


class Namespace:
    """The holder's side. Until `enter` was obeyed, nothing has changed for this process."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._ipv6 = False
        self.entered = False
        self._grafts = Grafts()

    def fileno(self) -> int:
        """To be polled for reading."""
        return self._sock.fileno()

    def close(self) -> None:
        """Let go of the engine's socket; the namespaces stay as long as processes are in them."""
        self._sock.close()

    def refresh(self) -> None:
        """To be called before a process is started: mends mounts that the host has taken away."""
        if self.entered:
            try:
                self._grafts.refresh()
            except OSError as error:
                print(f"devloop: can't mount again: {error}", file=sys.stderr)

    def obey(self) -> bool:
        """Carry out one message and answer it. False if the engine is gone."""
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, 1 << 20, 1)
        except OSError:
            return False
        for fd in fds:
            os.close(fd)
        if not data:
            return False
        message: dict[str, Any] = json.loads(data)
        made: list[socket.socket] = []
        try:
            answer = self._carry_out(message, made)
        except StepError as error:
            answer = {"error": error.strerror, "step": error.step, "errno": error.errno}
        except OSError as error:
            answer = {"error": str(error), "step": message["op"], "errno": error.errno or 0}
        try:
            socket.send_fds(self._sock, [json.dumps(answer).encode()], [sock.fileno() for sock in made])
        except OSError:
            return False
        finally:
            for sock in made:
                sock.close()
        return True

    def _carry_out(self, message: dict[str, Any], made: list[socket.socket]) -> dict[str, Any]:
        """The answer; sockets that go with it are added to `made`."""
        match message["op"]:
            case "enter":
                return self._enter(tuple(message["addresses"]), made)
            case "sockets":
                made += inner_sockets(min(message["count"], MAX_FDS), ipv6=self._ipv6)
            case "ports":
                rules.change_host_ports(message["add"], message["remove"])
            case "mount":
                return self._mount(message)
        return {"ok": True}

    def _enter(self, addresses: tuple[str, ...], made: list[socket.socket]) -> dict[str, Any]:
        user = unshare()
        step = "mount"
        try:
            private()
            step = "network"
            with connect(NETLINK_ROUTE) as route:
                link_up(route)
                self._ipv6 = _has_ipv6()
                own = tuple(a for a in addresses if self._ipv6 or ":" not in a)
                for address in own:
                    add_address(route, address)
                    local_default(route, address)
            step = "nftables"
            rules.install(own)
            low_ports = _allow_low_ports()
            step = "sockets"
            made.append(_listener(socket.SOCK_STREAM, rules.PROXY_PORT, ipv6=self._ipv6))
            made.append(_listener(socket.SOCK_DGRAM, _DNS_PORT, ipv6=self._ipv6))
            made.append(_listener(socket.SOCK_STREAM, _DNS_PORT, ipv6=self._ipv6))
            made.append(diag_socket())
            made.append(_datagrams(ipv6=self._ipv6))
            made += [_raw(each) for each in (socket.AF_INET, *((socket.AF_INET6,) if self._ipv6 else ()))]
        except OSError as error:
            raise StepError(step, error) from None
        self.entered = True
        found = {"user": user, "ipv6": self._ipv6, "low_ports": low_ports}
        return {"ok": True, "pid": os.getpid(), **found}

    def _mount(self, message: dict[str, Any]) -> dict[str, Any]:
        failed = {}
        for target in message["remove"]:
            self._grafts.remove(target)
        for item in message["binds"]:
            new = Bind(item["source"], item["target"], item["read_only"])
            try:
                self._grafts.add(new)
            except (OSError, ValueError) as error:
                failed[new.target] = str(error)
        return {"ok": True, "made": self._grafts.made, "failed": failed}


def main() -> None:
    """Enter namespaces, and keep them until the socket is closed: for checks (`python -I -S namespace.py FD`)."""
    namespace = Namespace(socket.socket(fileno=int(sys.argv[1])))
    while namespace.obey():
        pass


if __name__ == "__main__":
    main()

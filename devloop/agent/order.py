"""Which way the last bytes of each connection went, request or answer: told by the kernel of the pod's network.

The clock of tcp_info ticks every few milliseconds, and a request and its answer often share a tick. So the packets'
heads are asked for, by nftables' `log` and nfnetlink_log, in the order in which they pass.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection

from .goaway import possible
from .packetlog import SNAP, PacketLog, Segment, nft, segment

TABLE = "devloop_order"
GROUP = 19998
READ_SECONDS = 0.1
"""At a time: there is more to do."""

Ends = tuple[int, str, int]
"""The pod's port, the client's address and its port."""


def rules(ports: Collection[int]) -> str:
    """For nft: log what carries something to and from these ports, but within the pod."""
    numbers = "{ " + ", ".join(str(int(port)) for port in sorted(ports)) + " }"
    log = f"log group {GROUP} snaplen {SNAP} queue-threshold 1"
    return (
        f"add table inet {TABLE}\nflush table inet {TABLE}\n"
        f"add chain inet {TABLE} asked {{ type filter hook input priority 0; policy accept; }}\n"
        f"add chain inet {TABLE} answered {{ type filter hook output priority 0; policy accept; }}\n"
        f'add rule inet {TABLE} asked iifname != "lo" tcp dport {numbers} {log}\n'
        f'add rule inet {TABLE} answered oifname != "lo" tcp sport {numbers} {log}\n'
    )


def ends_of(said: Segment, ports: Collection[int]) -> tuple[Ends, bool]:
    """Whose packet it is, and whether it goes to the pod."""
    if said.target_port in ports:
        return (said.target_port, said.source, said.source_port), True
    return (said.source_port, said.target, said.target_port), False


def spoken(content: bytes) -> str:
    """What a server speaks that says this: `http`, `http2`, or nothing if that can't be told from it."""
    if content.startswith(b"HTTP/1.1 "):
        return "http"
    if len(content) >= 9 and possible(content[:9]):
        end = 9 + int.from_bytes(content[:3], "big")
        if len(content) == end or (len(content) >= end + 9 and possible(content[end : end + 9])):
            return "http2"
    return ""


class Order:
    """While it is open. OSError where the kernel can't tell."""

    def __init__(self, ports: Collection[int]) -> None:
        self._ports = frozenset(ports)
        self.asked: dict[Ends, bool] = {}
        """Whether the last bytes were the client's, of each connection on which there were any."""
        self.spoken: dict[Ends, str] = {}
        """What was seen to be spoken: `http` or `http2`."""
        self._log = PacketLog(GROUP)  # another one at work here has the group, and a table of that name
        try:
            nft(rules(self._ports))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave nothing in the pod's network."""
        with contextlib.suppress(OSError):
            nft(f"add table inet {TABLE}\ndelete table inet {TABLE}\n")
        self._log.close()  # last: who comes next has a table of that name

    def read(self) -> bool:
        """Take what has passed by now. False: some was missed, and nothing is known any more."""
        until = time.monotonic() + READ_SECONDS
        try:
            while time.monotonic() < until:
                for packet in self._log.read():
                    said = segment(packet)
                    if said is None or not said.carries:
                        continue
                    ends, asked = ends_of(said, self._ports)
                    self.asked[ends] = asked
                    if not asked and (speaks := spoken(said.content)):
                        self.spoken[ends] = speaks
        except BlockingIOError:
            return True
        except OSError:  # ENOBUFS
            pass
        # Or more come than can be read, and what is known is older than what was found.
        self.asked.clear()
        return False

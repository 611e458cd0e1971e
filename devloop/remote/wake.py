"""What a laptop goes through: sleep, and another network. Either way a link is to look at once.

Waiting for a keepalive costs seconds, and after a sleep a connection may look alive until something is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Callable

TICK_SECONDS = 1.0
# A busy machine is late by some tenths of a second; a sleep is longer.
SLEPT_SECONDS = 3.0
# One change of network is a burst of messages.
SETTLE_SECONDS = 0.3
# rtnetlink(7): a link, an address or a route of either family has come or gone.
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400


def _suspended_clock() -> float:
    """Seconds, counted during sleep as well."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.time() if clock is None else time.clock_gettime(clock)


class WakeWatch:
    """Calls `woken(why)` after a sleep or a change of the network. `start` and `close` it."""

    def __init__(
        self,
        woken: Callable[[str], None],
        *,
        running: Callable[[], float] = time.monotonic,
        passed: Callable[[], float] = _suspended_clock,
    ) -> None:
        self._woken = woken
        self._running = running
        self._passed = passed
        self._timer: asyncio.TimerHandle | None = None
        self._settling: asyncio.TimerHandle | None = None
        self._netlink: socket.socket | None = None
        self._offset = 0.0

    def start(self) -> None:
        """Begin to watch."""
        self._offset = self._passed() - self._running()
        self._arm()
        if sys.platform == "linux":
            # Without it (a sandbox that forbids netlink) the keepalive remains.
            with contextlib.suppress(OSError):
                self._listen()

    def _listen(self) -> None:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        try:
            netlink.bind((0, _GROUPS))
        except OSError:
            netlink.close()
            raise
        self._netlink = netlink
        asyncio.get_running_loop().add_reader(netlink, self._heard)

    def _heard(self) -> None:
        assert self._netlink is not None
        # ENOBUFS means that some were lost: a change all the same.
        with contextlib.suppress(OSError):
            while self._netlink.recv(1 << 16):
                pass
        if self._settling is None:
            loop = asyncio.get_running_loop()
            self._settling = loop.call_later(SETTLE_SECONDS, self._settled)

    def _settled(self) -> None:
        self._settling = None
        self._woken("the network has changed")

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TICK_SECONDS, self.tick)

    def tick(self) -> None:
        """Compare the clock that stands still during sleep with the one that does not."""
        self._arm()
        offset = self._passed() - self._running()
        slept, self._offset = offset - self._offset, offset
        if slept > SLEPT_SECONDS:
            self._woken(f"this machine has slept for {slept:.0f} s")

    def close(self) -> None:
        """Stop."""
        for timer in (self._timer, self._settling):
            if timer is not None:
                timer.cancel()
        if self._netlink is not None:
            asyncio.get_running_loop().remove_reader(self._netlink)
            self._netlink.close()
            self._netlink = None

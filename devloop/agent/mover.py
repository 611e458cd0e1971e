"""Moves connections that lead to a pod, from within its network, so that no request is lost.

It is what an ephemeral container with NET_ADMIN runs for `devloop move`: clients that were connected before a Service
was attached connect anew then, and arrive where the Service leads now. There are two ways:

- What is idle is ended by sock_diag's SOCK_DESTROY (`diag.py`): its client reads a reset, as from any server that
  closes what lies idle. What a connection is in the midst of can't be read from outside, but when bytes last went which
  way can (`order.py`), and whether all have arrived. `due` says what is taken for "between two requests".
- What is in use, and all of HTTP/2, is taken over (`takeover.py`). Its client is told, in its protocol's own words, to
  make the next request on another connection (`goaway.py`); what is under way goes on, through this process, for as
  long as it takes (`between.py`). Then this process ends only when the last of these connections has.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import diag
from .between import Crowd, speaks_http2
from .diag import Connection
from .gateways import gateways
from .order import Order
from .takeover import AT_ONCE, Takeover

PLAN = "DEVLOOP_MOVE"
"""The variable with the plan, as JSON: see `Plan`."""
MESSAGE = Path("/dev/termination-log")
"""What stands there when a container ends is in its pod's status."""
LOOK_SECONDS = 0.01
PASS_SECONDS = 0.05
"""The same while it has something to pass on."""
QUIET_MS = 100
"""So long after an answer nothing more of it is expected."""
DOUBTFUL_MS = 10_000
"""The same where nothing tells which came last, the request or the answer: both were in one tick of the clock."""
STREAMS_MS = 5000
"""HTTP/2: the last word of a call may be the client's (it opens windows, answers pings), so quiet is all there is."""
LONGEST = 4
"""So many times the plan's seconds it goes on at most, while some move."""
AGAIN_SECONDS = 0.6
"""Between two tries to take a connection over: a kernel answers what is out of its window twice a second."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be ended."""

    ports: Mapping[int, str]
    """The pod's own ports, and what each speaks (`protocols.protocol_of`)."""
    known: Collection[str]
    """Addresses of clients that are left alone: the agent's, the node's."""
    seconds: float
    """How long a connection may take to be between two requests, from when the last one has moved."""
    force: bool = False
    """End all at once, whatever is under way."""
    take: bool = False
    """Take over what is in use. Whoever asks for it reads what is printed, since that may take long to end."""

    def text(self) -> str:
        """For the variable."""
        return json.dumps(
            {
                "ports": self.ports,
                "known": list(self.known),
                "seconds": self.seconds,
                "force": self.force,
                "take": self.take,
            }
        )

    @classmethod
    def read(cls, text: str) -> Plan:
        """The reverse. ValueError, KeyError."""
        found = json.loads(text)
        ports = {int(port): str(speaks) for port, speaks in found["ports"].items()}
        known, seconds = tuple(map(str, found["known"])), float(found["seconds"])
        return cls(ports, known, seconds, bool(found["force"]), bool(found["take"]))


def due(found: Connection, speaks: str, asked: bool | None, quiet_ms: int = QUIET_MS) -> bool:
    """Whether it is between two requests, as far as that can be told.

    `asked`: whether the last bytes that passed were the client's; None: none have passed while it was looked at.
    `quiet_ms`: for how long HTTP/1.1 has to be quiet after an answer.
    """
    if found.queued or speaks in ("tcp", "tls"):
        return False
    quiet = min(found.sent_ms, found.received_ms)
    if speaks == "http2":
        return quiet >= STREAMS_MS
    if asked is None and found.sent_ms == found.received_ms:
        return quiet >= DOUBTFUL_MS and not found.more_asked
    if asked is None:
        asked = found.sent_ms > found.received_ms
    return not asked and quiet >= (quiet_ms if speaks == "http" else STREAMS_MS)  # it may be HTTP/2


class Mover:
    """One run."""

    def __init__(self, plan: Plan, known: Collection[str]) -> None:
        self._plan = plan
        self._passed = {*known, *plan.known}
        self._stack = contextlib.ExitStack()
        self._takeover: Takeover | None = None
        self._crowd: Crowd | None = None
        self._speaks: dict[tuple[str, int], bool] = {}
        self._again = 0.0
        self.why = ""
        """Why nothing is taken over, if something should have been."""

    def close(self) -> None:
        """Cut what was taken over, and leave nothing."""
        self._stack.close()

    def move(self) -> tuple[int, Counter[str]]:
        """Returns how many were moved, and by client how many were not. OSError."""
        plan = self._plan
        ended = moved = 0
        until = time.monotonic() + plan.seconds
        last = time.monotonic() + LONGEST * plan.seconds
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(diag.opened())
            order: Order | None = None
            # Each packet is looked at, which takes time: what can be taken over does without.
            ports = [port for port, speaks in plan.ports.items() if not plan.take or speaks == "detect"]
            if not plan.force and ports:
                with contextlib.suppress(OSError):  # then the clock alone tells
                    order = stack.enter_context(contextlib.closing(Order(ports)))
            while True:
                left: list[Connection] = []
                found = diag.connections(sock, plan.ports)
                known_order = order is not None and order.read()  # after that: it is newer than what was found
                for each in found:
                    if each.client in self._passed or ipaddress.ip_address(each.client).is_loopback:
                        continue
                    asked = order.asked.get(each.ends) if order and known_order else None
                    if plan.force or self._ends(each, asked):
                        ended += diag.destroy(sock, each)
                    else:
                        left.append(each)
                now = time.monotonic()
                if moved < (moved := ended + (self._crowd.told if self._crowd else 0)):
                    until = min(now + plan.seconds, last)  # a busy node takes its time
                used = [(each, speaks) for each in left if (speaks := self._in_use(each, order))]
                self._take(sock, used, now)
                untold = [each.pair.found for each in self._crowd.members if not each.last.said] if self._crowd else []
                if not (left or untold) or now >= until:
                    told = self._crowd.told if self._crowd else 0
                    return ended + told, Counter(each.client for each in (*left, *untold))
                self._pass_on()

    def linger(self) -> None:
        """Until the last connection that was taken over has ended."""
        if self._crowd is None:
            return
        stopped: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
        while self._crowd.members and not (stopped and self._crowd.answered):
            self._crowd.work(1.0)

    def _pass_on(self) -> None:
        if self._crowd is None:
            time.sleep(LOOK_SECONDS)
        else:
            self._crowd.work(PASS_SECONDS)

    def _ends(self, found: Connection, asked: bool | None) -> bool:
        speaks = self._plan.ports[found.port]
        if speaks == "http2" and self._takes(found):
            return False
        return due(found, speaks, asked, QUIET_MS if not self._plan.take or self.why else STREAMS_MS)

    def _takes(self, found: Connection) -> bool:
        """Whether a connection of HTTP/2 can be: it is what is spoken there, without TLS."""
        if not self._plan.take or self.why:
            return False
        place = found.address, found.port
        if place not in self._speaks:
            self._speaks[place] = speaks_http2(*place)
        return self._speaks[place]

    def _spoken(self, found: Connection, order: Order | None) -> str:
        """What is spoken on a connection whose packets were seen; empty: that is not known."""
        speaks = self._plan.ports[found.port]
        return order.spoken.get(found.ends, "") if speaks == "detect" and order is not None else speaks

    def _in_use(self, found: Connection, order: Order | None) -> str:
        """What it speaks, if it is to be taken over."""
        speaks = self._spoken(found, order)
        if not self._plan.take or self._plan.force or speaks not in ("http", "http2"):
            return ""
        return speaks if speaks == "http" or self._takes(found) else ""

    def _take(self, sock: socket.socket, chosen: list[tuple[Connection, str]], now: float) -> None:
        if not chosen or now < self._again or self.why:
            return
        try:
            if self._takeover is None or self._crowd is None:
                self._takeover = self._stack.enter_context(contextlib.closing(Takeover()))
                self._crowd = self._stack.enter_context(contextlib.closing(Crowd(self._takeover)))
            speaks = {each.identity: protocol for each, protocol in chosen}
            for pair in self._takeover.take(sock, [each for each, _ in chosen[:AT_ONCE]]):
                self._crowd.add(pair, speaks[pair.found.identity])
        except OSError as problem:
            if problem.errno != errno.EBUSY:  # another one is at it here
                self.why = problem.strerror or str(problem)
        self._again = time.monotonic() + AGAIN_SECONDS


def main() -> int:
    """The exit code: 0, or 1 if nothing can be moved here; then the message says why."""
    code = 0
    with contextlib.ExitStack() as stack:
        try:
            mover = stack.enter_context(contextlib.closing(Mover(Plan.read(os.environ.get(PLAN, "")), gateways())))
            ended, left = mover.move()
            said = {"ended": ended, "left": diag.fitting(left), "why": mover.why}
            _say(said)
            mover.linger()
        except OSError as problem:
            why = problem.strerror or str(problem)
            if problem.errno == errno.EOPNOTSUPP:
                why = "the node's kernel can't end connections of others (CONFIG_INET_DIAG_DESTROY)"
            _say({"error": why})
            code = 1
        except (ValueError, KeyError) as problem:
            _say({"error": f"this is no plan: {problem}"})
            code = 1
    return code


def _say(said: Mapping[str, object]) -> None:
    text = json.dumps(said)
    print(text, flush=True)
    with contextlib.suppress(OSError):
        MESSAGE.write_text(text)


if __name__ == "__main__":
    sys.exit(main())

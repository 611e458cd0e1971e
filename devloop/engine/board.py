"""What a client is shown of each service: the core's state beside the history of its loops."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterable

from devloop.core.service import ServiceLife
from devloop.metrics.stats import WAITED_FOR, percentile
from devloop.protocol import Loop, Outcome, ServiceStatus, State

HISTORY = 200
"""Loops of each service that p50 and p95 are taken from."""
SPARKLINE = 32
"""Loops of each service whose totals a client gets."""


class Board:
    """Makes a ServiceStatus of a ServiceLife."""

    def __init__(self) -> None:
        self._last: dict[str, Loop] = {}
        self._totals: dict[str, deque[int]] = defaultdict(lambda: deque(maxlen=HISTORY))
        self._percentiles: dict[str, tuple[int, int]] = {}

    def remember(self, loops: Iterable[Loop]) -> None:
        """Loops that have ended, oldest first."""
        for loop in loops:
            self._last[loop.service] = loop
            if loop.outcome is Outcome.OK and loop.cause in WAITED_FOR:
                totals = self._totals[loop.service]
                totals.append(loop.waited)
                self._percentiles[loop.service] = (percentile(totals, 50), percentile(totals, 95))

    def amend(self, loop: Loop) -> None:
        """A loop that is known has a stamp more."""
        if self._last.get(loop.service, loop).id == loop.id:
            self._last[loop.service] = loop

    def status(self, life: ServiceLife) -> ServiceStatus:
        """All that there is to show of one service now."""
        spec = life.spec
        totals = self._totals[spec.name]
        p50, p95 = self._percentiles.get(spec.name, (None, None))
        return ServiceStatus(
            name=spec.name,
            mode=life.mode.value,
            state=life.state,
            reason=life.reason,
            since_at=unix(life.since),
            pid=life.pid,
            exit_code=life.exit_code,
            restarts=max(0, life.starts - 1),
            ports=dict(spec.ports),
            groups=spec.groups,
            depends_on=tuple(spec.depends_on),
            task=spec.task,
            has_build=spec.build is not None,
            stale=life.stale,
            opened_at=None if life.timeline is None else unix(life.timeline.began),
            last_loop=self._last.get(spec.name),
            loops=len(totals),
            p50=p50,
            p95=p95,
            history=tuple(totals)[-SPARKLINE:],
            stuck=life.stuck if life.state is State.WAITING else "",
            tty=spec.tty,
            prompt=life.prompt,
        )


def unix(monotonic: int) -> int:
    """A monotonic time as Unix time, in nanoseconds; 0 stays 0, which means never."""
    return monotonic + time.time_ns() - time.monotonic_ns() if monotonic else 0

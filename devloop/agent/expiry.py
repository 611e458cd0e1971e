"""Which leases are over, as one observer sees it. Pure: the time comes in.

As in Kubernetes' own leader election, clocks are not compared: a lease is over when it has not changed for its
duration on the observer's clock. So an observer that has just begun waits a whole duration before it acts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .objects import LEASE_SECONDS, Dead


class Expiry:
    """Remembers when each lease was last seen to change. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Dead, float, float]] = {}

    def see(self, leases: Iterable[dict[str, Any]], now: float) -> None:
        """What there is now."""
        seen: dict[str, tuple[Dead, float, float]] = {}
        for each in leases:
            name, spec = each["metadata"]["name"], each.get("spec") or {}
            sign = Dead.seen(each)
            seconds = float(spec.get("leaseDurationSeconds") or LEASE_SECONDS)
            before = self._seen.get(name)
            since = before[1] if before is not None and before[0] == sign else now
            seen[name] = (sign, since, seconds)
        self._seen = seen

    def over(self, now: float) -> dict[str, Dead]:
        """Those that are over, by their names."""
        return {name: sign for name, (sign, since, seconds) in self._seen.items() if now - since >= seconds}

    def next(self, now: float) -> float | None:
        """Seconds until the next one will be over if nobody renews it; None if there is none."""
        left = [since + seconds - now for _, since, seconds in self._seen.values() if now - since < seconds]
        return min(left, default=None)

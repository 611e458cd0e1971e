"""About how many requests per second connections carry, by the packets that the kernel counts of each. Pure.

In HTTP/1.1 a short request is one packet with something in it, and its answer one or more; a long request is several,
and its answer at least one. So of what came and what went the smaller number is that of the requests.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

LEAST_SECONDS = 1.0
"""Between two looks that are compared."""
K = TypeVar("K", bound=Hashable)
Packets = tuple[int, int]
"""With something in them, since a connection was made: those that came, and those that went."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What two looks at connections tell."""

    rate: float
    """Requests per second."""
    known: int
    """Of so many connections it is known what they carried. New ones were seen once. Of one on which packets went one
    way alone nothing is known: a stream, or a request that takes longer than the time between two looks."""
    held: int
    """So many connections there are."""

    def document(self) -> list[float]:
        """For the wire."""
        return [self.rate, self.known, self.held]

    @classmethod
    def read(cls, document: Any) -> Compared | None:
        """The reverse; None for whatever else somebody says."""
        try:
            rate, known, held = document
            found = cls(float(rate), int(known), int(held))
        except (TypeError, ValueError, OverflowError):
            return None
        return found if math.isfinite(found.rate) and found.rate >= 0 and 0 <= found.known <= found.held else None


def estimate(found: Iterable[Compared | None]) -> float | None:
    """Of all of them together. None: it is not known of most, or nothing is seen of those of which it is."""
    rate, known, held = 0.0, 0, 0
    for each in found:
        if each is None:
            return None
        rate, known, held = rate + each.rate, known + each.known, held + each.held
    if 2 * known < held or (not rate and known < held):
        return None
    return float(f"{rate:.3g}")


class RequestRate(Generic[K]):
    """Of the connections of one place. It keeps what it was shown, for the next look."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, Mapping[K, Packets]]] = []
        """At most two, the newest last, at least `LEAST_SECONDS` apart: more than one may look."""

    def look(self, at: float, carried: Mapping[K, Packets], held: int) -> Compared | None:
        """Compare with the look before. `at`: seconds of a clock of that place; `held`: how many connections there are,
        of which some may lack in `carried`. None if there is nothing to compare with."""
        if self._samples and at < self._samples[-1][0]:
            self._samples.clear()  # another machine's clock, or one that was set
        before = next((each for each in reversed(self._samples) if at - each[0] >= LEAST_SECONDS), None)
        if not self._samples or before is self._samples[-1]:
            self._samples = [*self._samples[-1:], (at, carried)]
        if before is None:
            return Compared(0.0, 0, 0) if not held else None
        requests = known = 0
        for key, (came, went) in carried.items():
            if key not in before[1]:
                continue
            more_came, more_went = came - before[1][key][0], went - before[1][key][1]
            # The counters have 32 bits and begin anew: less than before tells nothing.
            if (more_came > 0) == (more_went > 0) and more_came >= 0 and more_went >= 0:
                known += 1
                requests += min(more_came, more_went)
        return Compared(requests / (at - before[0]), min(known, held), held)

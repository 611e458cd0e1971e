"""In which order the events come: random, by a seed, and always such that each is possible when its turn comes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

ATTACHABLE = ("web", "checkout", "prices", "color")
"""Services that developers take over, by the way of their Service."""


@dataclass(frozen=True, slots=True)
class Step:
    """One event, and the service that it is about, if it is about one."""

    kind: str
    service: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind} {self.service}".strip()


HELD = ("leave", "toggle", "reload", "crash", "scale-to-zero", "move")
"""About a service that is attached."""
ANY = ("rollout", "apply", "port-renamed")
"""About any; of one that is attached more often than not."""
ONE = {"two-developers": "web", "service-deleted": "color"}
"""About this one."""
WHOLE = ("api-server-cut", "queue-replaced", "agent-killed", "engine-killed", "pods-taken")
ENDED = ("agent-killed", "engine-killed", "engine-gone")
"""Of no interest while nothing is attached."""
LONG = ("engine-gone",)
"""What takes a minute: not in a short run."""
KINDS = (*HELD, *ANY, *ONE, *WHOLE)
"""All but `attach`, which comes before what needs it, and now and then besides."""


def schedule(seed: int, *, long: bool = False) -> Iterator[Step]:
    """Without end: rounds, each with every kind of event once, in another order."""
    kinds = (*KINDS, *(LONG if long else ()))
    chance = random.Random(seed)
    attached: set[str] = set()

    def attach() -> Step:
        attached.add(chosen := chance.choice(sorted(set(ATTACHABLE) - attached)))
        return Step("attach", chosen)

    while True:
        for kind in chance.sample(kinds, len(kinds)):
            more = len(attached) < len(ATTACHABLE) - 1 and chance.random() < 0.2
            if more or (not attached and (kind in HELD or kind in ENDED)):
                yield attach()
            if kind in HELD:
                service = chance.choice(sorted(attached))
            elif kind in ANY:
                near = attached and chance.random() < 0.8
                service = chance.choice(sorted(attached) if near else ATTACHABLE)
            else:
                service = ONE.get(kind, "")
            if kind == "two-developers" and service in attached:
                # Every request of it is one developer's; the other has to wait.
                attached.discard(service)
                yield Step("leave", service)
            yield Step(kind, service)
            if kind == "leave":
                attached.discard(service)
            elif kind == "engine-gone":
                attached.clear()

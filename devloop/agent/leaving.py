"""Services that led to this agent and do so no more, but whose clients are still connected here.

Clients keep connections. Their Service leads elsewhere, and nobody new comes; but who is connected has to be served, by
the original, until they have gone. So the listener stays. Those that ask are told to connect anew with the answer, and
those in the midst of something (a WebSocket, a stream, plain TCP) go on for as long as it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from .plan import ServicePlan

SETTLE_SECONDS = 10.0
"""For so long somebody new may come, by a node that has not heard yet; and for so long after the last connection the
clusters stay, for who has come just when the listener went."""
MOST_SECONDS = 86400.0
"""A connection of which nobody has said that it is over (a client's node that was lost) keeps an agent no longer."""


@dataclass(slots=True)
class _Gone:
    plan: ServicePlan
    since: float
    settled: bool = False
    empty: float | None = None
    """Since when it is known to have no connection."""


class Leaving:
    """See the module. `original`: where the pods of a plan's port are reached by now, as far as that can be told."""

    def __init__(self, original: Callable[[ServicePlan], ServicePlan]) -> None:
        self._original = original
        self._gone: dict[str, _Gone] = {}

    def __bool__(self) -> bool:
        return bool(self._gone)

    @property
    def plans(self) -> Iterable[ServicePlan]:
        """As they were."""
        return [each.plan for each in self._gone.values()]

    @property
    def pods(self) -> set[str]:
        """The tags of pods whose door is still needed."""
        return {each.plan.pod for each in self._gone.values() if each.plan.pod}

    def listeners(self, service: str) -> dict[int, int]:
        """The listeners of a Service by its port: whoever attaches it again takes these, and nobody is disturbed."""
        for each in self._gone.values():
            if each.plan.name == service and not each.plan.pod:
                return {port.number: port.listener for port in each.plan.ports}
        return {}

    def endpoints(self, service: str, port: int) -> tuple[tuple[str, int], ...]:
        """The pods of a Service's port as they were."""
        plan = self._gone[service].plan if service in self._gone else None
        return next((each.endpoints for each in plan.ports if each.number == port), ()) if plan is not None else ()

    def leave(self, plan: ServicePlan, now: float) -> None:
        """Nobody has anything of this any more."""
        if plan.key not in self._gone:
            self._gone[plan.key] = _Gone(replace(plan, locals=(), leaving=True), now)

    def back(self, keys: Collection[str]) -> None:
        """These are attached again."""
        for key in self._gone.keys() & set(keys):
            del self._gone[key]

    def kept(self) -> dict[str, _Gone]:
        """For `put_back`."""
        return dict(self._gone)

    def put_back(self, kept: dict[str, _Gone]) -> None:
        """As it was then: Envoy has not taken what came of it since."""
        self._gone = kept

    def now(self, now: float) -> dict[str, ServicePlan]:
        """What Envoy still has to do for them. Those that are over are forgotten."""
        self._gone = {key: each for key, each in self._gone.items() if not _over(each, now)}
        found: dict[str, ServicePlan] = {}
        for key, each in self._gone.items():
            each.settled = now - each.since > SETTLE_SECONDS
            plan = self._original(each.plan) if each.settled else each.plan
            found[key] = replace(plan, listening=each.empty is None)
        return found

    def due(self, now: float) -> bool:
        """It has to be looked at how many connections there are."""
        return any(each.empty is None and now - each.since > SETTLE_SECONDS for each in self._gone.values())

    def counted(self, connections: Mapping[int, int], now: float) -> bool:
        """So many connections each listener has. Whether Envoy has something else to do by that."""
        ended = False
        for each in self._gone.values():
            if each.empty is None and now - each.since > SETTLE_SECONDS:
                left = sum(connections.get(port.listener, 0) for port in each.plan.ports)
                if not left or now - each.since > MOST_SECONDS:
                    each.empty, ended = now, True
        return ended

    def changes(self, now: float) -> bool:
        """Envoy has something else to do by the time that has gone by."""
        return any(
            _over(each, now) or (not each.settled and now - each.since > SETTLE_SECONDS) for each in self._gone.values()
        )


def _over(gone: _Gone, now: float) -> bool:
    return gone.empty is not None and now - gone.empty > SETTLE_SECONDS

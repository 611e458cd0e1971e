"""Which routes get into each other's way. Pure.

Paths and methods are in every request, so two routes that don't exclude each other there do overlap. Headers are
not: `x-user=ada` and `x-team=blue` meet only in a request that was made for both, and then the older one has it.
So two routes are kept apart by headers if they want different things of the same one, or if each wants one that the
other doesn't ask for.

A share is taken after all whole routes, of what these leave. Several shares of the same requests are laid side
by side, as long as they stay within 100 percent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from .patterns import Effort, matches
from .spec import WHOLE, Match, Route, Spec


def exclude(one: Match, other: Match, effort: Effort | None = None) -> bool:
    """No text can be as both want it. Two regular expressions are not compared: they are taken to meet, and so is one
    that can't be told within `effort`. Either may be anybody's."""
    if one.how == "regex":
        one, other = other, one
    if other.how == "regex":
        return one.how == "exact" and matches(other.value, one.value, effort) is False
    if one.how == "exact":
        return other.value != one.value if other.how == "exact" else not one.value.startswith(other.value)
    if other.how == "exact":
        return not other.value.startswith(one.value)
    return not (one.value.startswith(other.value) or other.value.startswith(one.value))


@dataclass(frozen=True, slots=True)
class _Asked:
    """A route, and what it asks of a request that not every one has."""

    route: Route
    headers: Mapping[tuple[str, str], Match]
    keys: AbstractSet[tuple[str, str]]
    """Of the headers. A server's name is beside them: by another one."""
    conditions: tuple[object, ...]

    @classmethod
    def of(cls, route: Route) -> _Asked:
        headers = {each.key: each.match for each in route.headers}
        keys = frozenset(headers) | ({(":sni", "")} if route.sni else frozenset())
        same = frozenset((each.key, each.match) for each in route.headers)
        return cls(route, headers, keys, (same, route.path, route.method, route.sni))


def apart(one: Route, other: Route) -> bool:
    """No ordinary request is taken by both."""
    return _apart(_Asked.of(one), _Asked.of(other), Effort())


def _apart(asked: _Asked, by_other: _Asked, effort: Effort) -> bool:
    one, other = asked.route, by_other.route
    if one.method and other.method and one.method != other.method:
        return True
    if one.path and other.path and exclude(one.path, other.path, effort):
        return True
    if one.sni and other.sni and _servers_apart(one.sni, other.sni):
        return True
    both = asked.keys & by_other.keys
    mine, yours = asked.headers, by_other.headers
    if any(exclude(mine[key], yours[key], effort) for key in both if key in mine):
        return True
    return len(asked.keys) > len(both) and len(by_other.keys) > len(both)


def _servers_apart(one: str, other: str) -> bool:
    """No name of a server is as both want it; `*.NAME` is any below NAME."""
    if one.startswith("*.") and other.startswith("*."):
        return not (one[1:].endswith(other[1:]) or other[1:].endswith(one[1:]))
    if other.startswith("*."):
        one, other = other, one
    return not (other.endswith(one[1:]) and other != one[1:]) if one.startswith("*.") else one != other


def overlap(one: Route, other: Route) -> bool:
    """The two can't be held by two people."""
    return _overlap(_Asked.of(one), _Asked.of(other), Effort())


def _overlap(asked: _Asked, by_other: _Asked, effort: Effort) -> bool:
    one, other = asked.route, by_other.route
    if (one.share == WHOLE) != (other.share == WHOLE):
        # A share is of what is left; all requests leave nothing.
        whole = one if one.share == WHOLE else other
        return not whole.conditional
    if _apart(asked, by_other, effort):
        return False
    if one.share < WHOLE and asked.conditions == by_other.conditions:
        return one.share + other.share > WHOLE
    return True


def conflicts(wanted: Spec, others: Iterable[Spec]) -> list[Spec]:
    """Who holds what `wanted` asks for, the oldest first. Copies (wiretap) take nothing from anybody."""
    found = []
    mine = [_Asked.of(each) for each in wanted.routes]
    for each in others:
        if each.id == wanted.id:
            continue
        if "replace" in (wanted.kind, each.kind) and wanted.workload and wanted.workload == each.workload:
            found.append(each)
            continue
        if not wanted.service or wanted.service != each.service:
            continue
        if wanted.datagrams.keys() & each.datagrams.keys():  # there is nothing to tell one's from the other's
            found.append(each)
            continue
        if not (wanted.ports.keys() & each.ports.keys()):
            continue
        taps = [spec.kind == "wiretap" for spec in (wanted, each)]
        yours, effort = [_Asked.of(route) for route in each.routes], Effort()
        if all(taps):
            clash = any(_taps_clash(one, other, effort) for one in mine for other in yours)
        elif any(taps):
            clash = False
        else:
            clash = any(_overlap(one, other, effort) for one in mine for other in yours)
            clash = clash or _shares(wanted, each) > WHOLE
        if clash:
            found.append(each)
    return sorted(found, key=lambda spec: (spec.since, spec.id))


def _shares(*specs: Spec) -> float:
    return sum(route.share for spec in specs for route in spec.routes if route.share < WHOLE and not route.conditional)


def _taps_clash(one: _Asked, other: _Asked, effort: Effort) -> bool:
    # Envoy takes one route for a request: two copies of the same request need the same conditions.
    if one.conditions == other.conditions or not one.route.conditional or not other.route.conditional:
        return False
    return not _apart(one, other, effort)

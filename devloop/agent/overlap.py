"""Which routes get into each other's way. Pure.

Paths and methods are in every request, so two routes that don't exclude each other there do overlap. Headers are
not: `x-user=ada` and `x-team=blue` meet only in a request that was made for both, and then the older one has it.
So two routes are kept apart by headers if they want different things of the same one, or if each wants one that the
other doesn't ask for.

A share is taken after all whole routes, of what these leave. Several shares of the same requests are laid side
by side, as long as they stay within 100 percent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .spec import WHOLE, Match, Route, Spec


def exclude(one: Match, other: Match) -> bool:
    """No text can be as both want it. Two regular expressions are not compared: they are taken to meet."""
    if one.how == "regex":
        one, other = other, one
    if other.how == "regex":
        return one.how == "exact" and re.fullmatch(other.value, one.value) is None
    if one.how == "exact":
        return other.value != one.value if other.how == "exact" else not one.value.startswith(other.value)
    if other.how == "exact":
        return not other.value.startswith(one.value)
    return not (one.value.startswith(other.value) or other.value.startswith(one.value))


def apart(one: Route, other: Route) -> bool:
    """No ordinary request is taken by both."""
    if one.method and other.method and one.method != other.method:
        return True
    if one.path and other.path and exclude(one.path, other.path):
        return True
    mine, yours = _asked(one), _asked(other)
    if any(exclude(mine[key], yours[key]) for key in mine.keys() & yours.keys()):
        return True
    return bool(mine.keys() - yours.keys()) and bool(yours.keys() - mine.keys())


def _asked(route: Route) -> dict[tuple[str, str], Match]:
    """What a route asks of a request that not every one has. A server's name is beside the headers: by another one."""
    found = {each.key: each.match for each in route.headers}
    if route.sni:
        below = f"[^.]+(\\.[^.]+)*{re.escape(route.sni[1:])}"
        found[":sni", ""] = Match("regex", below) if route.sni.startswith("*.") else Match("exact", route.sni)
    return found


def overlap(one: Route, other: Route) -> bool:
    """The two can't be held by two people."""
    if (one.share == WHOLE) != (other.share == WHOLE):
        # A share is of what is left; all requests leave nothing.
        whole = one if one.share == WHOLE else other
        return not whole.conditional
    if apart(one, other):
        return False
    if one.share < WHOLE and _conditions(one) == _conditions(other):
        return one.share + other.share > WHOLE
    return True


def _conditions(route: Route) -> tuple[object, ...]:
    return frozenset((each.key, each.match) for each in route.headers), route.path, route.method, route.sni


def conflicts(wanted: Spec, others: Iterable[Spec]) -> list[Spec]:
    """Who holds what `wanted` asks for, the oldest first. Copies (wiretap) take nothing from anybody."""
    found = []
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
        if all(taps):
            clash = any(_taps_clash(one, other) for one in wanted.routes for other in each.routes)
        elif any(taps):
            clash = False
        else:
            clash = any(overlap(one, other) for one in wanted.routes for other in each.routes)
            clash = clash or _shares(wanted, each) > WHOLE
        if clash:
            found.append(each)
    return sorted(found, key=lambda spec: (spec.since, spec.id))


def _shares(*specs: Spec) -> float:
    return sum(route.share for spec in specs for route in spec.routes if route.share < WHOLE and not route.conditional)


def _taps_clash(one: Route, other: Route) -> bool:
    # Envoy takes one route for a request: two copies of the same request need the same conditions.
    if _conditions(one) == _conditions(other) or not one.conditional or not other.conditional:
        return False
    return not apart(one, other)

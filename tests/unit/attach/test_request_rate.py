"""What connections carry, by two looks at what the kernel has counted of each."""

from __future__ import annotations

import json
from typing import Any

import pytest

from devloop.agent.request_rate import Compared, Packets, RequestRate, estimate


def looks(*found: tuple[float, dict[str, Packets]]) -> Compared | None:
    """The last of these looks."""
    rate = RequestRate[str]()
    return [rate.look(at, carried, len(carried)) for at, carried in found][-1]


@pytest.mark.parametrize(
    ("before", "after", "requests"),
    [
        ((10, 10), (30, 30), 20),  # one packet each
        ((10, 10), (30, 70), 20),  # answers of several
        ((10, 10), (70, 30), 20),  # requests of several
        ((10, 10), (10, 10), 0),
        ((0, 5), (10, 15), 10),
    ],
)
def test_a_request_is_a_packet_in_and_one_out(before: Packets, after: Packets, requests: float) -> None:
    assert looks((100, {"a": before}), (102, {"a": after})) == Compared(requests / 2, 1, 1)


@pytest.mark.parametrize("after", [(10, 12), (12, 10), (9, 12), (12, 9), (0, 0)])
def test_what_only_goes_one_way_or_begins_anew_is_not_known(after: Packets) -> None:
    assert looks((100, {"a": (10, 10)}), (102, {"a": after})) == Compared(0, 0, 1)


def test_one_look_tells_nothing_but_that_there_are_none() -> None:
    assert looks((100, {"a": (10, 10)})) is None
    assert looks((100, {})) == Compared(0, 0, 0)


def test_new_connections_and_gone_ones_are_not_compared() -> None:
    old = {"a": (10, 10), "gone": (10_000, 10_000)}
    assert looks((100, old), (110, {"a": (30, 30), "new": (5000, 5000)})) == Compared(2, 1, 2)
    assert looks((100, old), (110, {})) == Compared(0, 0, 0)


def test_several_may_look_and_a_moment_is_not_compared() -> None:
    def at(seconds: float) -> tuple[float, dict[str, Packets]]:
        number = int(seconds * 10)
        return seconds, {"a": (number, number)}

    for seen in ([0, 0.5], [0, 0.3, 0.6, 0.9]):
        assert looks(*map(at, seen)) is None
    for seen in ([0, 2, 2.5], [0, 0.5, 1.1], [0, 2, 2.3, 2.6, 3], [0, 5, 10, 10.9]):
        assert looks(*map(at, seen)) == Compared(10, 1, 1)


def test_a_clock_that_goes_back_begins_anew() -> None:
    assert looks((100, {"a": (10, 10)}), (50, {"a": (20, 20)})) is None
    assert looks((100, {"a": (10, 10)}), (50, {"a": (20, 20)}), (60, {"a": (70, 70)})) == Compared(5, 1, 1)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ([], 0),
        ([Compared(0, 3, 3)], 0),
        ([Compared(12.345, 3, 3), Compared(1, 1, 1)], 13.3),
        ([Compared(12, 2, 4)], 12),
        ([Compared(12, 1, 3)], None),  # most are new
        ([Compared(0, 3, 4)], None),  # "idle" is said of all or none
        ([Compared(12, 2, 2), None], None),  # a pod of which nothing is known
    ],
)
def test_what_is_known_of_most_is_told_and_idle_only_of_all(found: list[Compared | None], told: float | None) -> None:
    assert estimate(found) == told


def test_what_a_door_says_is_read_with_care() -> None:
    found = Compared(1.5, 2, 3)
    assert Compared.read(json.loads(json.dumps(found.document()))) == found
    wrong: list[Any] = [
        *(None, {}, [], "abc", 5, [1, 2], [1, 2, 3, 4], [None, 1, 1], [-1, 1, 1], [1, 2, 1], [1, -1, 1]),
        *([float("nan"), 1, 1], [float("inf"), 1, 1], [1, float("inf"), 1], [10**400, 1, 1], [[], 1, 1]),
    ]
    assert [Compared.read(each) for each in wrong] == [None] * len(wrong)

"""Who writes: the service itself, or a person?"""

from __future__ import annotations

import random

from devloop.config.model import MS
from devloop.core.flap import FlapGuard

OUT = frozenset({"out.json"})


def trips(delays_ms: list[float], files: list[frozenset[str]] | None = None) -> int | None:
    """At which change the guard trips, counted from 1."""
    guard = FlapGuard()
    for number, delay in enumerate(delays_ms):
        if guard.changed(files[number] if files else OUT, int(delay * MS)):
            return number + 1
    return None


def test_a_file_written_right_after_each_start() -> None:
    assert trips([20, 35, 12, 60]) == 4


def test_a_file_written_a_second_after_each_start() -> None:
    assert trips([1000, 1040, 980, 1010, 1000, 990, 1020, 1005]) == 8


def test_people_are_not_regular() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        assert trips([chance.uniform(150, 650) for _ in range(100)]) is None


def test_different_files_are_an_edit_each() -> None:
    assert trips([20] * 20, [frozenset({f"f{i}"}) for i in range(20)]) is None


def test_only_the_file_that_is_always_there_is_the_culprit() -> None:
    guard = FlapGuard()
    for extra in ("a", "b", "c"):
        assert not guard.changed(frozenset({"out.json", extra}), 10 * MS)
    assert guard.changed(OUT, 10 * MS)
    assert guard.culprits() == ("out.json",)


def test_a_change_long_after_the_start_begins_anew() -> None:
    assert trips([20, 20, 20, 8000, 20, 20, 20]) is None

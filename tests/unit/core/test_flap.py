"""Who writes: the service itself, or a person?"""

from __future__ import annotations

import random
from collections.abc import Callable

from devloop.config.model import MS
from devloop.core.flap import FlapGuard, Verdict

OUT = frozenset({"out.json"})


def writer(own_delay: Callable[[], float], changes: int = 100) -> int | None:
    """A service that writes so many milliseconds after each start. At which change it is caught, from 1."""
    guard = FlapGuard()
    for number in range(changes):
        # However late it is started, the change comes after its start.
        if guard.changed(OUT, int(own_delay() * MS)) is Verdict.CAUGHT:
            return number + 1
    return None


def editor(pauses: Callable[[], float], changes: int = 100) -> tuple[int | None, int]:
    """Somebody who saves after such pauses, and a start that takes 10 ms: (when caught, how often tried)."""
    guard = FlapGuard()
    late, trials = 0.0, 0
    for number in range(changes):
        pause = pauses()
        since_start = pause - 10 - late
        verdict = guard.changed(OUT, int(since_start * MS) if since_start > 0 else None)
        if verdict is Verdict.CAUGHT:
            return number + 1, trials
        late = guard.late / MS if verdict is Verdict.TRIAL else 0.0
        trials += verdict is Verdict.TRIAL
    return None, trials


def test_a_file_written_right_after_each_start() -> None:
    delays = iter([20, 35, 12, 60, 30])
    assert writer(lambda: next(delays)) == 5


def test_a_file_written_a_second_after_each_start() -> None:
    delays = iter([1000, 1040, 980, 1010, 1000, 990, 1020, 1005, 1010])
    assert writer(lambda: next(delays)) == 9


def test_writers_of_every_pace_are_caught() -> None:
    for pace in (0.5, 5, 50, 120, 500, 2000, 4500):
        chance = random.Random(1)
        caught = writer(lambda pace=pace, chance=chance: pace * chance.uniform(0.96, 1.04))  # type: ignore[misc]
        assert caught is not None and caught <= 9, pace


def test_people_are_not_regular() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        assert editor(lambda chance=chance: chance.uniform(150, 650))[0] is None  # type: ignore[misc]


def test_who_saves_like_clockwork_is_tried_a_few_times_and_acquitted() -> None:
    for pause in (120, 200, 400, 1000, 3000, 4900):
        caught, trials = editor(lambda pause=pause: pause, changes=1000)  # type: ignore[misc]
        assert caught is None, pause
        assert 1 <= trials <= 7, "each acquittal doubles the patience"


def test_different_files_are_an_edit_each() -> None:
    guard = FlapGuard()
    verdicts = {guard.changed(frozenset({f"f{i}"}), 20 * MS) for i in range(20)}
    assert verdicts == {Verdict.NOTHING}


def test_only_the_file_that_is_always_there_is_the_culprit() -> None:
    guard = FlapGuard()
    for extra in ("a", "b", "c"):
        assert guard.changed(frozenset({"out.json", extra}), 10 * MS) is Verdict.NOTHING
    assert guard.changed(OUT, 10 * MS) is Verdict.TRIAL
    assert guard.changed(frozenset({"out.json", "d"}), 10 * MS) is Verdict.CAUGHT
    assert guard.culprits() == ("out.json",)


def test_a_change_long_after_the_start_begins_anew() -> None:
    delays = iter([20, 20, 20, 8000, 20, 20, 20])
    assert writer(lambda: next(delays), changes=7) is None

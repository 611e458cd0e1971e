"""When a save is over."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from devloop.config.model import MS, SECOND
from devloop.core.debounce import CALM, LONGEST_BURST, LONGEST_QUIET, Debounce

QUIET = 4 * MS


def play(writes: list[tuple[float, str]], debounce: Debounce | None = None) -> list[tuple[float, int]]:
    """(time, files) of each burst, for writes at these milliseconds; the timer fires to the nanosecond."""
    debounce = debounce or Debounce(QUIET)
    bursts: list[tuple[float, int]] = []

    def fire(until: float) -> None:
        while debounce.pending and debounce.deadline <= until:
            at = debounce.deadline
            burst = debounce.settle(at)
            assert burst is not None
            bursts.append((at / MS, len(burst.files)))

    for at_ms, file in writes:
        fire(int(at_ms * MS) - 1)
        debounce.feed([file], int(at_ms * MS))
    fire(10**18)
    return bursts


def test_one_file_waits_for_its_quiet_time_only() -> None:
    assert play([(0, "a")]) == [(4, 1)]


def test_not_before_its_time() -> None:
    debounce = Debounce(QUIET)
    assert debounce.feed(["a"], 0) == QUIET
    assert debounce.settle(QUIET - 1) is None
    assert debounce.settle(QUIET) is not None
    assert debounce.settle(SECOND) is None, "it is over"


def test_a_checkout_of_1000_files_is_one_burst() -> None:
    writes = [(i * 0.2 + (40 if i > 500 else 0), f"f{i}") for i in range(1000)]
    assert [files for _, files in play(writes)] == [1000]


def test_an_appender_every_5_ms_is_two_bursts_and_not_two_hundred() -> None:
    # One before it is known for what it is, and one when it has ended (watchfiles#360 counts 11).
    assert len(play([(i * 5, "log") for i in range(200)])) == 2


def test_what_was_learned_is_forgotten_when_it_is_calm() -> None:
    debounce = Debounce(QUIET)
    play([(i * 5, "log") for i in range(100)], debounce)
    later = 500 + CALM / MS + 1
    assert play([(later, "a")], debounce) == [(later + 4, 1)]


def test_a_writer_that_never_pauses_is_cut_off() -> None:
    bursts = play([(i, "log") for i in range(4000)])
    assert max(b - a for (a, _), (b, _) in pairwise(bursts)) <= LONGEST_BURST / MS + 1
    assert len(bursts) >= 2


@given(st.lists(st.tuples(st.floats(0, 3000), st.sampled_from("abcdef")), min_size=1))
def test_every_write_is_in_a_burst_that_ends_after_it_and_in_time(writes: list[tuple[float, str]]) -> None:
    writes.sort()
    bursts = play(writes)
    assert bursts[-1][0] >= int(writes[-1][0] * MS) / MS
    assert bursts[-1][0] <= writes[-1][0] + LONGEST_QUIET / MS + 0.001

"""What the machine's limits prevent is no fault of devloop's."""

from __future__ import annotations

import errno

import pytest

from devloop.failures import explained, is_the_machines


def test_no_thread_is_a_limit_with_a_name() -> None:
    error = RuntimeError("can't start new thread")
    assert is_the_machines(error)
    told = explained(error)
    assert told.what == "no thread can be started" and "ulimit -u" in (told.hint or "")


@pytest.mark.parametrize("error", [RuntimeError("another"), ValueError(), OSError(errno.EINVAL, "?"), "words"])
def test_a_fault_stays_one(error: object) -> None:
    assert not is_the_machines(error)

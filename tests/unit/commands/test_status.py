"""What `devloop status` prints."""

from __future__ import annotations

from devloop.commands.inspect import status_table
from devloop.protocol import Cause, Loop, Outcome, ServiceStatus, State


def row(outcome: Outcome, stamps: dict[str, int]) -> str:
    loop = Loop(1, "api", Cause.START, outcome, 0, stamps)
    status = ServiceStatus("api", "local", State.READY, "", 0, last_loop=loop)
    return status_table([status]).splitlines()[1]


def test_a_loop_that_failed_has_no_time() -> None:
    assert "failed" in row(Outcome.FAILED, {"detected": 0})
    assert "µs" not in row(Outcome.FAILED, {"detected": 0})
    assert "2.00 s" in row(Outcome.OK, {"detected": 0, "ready": 2_000_000_000})

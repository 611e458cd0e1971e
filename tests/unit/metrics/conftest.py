from __future__ import annotations

from collections.abc import Callable

import pytest

from devloop.protocol import Cause, Loop, Outcome

MS = 1_000_000
HOUR = 3_600 * 10**9
NOW = 1_795_000_000 * 10**9


@pytest.fixture
def loop() -> Callable[..., Loop]:
    """Makes a loop: detected at 1 ms, stopped at 2, settled at 3, spawned at 4, ready at `ready`."""

    def make(ready: float = 100, **changes: object) -> Loop:
        stamps = {"edited": 0, "detected": 1 * MS, "stopped": 2 * MS, "settled": 3 * MS, "spawned": 4 * MS}
        values: dict[str, object] = {
            "id": 0,
            "service": "api",
            "cause": Cause.CHANGE,
            "outcome": Outcome.OK,
            "started_at": NOW - HOUR,
            "stamps": {**stamps, "ready": round(ready * MS)},
            "files": ("api/main.py",),
        }
        return Loop(**{**values, **changes})  # type: ignore[arg-type]

    return make

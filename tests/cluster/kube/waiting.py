"""Waiting for something to become true."""

from __future__ import annotations

import time
from collections.abc import Callable

from .errors import ClusterError


def until(ready: Callable[[], object], seconds: float, otherwise: str, detail: Callable[[], str] | None = None) -> None:
    """Ask until the answer is yes; a ClusterError after `seconds`, with what `detail` returns."""
    deadline = time.monotonic() + seconds
    pause = 0.005
    while not ready():
        if time.monotonic() > deadline:
            raise ClusterError(f"{otherwise} within {seconds:g} s", detail() if detail else "")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)

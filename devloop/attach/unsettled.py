"""Sizes that were set to zero without an answer: whether that may still come true. Pure: the time comes in.

A request that is given up (a timeout, Ctrl-C) may be on its way, or waiting in the API server. It says which version of
the workload it changes. So it is over when the workload has another version: it has come, or it is refused. Where the
version stays, only time tells: the API server was told how long it may work at it, and the network has to have been
there for that long.
"""

from __future__ import annotations

from dataclasses import dataclass

WRITE_SECONDS = 10
"""How long the API server may work at a change of a size (the query parameter `timeout`); an answer is waited for
longer than that (`api.REQUEST_SECONDS`)."""
SETTLE_SECONDS = 2.0 * WRITE_SECONDS
"""A change that has not come so long after the API server was heard again does not come any more. What is beyond
`WRITE_SECONDS` is etcd's time, which goes on with what it has taken (its own limit is 7 s)."""


@dataclass(frozen=True, slots=True)
class _Write:
    version: str
    until: float | None = None


class Unsettled:
    """By workload (KIND/NAME). Times are monotonic seconds."""

    def __init__(self) -> None:
        self._writes: dict[str, _Write] = {}

    def __contains__(self, workload: str) -> bool:
        return workload in self._writes

    def writes(self, workload: str, version: str) -> _Write | None:
        """This version is about to be set to zero. What was not settled before, for `refused`."""
        before = self._writes.get(workload)
        self._writes[workload] = _Write(version)
        return before

    def answered(self, workload: str) -> None:
        """The API server has done it, or something after it."""
        self._writes.pop(workload, None)

    def refused(self, workload: str, before: _Write | None) -> None:
        """The API server has not done it; what was not settled before still is not."""
        self._writes.pop(workload, None)
        if before is not None:
            self._writes[workload] = _Write(before.version)

    def seen(self, workload: str, version: str | None, now: float) -> bool:
        """The API server says that it has this version (None: it is gone). Whether it may still be set to zero."""
        write = self._writes.get(workload)
        if write is None:
            return False
        if version != write.version or (write.until is not None and now >= write.until):
            del self._writes[workload]
            return False
        if write.until is None:
            self._writes[workload] = _Write(version, now + SETTLE_SECONDS)
        return True

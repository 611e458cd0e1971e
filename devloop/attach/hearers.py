"""Who hears of an engine's attachments: their states, their requests, their first bytes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from devloop.agent.records import Request

from .attachment import Attachment

T = TypeVar("T")
Counts = Mapping[str, Mapping[str, int]]
"""Service → who answered (`devloop.agent.records.answerer`) → how many."""
Heard = Callable[[list[Request], Counts, Mapping[str, str]], None]


class Hearers:
    """The part of `Attachments` that tells."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Attachment], None]] = []
        self._hearers: list[Heard] = []
        self._served: list[Callable[[Attachment, int], None]] = []

    def subscribe(self, listener: Callable[[Attachment], None]) -> Callable[[], None]:
        """Call `listener` with an attachment whose state has changed, until what this returns is called."""
        return _add(self._listeners, listener)

    def subscribe_requests(self, hearer: Heard) -> Callable[[], None]:
        """Call `hearer` with the requests of our Services, in batches; with how many there were; and with who holds
        these Services, by the attachments' ids.

        There may have been more than are told. Nothing is called while there are none.
        """
        return _add(self._hearers, hearer)

    def subscribe_served(self, listener: Callable[[Attachment, int], None]) -> Callable[[], None]:
        """Call `listener` at the first byte of each answer of a local service, with the time in monotonic ns."""
        return _add(self._served, listener)

    def _changed(self, attachment: Attachment) -> None:
        for each in list(self._listeners):
            each(attachment)

    def _heard(self, requests: list[Request], counts: Counts, holders: Mapping[str, str]) -> None:
        for each in list(self._hearers):
            each(requests, counts, holders)

    def _answered(self, found: Attachment) -> None:
        if self._served:
            now = time.monotonic_ns()
            for each in list(self._served):
                each(found, now)


def _add(to: list[T], what: T) -> Callable[[], None]:
    to.append(what)

    def stop() -> None:
        with contextlib.suppress(ValueError):
            to.remove(what)

    return stop

"""Who may not send: a channel whose window is used up, and all channels while the connection's socket takes no more."""

from __future__ import annotations

import asyncio
from itertools import permutations

from devloop.remote.sshcarrier import Channel, SshCarrier


class Told(asyncio.Protocol):
    """What a channel's protocol has been told last."""

    held = False

    def pause_writing(self) -> None:
        self.held = True

    def resume_writing(self) -> None:
        self.held = False


def a_carrier() -> SshCarrier:
    """Of which nothing is there but what channels ask it for."""
    made = object.__new__(SshCarrier)
    made.congested, made.writers = False, set()
    return made


def test_who_is_held_may_send_again_once_nothing_holds_it() -> None:
    """In any order: its window may open while the socket takes nothing, as others have written meanwhile."""
    for steps in sorted(set(permutations(("pause", "resume", "pause", "resume", "full", "room")))):
        carrier, told = a_carrier(), Told()
        channel = Channel(carrier, told, "here", 80)
        carrier.writers.add(channel)  # it has written
        do = {
            "pause": carrier._pause,
            "resume": carrier._resume,
            "full": channel.pause_writing,
            "room": channel.resume_writing,
        }
        full = False
        for step in steps:
            do[step]()
            full = full if step in ("pause", "resume") else step == "full"
            if full or not carrier.congested:
                assert told.held == full, steps
        do["resume"]()
        do["room"]()
        assert not told.held

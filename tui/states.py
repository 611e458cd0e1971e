"""How a state looks: a glyph, a tone and a word. Glyphs differ in shape: colour is never the only sign."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from devloop.protocol import Outcome, ServiceStatus, State

TONES = frozenset({"tone--ok", "tone--busy", "tone--warn", "tone--bad", "tone--quiet", "tone--away"})
"""Component classes that the style sheet gives a colour."""

COLOURS: Mapping[str, str] = {
    "tone--ok": "$text-success",
    "tone--busy": "$text-accent",
    "tone--warn": "$text-warning",
    "tone--bad": "$text-error",
    "tone--quiet": "$text-muted",
    "tone--away": "$text-primary",
}
"""The same tones as colours of the theme, for widgets that render `Content`."""


@dataclass(frozen=True, slots=True)
class Look:
    """One cell of glyph, and a tone."""

    glyph: str
    tone: str


LOOKS: Mapping[State, Look] = {
    State.OFF: Look("○", "tone--quiet"),
    State.WAITING: Look("◌", "tone--busy"),
    State.BUILDING: Look("◇", "tone--busy"),
    State.STARTING: Look("◐", "tone--busy"),
    State.READY: Look("●", "tone--ok"),
    State.STOPPING: Look("◑", "tone--warn"),
    State.STOPPED: Look("□", "tone--quiet"),
    State.COMPLETED: Look("✓", "tone--ok"),
    State.FAILED: Look("✗", "tone--bad"),
    State.BACKOFF: Look("↺", "tone--warn"),
    State.CRASH_LOOP: Look("⊗", "tone--bad"),
    State.REMOTE: Look("⇄", "tone--away"),
}

ORDER = (
    State.FAILED,
    State.CRASH_LOOP,
    State.BACKOFF,
    State.STARTING,
    State.BUILDING,
    State.WAITING,
    State.STOPPING,
    State.READY,
    State.COMPLETED,
    State.REMOTE,
    State.STOPPED,
    State.OFF,
)
"""What a summary names first: what needs a person."""

OUTCOMES: Mapping[Outcome, Look] = {
    Outcome.OK: Look("✓", "tone--ok"),
    Outcome.FAILED: Look("✗", "tone--bad"),
    Outcome.SUPERSEDED: Look("↷", "tone--quiet"),
}

LIVE = frozenset({State.WAITING, State.BUILDING, State.STARTING, State.READY, State.BACKOFF, State.CRASH_LOOP})
"""States in which `stop` has a meaning: something runs here, or would again."""


def state_text(status: ServiceStatus) -> str:
    """The state in words, with its reason: 'backoff: exit code 1, again in 4 s'."""
    word = f"{status.state}, stale" if status.stale else str(status.state)
    return f"{word}: {status.reason}" if status.reason else word

"""How a state looks: a glyph, a tone and a word. Glyphs differ in shape: colour is never the only sign."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from devloop.protocol import Outcome, ServiceStatus, State

TONES = frozenset({"tone--ok", "tone--busy", "tone--warn", "tone--bad", "tone--quiet", "tone--away", "tone--here"})
"""Component classes that the style sheet gives a colour."""

COLOURS: Mapping[str, str] = {
    "tone--ok": "$text-success",
    "tone--busy": "$text-accent",
    "tone--warn": "$text-warning",
    "tone--bad": "$text-error",
    "tone--quiet": "$text-muted",
    "tone--away": "$text-primary",
    "tone--here": "bold $foreground",
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


def running(status: ServiceStatus) -> bool:
    """Whether leaving has something to end: it runs here, or would again."""
    return status.mode == "local" and (status.state in LIVE or status.state is State.STOPPING)


CUT_OFF = Look("⊘", "tone--warn")
"""A remote service while there is no connection to the remote."""

MODES: Mapping[str, str] = {"local": "tone--here", "remote": "tone--away", "off": "tone--quiet"}
"""Mode → tone of the service's name and of the mode itself."""


AT_PROMPT = Look("▷", "tone--warn")
"""A person has it: it waits at a debugger's prompt, or for a debugger."""


def service_look(status: ServiceStatus, *, cut_off: bool = False) -> Look:
    """Its state's; a remote one's is another while the remote is `cut_off`."""
    if status.prompt:
        return AT_PROMPT
    return CUT_OFF if cut_off and status.state is State.REMOTE else LOOKS[status.state]


def state_text(status: ServiceStatus, *, cut_off: bool = False) -> str:
    """The state in words, with its reason: 'backoff: exit code 1, again in 4 s'."""
    if status.prompt:
        return status.at_prompt
    word = f"{status.state}, stale" if status.stale else str(status.state)
    reason = status.reason
    if status.state is State.REMOTE:
        word = "cut off" if cut_off else word
        reason = reason or status.workload
    return f"{word}: {reason}" if reason else word


def next_mode(status: ServiceStatus) -> str:
    """Where `toggle` moves it: to the mode after its own; empty if there is no other."""
    modes = status.modes
    if status.mode not in modes:
        return modes[0] if modes else ""
    return modes[(modes.index(status.mode) + 1) % len(modes)] if len(modes) > 1 else ""

"""How the connection to the remote looks: a glyph, a tone and words, as short as the room asks for. Knows no screen."""

from __future__ import annotations

from collections.abc import Mapping

from devloop.protocol import RemoteStatus
from tui.states import Look

SECOND = 1_000_000_000
BLIP = SECOND
"""A loss that is over within this time, in nanoseconds, is seen in the header alone: a banner would only flicker."""

PHASES: Mapping[str, Look] = {
    "connecting": Look("◌", "tone--busy"),
    "connected": Look("●", "tone--ok"),
    "reconnecting": Look("↻", "tone--warn"),
    "failed": Look("✗", "tone--bad"),
    "closed": Look("○", "tone--quiet"),
}
NOTED = "▲"
"""It works, and there is something that people should know."""

LINKS: Mapping[str, str] = {"portforward": "port-forwards", "ssh": "SSH"}
"""What carries it, where the protocol's word is not a person's."""


def look(remote: RemoteStatus) -> Look:
    """Glyph and tone. A phase of a newer engine looks as if it were under way."""
    return PHASES.get(remote.phase, PHASES["connecting"])


def link_name(remote: RemoteStatus) -> str:
    """What carries it: agent, direct (to the agent's pod), port-forwards, SSH, sandbox."""
    return "direct" if remote.direct else LINKS.get(remote.link, remote.link)


def countdown(remote: RemoteStatus, now: int) -> str:
    """in 2 s, while the next attempt is being waited for."""
    if remote.next_at is None:
        return ""
    return f" in {max(0, -(-(remote.next_at - now) // SECOND))} s"


def progress(remote: RemoteStatus, now: int) -> str:
    """The phase, how many attempts have failed and when the next one is: reconnecting (3) in 2 s."""
    attempts = f" ({remote.attempt})" if remote.attempt and remote.phase != "failed" else ""
    return f"{remote.phase}{attempts}{countdown(remote, now)}"


def summary(remote: RemoteStatus, now: int, width: int) -> str:
    """The most telling text of at most `width` cells, glyph first; the glyph alone if nothing else fits."""
    glyph = look(remote).glyph
    if remote.phase == "connected":
        mark = f" {NOTED}" if remote.notes else ""
        link = "" if link_name(remote) == remote.where else f" · {link_name(remote)}"
        texts = [
            f"{glyph} {remote.where}{link}{mark}",
            f"{glyph} {remote.where}{mark}",
            f"{glyph} {_end(remote.where, width - 2 - len(mark))}{mark}",
        ]
    else:
        words = progress(remote, now)
        texts = [f"{glyph} {remote.where} · {words}", f"{glyph} {words}", f"{glyph} {remote.phase}"]
    return next((text for text in texts if len(text) <= width), glyph)


def _end(where: str, width: int) -> str:
    # The namespace is at the end, and tells more than how a cloud's context names begin.
    return where if len(where) <= width else f"…{where[len(where) - max(0, width - 1) :]}"


def trouble(remote: RemoteStatus | None, now: int) -> tuple[str, str]:
    """What a banner says of it: text and hint; empty while there is no trouble."""
    if remote is None or remote.phase in ("connected", "closed"):
        return "", ""
    if remote.phase == "failed":
        return f"not connected: {_sentence(remote.reason or 'refused')}", "C tries again."
    if not remote.reason or (now - remote.since_at < BLIP and not remote.attempt):
        return "", ""
    if remote.phase == "connecting":
        return f"connecting: {_sentence(remote.reason)}", ""
    return f"not connected: {_sentence(remote.reason)}", "C tries now."


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."

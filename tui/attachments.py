"""How attachments look: a glyph, a tone and words, as short as the room asks for. Knows no screen."""

from __future__ import annotations

import re
from collections.abc import Mapping

from devloop.protocol import AttachmentStatus, RemoteStatus, RequestRecord, ServiceStatus
from tui.formats import rate
from tui.states import Look

PHASES: Mapping[str, Look] = {
    "attaching": Look("◌", "tone--busy"),
    "attached": Look("●", "tone--ok"),
    "failed open": Look("↯", "tone--warn"),
    "contested": Look("⚑", "tone--bad"),
    "refused": Look("✗", "tone--bad"),
    "leaving": Look("◑", "tone--busy"),
    "left": Look("○", "tone--quiet"),
}
"""Phase → its look. What needs a person differs in shape from what goes well."""

MARKS: Mapping[str, str] = {"intercept": "int", "replace": "rep", "wiretap": "tap"}
"""Kind → what a narrow column has room for."""

OVER = frozenset({"refused", "contested", "leaving", "left"})
"""Phases in which nothing is held any more, or will be."""

ANSWERED: Mapping[str, Look] = {
    "local": Look("●", "tone--ok"),
    "original": Look("○", "tone--quiet"),
    "other": Look("◇", "tone--quiet"),
    "nobody": Look("✗", "tone--bad"),
}
"""Who answered a request → its look."""
FAILED_OVER = Look("↷", "tone--warn")
"""A request that was taken, and that the original pods answered after all."""

_HOW = {"=": "is", "^=": "begins with", "~": "matches"}
_CONDITION = re.compile(r"(?P<name>[^=~^:\s]+)(?::(?P<entry>[^=]+))?(?P<how>\^=|=|~)(?P<value>.+)", re.DOTALL)
_URGENCY = ("refused", "contested", "failed open", "attaching", "leaving", "attached", "left")


def possible(remote: RemoteStatus | None) -> bool:
    """Whether a project has traffic that can be attached to: a cluster's."""
    return remote is not None and remote.kind == "kubernetes"


def attachable(status: ServiceStatus, remote: RemoteStatus | None) -> bool:
    """Whether a service runs here and stands for something there."""
    return possible(remote) and status.mode == "local" and bool(status.workload or "remote" in status.modes)


def holds(status: ServiceStatus) -> bool:
    """Whether it holds traffic, or a workload's place, or is about to."""
    return any(each.phase not in OVER for each in status.attachments)


def look(phase: str) -> Look:
    """Glyph and tone. A phase of a newer engine looks as if it were under way."""
    return PHASES.get(phase, PHASES["attaching"])


def telling(status: ServiceStatus) -> AttachmentStatus | None:
    """The attachment that says most of a service: what needs a person first."""
    ranked = {phase: n for n, phase in enumerate(_URGENCY)}
    return min(status.attachments, key=lambda each: ranked.get(each.phase, 3), default=None)


def mark(status: ServiceStatus, width: int) -> str:
    """How it is attached, in at most `width` cells: kind, phase, and where that is well, requests per second."""
    found = telling(status)
    if found is None:
        return ""
    glyph, kind = look(found.phase).glyph, MARKS.get(found.kind, found.kind[:3])
    if found.phase != "attached":
        texts = [f"{glyph} {kind} {found.phase}", f"{glyph} {found.phase}", f"{glyph} {kind}"]
    elif found.local_rate or found.original_rate:
        numbers = _sum(found) if found.kind == "wiretap" else f"{rate(found.local_rate)}+{rate(found.original_rate)}"
        texts = [f"{glyph} {kind} {numbers}/s", f"{glyph} {kind} {numbers}", f"{glyph} {kind}"]
    else:
        texts = [f"{glyph} {found.kind}", f"{glyph} {kind}"]
    return next((text for text in texts if len(text) <= width), glyph)


def route_words(route: str) -> str:
    """A route as the engine writes it (`x-user=ada and path^=/v2`) in words; what is no such route stays."""
    share, of, rest = route.partition(" % of ")
    if not of:
        share, rest = "", route
    elif rest == "all requests":
        return route
    parts = [_condition(part) for part in rest.split(" and ")]
    return f"{share} % of those with {' and '.join(parts)}" if share else " and ".join(parts)


def _condition(text: str) -> str:
    found = _CONDITION.fullmatch(text)
    if found is None:
        return text
    name, entry, how, value = found["name"], found["entry"], found["how"], found["value"]
    return f"{name} has {entry}={value}" if entry else f"{name} {_HOW[how]} {value}"


def rates(attachment: AttachmentStatus) -> str:
    """Requests per second, by who answers; of a wiretap it is always the original."""
    if attachment.kind == "wiretap":
        return f"{_sum(attachment)}/s, copied here"
    parts = [f"{rate(attachment.local_rate)}/s here", f"{rate(attachment.original_rate)}/s original"]
    parts += [f"{rate(attachment.other_rate)}/s others"] if attachment.other_rate else []
    parts += [f"{rate(attachment.failed_rate)}/s failed"] if attachment.failed_rate else []
    return ", ".join(parts)


def _sum(attachment: AttachmentStatus) -> str:
    return rate(attachment.local_rate + attachment.original_rate)


def answered_by(request: RequestRecord) -> Look:
    """How it looks who answered."""
    if request.failed_over:
        return FAILED_OVER
    return ANSWERED.get(request.answered, ANSWERED["nobody"])

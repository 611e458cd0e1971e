"""A service as it is going to stand in the file, and the writer of TOML that stays pleasant to read."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Value = str | int | bool | Sequence["Value"] | Mapping[str, "Value"]

WIDTH = 100
"""Longest line, where it can be helped."""


@dataclass(slots=True)
class Draft:
    """One service. Strings are written as they stand here, so `${VAR}` is devloop's; see `literal`."""

    name: str
    settings: dict[str, Value]
    """Key → value, as in devloop.toml; what is empty is left out."""
    notes: list[str] = field(default_factory=list)
    """Comments above the service."""
    remarks: dict[str, str] = field(default_factory=dict)
    """Comments above single keys."""


PLACEHOLDER = Draft(
    "app",
    {"command": "python3 -m http.server 8000", "ports": {"http": 8000}, "ready": {"http": "/"}},
    notes=["Put your own command here, and add a table for each further service."],
)

_ORDER = (
    "mode", "command", "cwd", "build", "env_file", "env", "ports", "ready", "live", "watch", "ignore",
    "reload", "depends_on", "restart", "stop", "task", "groups",
)  # fmt: skip

_HEAD = """\
# {name}: the services that `devloop up` runs here, written by `devloop init` {source}.
# Look it over, then: devloop check, devloop up
#
# Each service may also have, among others:
#   watch      = ["src", "config"]           whose changes restart it; without it, all of cwd
#   ready      = {{ http = "/healthz" }}       or tcp, exec, log: when it counts as ready
#   depends_on = {{ db = "ready" }}            or "started", or "completed" for a task
#   build      = "make app"                  must succeed before each start
#   reload     = "signal:HUP"                instead of a restart; or "manual", or "exec: COMMAND"
# `devloop schema` prints them all, as a JSON schema that editors take.
"""


def render(project: str, source: str, drafts: Iterable[Draft]) -> str:
    """The whole file. Names are made into what devloop takes, and kept apart; references follow."""
    drafts = list(drafts)
    names: dict[str, str] = {}
    for draft in drafts:
        names[draft.name] = _unused(service_name(draft.name), names.values())
    parts = [_HEAD.format(name=comment_text(project), source=source)]
    parts.append(f"[project]\nname = {string(literal(project or 'app'))}\n")
    parts += [_service(draft, names) for draft in drafts]
    return "\n".join(parts)


def _service(draft: Draft, names: Mapping[str, str]) -> str:
    settings = dict(draft.settings)
    notes = list(draft.notes)
    if draft.name != names[draft.name]:
        notes.insert(0, f"{draft.name} in the original.")
    if isinstance(dependencies := settings.get("depends_on"), Mapping):
        known = {names[name]: value for name, value in dependencies.items() if name in names}
        every_ready = all(value == "ready" for value in known.values())
        settings["depends_on"] = list(known) if every_ready else known
    lines = [line for note in notes for line in comment(note)]
    lines.append(f"[services.{names[draft.name]}]")
    for key in _ORDER:
        value = settings.pop(key, None)
        if key in draft.remarks:
            lines += comment(draft.remarks[key])
        if value is not None and (key == "watch" or value not in ([], {}, "")):
            lines += _setting(key, value)
    assert not settings, settings
    return "\n".join(lines) + "\n"


def _setting(key: str, value: Value) -> list[str]:
    line = f"{key} = {toml(value)}"
    if len(line) <= WIDTH:
        return [line]
    if isinstance(value, Mapping) and key in ("env", "ports", "depends_on"):
        # An inline table must stand on one line (TOML 1.0); dotted keys may take as many as they like.
        return [f"{key}.{bare(name)} = {toml(each)}" for name, each in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [f"{key} = [", *(f"  {toml(each)}," for each in value), "]"]
    return [line]


def comment(text: str) -> list[str]:
    """The text as comment lines."""
    return textwrap.wrap(comment_text(text), WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False)


def comment_text(text: str) -> str:
    """The text on one line, without the control characters that TOML forbids in comments."""
    return re.sub(r"[\x00-\x1f\x7f]+", " ", _clean(text))


def toml(value: Value) -> str:
    """A value in TOML 1.0, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return string(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{bare(key)} = {toml(each)}" for key, each in value.items()) + " }"
    return "[" + ", ".join(toml(each) for each in value) + "]"


_SHORT = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def string(text: str) -> str:
    """A TOML string: literal ('…') where that spares backslashes, otherwise basic with its escapes."""
    text = _clean(text)
    if ('"' in text or "\\" in text) and "'" not in text and not re.search(r"[\x00-\x08\x0a-\x1f\x7f]", text):
        return f"'{text}'"
    escaped = re.sub(r'[\b\t\n\f\r"\\]', lambda match: _SHORT[match.group()], text)
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\u{ord(match.group()):04x}", escaped) + '"'


def bare(key: str) -> str:
    """A TOML key, quoted if need be."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else string(key)


def _clean(text: str) -> str:
    # TOML is UTF-8: bytes of a path that are none can't be written at all.
    return text.encode("utf-8", "replace").decode()


def literal(text: str) -> str:
    """Text in which every dollar is to reach the service: devloop must not take `${VAR}` for its own."""
    return text.replace("$", "$$") if "${" in text or "$$" in text else text


def service_name(text: str) -> str:
    """The nearest name that a service may have: a DNS label (RFC 1123), as in Kubernetes."""
    name = re.sub(r"-{2,}", "-", re.sub(r"[^a-z0-9-]", "-", text.lower())).strip("-")
    return name[:63].strip("-") or "service"


def _unused(name: str, taken: Iterable[str]) -> str:
    others = set(taken)
    if name not in others:
        return name
    return next(each for n in range(2, 10_000) if (each := f"{name[:58]}-{n}") not in others)

"""A service as it is going to stand in the file, and the writer of TOML that stays pleasant to read."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from devloop.config.shell import of_bash

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
    dropped: list[str] = field(default_factory=list)
    """What of the original was not taken over, or is wrong there: sentences, in the file and in the summary."""


PLACEHOLDER = Draft(
    "app",
    {"command": "python3 -m http.server --bind 127.0.0.1 8000", "ports": {"http": 8000}, "ready": {"http": "/"}},
    notes=["Put your own command here, and add a table for each further service."],
)

_ORDER = (
    "mode", "shell", "command", "cwd", "build", "env_file", "env", "ports", "ready", "live", "watch", "ignore",
    "reload", "depends_on", "restart", "stop", "tty", "task", "groups",
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


def render(project: str, source: str, drafts: Iterable[Draft], left_out: Iterable[str] = ()) -> str:
    """The whole file. Names are made into what devloop takes, and kept apart; references follow.

    `left_out` is what was not taken over of the source as a whole.
    """
    drafts = list(drafts)
    written: list[str] = []
    names: dict[str, str] = {}
    for draft in drafts:
        name = _unused(service_name(draft.name), written)
        written.append(name)
        names.setdefault(draft.name, name)
    groups = _groups(drafts, written)
    parts = [_HEAD.format(name=comment_text(project), source=comment_text(source))]
    if notes := [line for note in left_out for line in comment(f"- {note}")]:
        parts.append("\n".join(["# Not taken over, or not as it should be:", *notes]) + "\n")
    parts.append(f"[project]\nname = {string(literal(_clean(project).strip() or 'app'))}\n")
    _part_ports(drafts)
    _name_shells(drafts)
    parts += [_service(draft, name, names, groups) for draft, name in zip(drafts, written, strict=True)]
    return "\n".join(parts)


def _groups(drafts: Sequence[Draft], services: Sequence[str]) -> dict[str, str]:
    """What each group is called: no service may have its name, for `devloop up NAME` could then mean either."""
    groups: dict[str, str] = {}
    for draft in drafts:
        names = draft.settings.get("groups")
        for each in names if isinstance(names, Sequence) else ():
            text = str(each)
            if text not in groups:
                name = service_name(text)
                wanted = f"{name[:50]}-profile" if name in services else name
                groups[text] = _unused(wanted, [*services, *groups.values()])
    return groups


def _part_ports(drafts: Sequence[Draft]) -> None:
    """Take out a port that an earlier service that runs here has: two can't listen on one."""
    owner: dict[int, str] = {}
    for draft in drafts:
        if draft.settings.get("mode") == "off":
            continue
        ports = draft.settings.get("ports")
        pairs = list(ports.items()) if isinstance(ports, Mapping) else [("", port) for port in _sequence(ports)]
        lost = [port for _, port in pairs if isinstance(port, int) and port in owner]
        owner |= {port: draft.name for _, port in pairs if isinstance(port, int) and port not in owner}
        if lost:
            kept = [(name, port) for name, port in pairs if port not in lost]
            draft.settings["ports"] = dict(kept) if isinstance(ports, Mapping) else [port for _, port in kept]
            for port in dict.fromkeys(lost):
                draft.notes.append(
                    f"Port {port} is {owner[port]}'s here: give it one of its own, then put it in `ports`."
                )


def _name_shells(drafts: Sequence[Draft]) -> None:
    """Say `shell = "bash"` for what only bash understands."""
    for draft in drafts:
        lines = [line for key in ("command", "build") if isinstance(line := draft.settings.get(key), str)]
        if found := next(filter(None, map(of_bash, lines)), ""):
            draft.settings["shell"] = "bash"
            draft.remarks["shell"] = f"{found} is bash's, and not of every /bin/sh."


def _sequence(value: Value | None) -> Sequence[Value]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def _service(draft: Draft, name: str, names: Mapping[str, str], groups: Mapping[str, str]) -> str:
    settings = dict(draft.settings)
    notes = [*draft.notes, *draft.dropped]
    if draft.name != name:
        notes.insert(0, f"{draft.name} in the original.")
    if isinstance(dependencies := settings.get("depends_on"), Mapping):
        known = {names[other]: value for other, value in dependencies.items() if other in names}
        every_ready = all(value == "ready" for value in known.values())
        settings["depends_on"] = list(known) if every_ready else known
    if "groups" in settings:
        settings["groups"] = list(dict.fromkeys(groups[str(each)] for each in _sequence(settings["groups"])))
    lines = [line for note in notes for line in comment(note)]
    lines.append(f"[services.{name}]")
    for key in _ORDER:
        value = settings.pop(key, None)
        if value is not None and (key == "watch" or value not in ([], {}, "")):
            if key in draft.remarks:
                lines += comment(draft.remarks[key])
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
    return textwrap.wrap(
        comment_text(text),
        WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


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
    text = text.replace("\0", "")
    return text.replace("$", "$$") if "${" in text or "$$" in text else text


def path_text(path: str) -> str:
    """A path as a setting: every dollar its own, and `~` no home."""
    return literal(f"./{path}" if path.startswith("~") and path[1:2] != "/" and path != "~" else path)


def service_name(text: str) -> str:
    """The nearest name that a service may have: a DNS label (RFC 1123), as in Kubernetes."""
    name = re.sub(r"-{2,}", "-", re.sub(r"[^a-z0-9-]", "-", text.lower())).strip("-")
    return name[:63].strip("-") or "service"


def _unused(name: str, taken: Iterable[str]) -> str:
    others = set(taken)
    if name not in others:
        return name
    return next(each for n in range(2, 10_000) if (each := f"{name[:58]}-{n}") not in others)

"""How configuration problems are put into words: values, choices and the nearest valid name."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, time

Path_ = tuple[str | int, ...]
"""Where a value stands in a file: keys and array indexes, from the outside in."""

LONGEST_LIST = 12
"""Names in a hint; a project of 100 services should not print them all."""


def quoted(text: str) -> str:
    """The text as a TOML string that fits a message: one line, cut after 60 characters."""
    short = text if len(text) <= 60 else text[:59] + "…"
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in short) + '"'


def describe(value: object) -> str:
    """What a person would call this TOML value."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return quoted(value)
        case int() | float():
            return f"the number {value}"
        case dict():
            return "a table"
        case list() | tuple():
            return "an array"
        case datetime() | date() | time():
            return f"the date or time {value.isoformat()}"
    return repr(value)


def listing(items: Iterable[str], last: str = "or") -> str:
    """`a`, `a or b`, `a, b or c`."""
    *head, tail = items
    return f"{', '.join(head)} {last} {tail}" if head else tail


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that a person most likely meant by `name`, if any is close."""
    from difflib import get_close_matches  # only for a problem

    plain = {_plain(candidate): candidate for candidate in reversed(list(names))}
    found = get_close_matches(_plain(name), plain, n=1, cutoff=0.6)
    return plain[found[0]] if found else None


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def suggestion(name: str, names: Iterable[str], *, kind: str) -> str:
    """A hint: the nearest name, or else what there is, the nearest first. `kind` is the plural, such as "services"."""
    from difflib import SequenceMatcher  # only for a problem

    names = list(names)
    if found := nearest(name, names):
        return f"did you mean {quoted(found)}?"
    if not names:
        return f"there are no {kind}"
    likeness = {each: SequenceMatcher(None, _plain(name), _plain(each)).ratio() for each in names}
    names.sort(key=lambda each: -likeness[each])
    shown = names[:LONGEST_LIST] + ["…"] * (len(names) > LONGEST_LIST)
    return f"{kind}: {', '.join(shown)}"


def dotted(path: Path_) -> str:
    """`services.api.env_file[1]`; a key that TOML would quote is quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = part != "" and part.isascii() and part.replace("-", "").replace("_", "").isalnum()
            text += ("." if text else "") + (part if bare else quoted(part))
    return text

"""Values of a compose file: variables in compose's syntax, turned into devloop's, and lenient readers."""

from __future__ import annotations

import re

_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|(?P<name>[A-Za-z_]\w*)|\{(?P<braced>[A-Za-z_]\w*)(?:(?P<sign>:?[-?+])(?P<rest>[^{}]*))?\})"
)


def translated(text: str) -> str:
    """Compose's variables as devloop writes them.

    Compose takes an unset variable as empty, so `$X` and `${X}` get an empty default. `${X:?message}` must be
    set, as `${X}` must with devloop. `${X:+other}` can't be said; it becomes empty.
    """

    def replace(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$$"
        name, sign, rest = match["name"] or match["braced"], match["sign"] or "", match["rest"] or ""
        if sign.endswith("?"):
            return f"${{{name}}}"
        if sign.endswith("+"):
            return ""
        return f"${{{name}:-{rest}}}"

    return _lone_dollars(_VARIABLE, text, replace)


def default_of(text: str) -> str:
    """The text with every variable's default in its place: for what must be known now, such as a port."""

    def replace(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        return (match["rest"] or "") if (match["sign"] or "").endswith("-") else ""

    return _VARIABLE.sub(replace, text)


def _lone_dollars(pattern: re.Pattern[str], text: str, replace: object) -> str:
    """Substitute, and double the dollars of a "${" that is no variable of compose's."""
    parts, position = [], 0
    for match in pattern.finditer(text):
        parts += [text[position : match.start()].replace("${", "$${"), replace(match)]  # type: ignore[operator]
        position = match.end()
    return "".join([*parts, text[position:].replace("${", "$${")])


def number(value: object) -> int | None:
    """A port's number, None for what is none; of a range, the first."""
    match = re.match(r"\s*(\d{1,5})\b", default_of(str(value)) if value is not None else "")
    found = int(match.group(1)) if match else 0
    return found if 0 < found < 65536 else None


def texts(value: object) -> list[str]:
    """A list of strings, from a list or a single one."""
    if isinstance(value, list):
        return [str(each) for each in value]
    return [value] if isinstance(value, str) else []

"""Values of a compose file: variables in compose's syntax, turned into devloop's, and ports."""

from __future__ import annotations

import re
from collections.abc import Mapping

from devloop.config.interpolate import UnresolvedError, interpolate
from devloop.config.substitute import Reference, SubstitutionError, pieces, substitute


def translated(
    text: str, variables: Mapping[str, str], project: Mapping[str, str] | None = None
) -> tuple[str, list[str]]:
    """Compose's variables as devloop writes them, and sentences on what can't be said so.

    `variables` is what the file's variables mean; `project` those of them that devloop will know, too. A variable
    stays one, so that nothing of a .env is written out. Compose takes an unset variable as empty, so `$X` gets an
    empty default. `${X:?message}` must be set, as `${X}` must with devloop. `${X:+other}` is decided now.
    """
    if "$" not in text:
        return text, []
    known = variables if project is None else project
    notices: list[str] = []
    try:
        made = [
            each.replace("$", "$$") if isinstance(each, str) else _reference(each, variables, known, notices)
            for each in pieces(text)
        ]
    except SubstitutionError as error:
        return text.replace("$", "$$"), [error.what]
    return "".join(made), notices


def _reference(each: Reference, variables: Mapping[str, str], known: Mapping[str, str], notices: list[str]) -> str:
    name, kind = each.name, each.sign[-1:]
    if variables.get(name) != known.get(name):
        # It is from an included file's own .env, which devloop does not read.
        notices.append(f"{name} is not in the project's .env, so its value was written out")
        return variables.get(name, "").replace("$", "$$")
    value = variables.get(name)
    given = value is not None and (value != "" or not each.sign.startswith(":"))
    if kind == "?":
        if given:
            return f"${{{name}}}"
        notices.append(f"{name} must be set{': ' + each.rest if each.rest else ''}; it is not, so it is empty")
        return f"${{{name}:-}}"
    if kind == "+":
        notices.append(f"${{{name}{each.sign}…}} was decided now, with {name} {'set' if given else 'not set'}")
    if kind != "-" and not (kind == "+" and given):
        return "" if kind == "+" else f"${{{name}:-}}"
    rest, inner = translated(each.rest, variables, known)
    notices += inner
    return rest if kind == "+" else f"${{{name}:-{rest}}}"


def evaluated(text: str, variables: Mapping[str, str]) -> str:
    """A translated text with its variables as they are now: for what must be known, such as a port."""
    try:
        return interpolate(text, variables)
    except UnresolvedError:
        return text


def compose_text(text: str, variables: Mapping[str, str]) -> str:
    """A text of a compose file as compose understands it now."""
    try:
        return substitute(text, variables.get)
    except SubstitutionError:
        return text


def number(text: str) -> int | None:
    """A port's number, None for what is none; of a range, the first."""
    match = re.match(r"\s*(\d{1,5})\b", text)
    found = int(match.group(1)) if match else 0
    return found if 0 < found < 65536 else None

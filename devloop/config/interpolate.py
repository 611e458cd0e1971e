"""`${VAR}` and `${VAR:-default}` in string values, `$$` for a dollar.

The rules are the shell's where it has them: the default counts if the variable is unset or empty, and is
itself interpolated. `$NAME` without braces is left for the shell that may run the command.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from devloop.config.problems import Findings, Place
from devloop.config.substitute import closing
from devloop.config.words import Path_, dotted, nearest, quoted

_SPECIAL = re.compile(r"\$\$|\$\{")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class UnresolvedError(Exception):
    """A string that can't be interpolated. `needle` is the part of it that is wrong."""

    def __init__(self, what: str, needle: str, hint: str) -> None:
        super().__init__(what)
        self.what = what
        self.needle = needle
        self.hint = hint


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """The text with its variables replaced. Raises `UnresolvedError` for the first that has no value."""
    if "$" not in text:
        return text
    done, position = [], 0
    while found := _SPECIAL.search(text, position):
        done.append(text[position : found.start()])
        if found.group() == "$$":
            done.append("$")
            position = found.end()
        else:
            value, position = _variable(text, found.start(), variables)
            done.append(value)
    return "".join(done) + text[position:]


def _variable(text: str, start: int, variables: Mapping[str, str]) -> tuple[str, int]:
    """The value of the `${…}` that starts at `start`, and where the text goes on."""
    end = closing(text, start + 1)
    if end is None:
        raise UnresolvedError(
            'a "${" has no closing brace',
            text[start : start + 20],
            "write $${ for a literal dollar and brace",
        )
    body = text[start + 2 : end]
    name = _NAME.match(body)
    rest = body[name.end() :] if name else body
    if name is None or (rest and not rest.startswith(":-")):
        raise UnresolvedError(
            f"{quoted('${' + body + '}')} is not a variable",
            "${" + body,
            "the forms are ${VAR} and ${VAR:-default}; write $${ for a literal dollar and brace",
        )
    value = variables.get(name.group())
    if rest:
        return (value or interpolate(rest[2:], variables)), end + 1
    if value is None:
        hint = f"set it in the environment or in .env, or give a default: ${{{name.group()}:-…}}"
        if close := nearest(name.group(), variables):
            hint = f"did you mean {close}? Or {hint}"
        raise UnresolvedError(f"the variable {name.group()} is not set", "${" + name.group(), hint)
    return value, end + 1


def interpolated(value: Any, variables: Mapping[str, str], place: Place, findings: Findings, field: int) -> Any:
    """A TOML value with every string in it interpolated; what can't be is a finding, and stays as it is.

    The first `field` parts of the path name what later checks then leave alone: a port that is still
    called `${PORT}` is not worth a second message.
    """
    wrong: list[Place] = []

    def walk(value: Any, path: Path_) -> Any:
        if isinstance(value, str):
            return string(value, path) if "$" in value or "\0" in value else value
        if isinstance(value, dict):
            return {key: walk(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, (*path, index)) for index, item in enumerate(value)]
        return value

    def string(value: str, path: Path_) -> str:
        try:
            text = interpolate(value, variables)
        except UnresolvedError as error:
            where = Place(place.file, path, needle=error.needle)
            findings.add(where, f"{dotted(path)}: {error.what}", error.hint)
            wrong.append(Place(place.file, path[:field]))
            return value
        if "\0" in text:
            findings.add(Place(place.file, path), f"{dotted(path)}: a NUL character can't be part of a setting")
            wrong.append(Place(place.file, path[:field]))
            text = text.replace("\0", "\ufffd")  # what is looked for by it is not there, and that is all
        return text

    result = walk(value, place.path)
    # Not before: one value may have several variables that are not set.
    for where in wrong:
        findings.silence(where)
    return result

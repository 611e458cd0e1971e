"""Checks a table against its model and says what is wrong in words for a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from devloop.config.problems import Findings, Place
from devloop.config.schema import TABLES, Defaults, DependencyTable, File, ProjectTable, Service, Table
from devloop.config.words import describe, dotted, listing, nearest, quoted, suggestion

T = TypeVar("T", bound=Table)

ALIASES: Mapping[str, str] = {
    "cmd": "command",
    "run": "command",
    "exec": "command",
    "dir": "cwd",
    "path": "cwd",
    "folder": "cwd",
    "working_dir": "cwd",
    "working_directory": "cwd",
    "workdir": "cwd",
    "environment": "env",
    "environ": "env",
    "vars": "env",
    "dotenv": "env_file",
    "healthcheck": "ready",
    "readiness": "ready",
    "readiness_probe": "ready",
    "liveness": "live",
    "liveness_probe": "live",
    "needs": "depends_on",
    "deps": "depends_on",
    "requires": "depends_on",
    "exclude": "ignore",
    "kill_signal": "stop",
    "oneshot": "task",
    "tags": "groups",
    "profiles": "groups",
    "interval": "period",
    "initial_delay": "grace",
    "start_period": "grace",
    "retries": "failures",
    "threshold": "failures",
}
"""What other tools call a key, where the spelling is no help."""


def shaped(model: type[T], raw: Any, place: Place, findings: Findings) -> tuple[T, frozenset[str]]:
    """The table as its model, and the keys that had to be left out because they are wrong.

    Going on without them is what lets one run report the problems of every stage.
    """
    if not isinstance(raw, dict):
        findings.add(place, f"{dotted(place.path)}: expected a table, not {describe(raw)}")
        return model.model_construct(), frozenset(model.model_fields)
    if not raw:
        return model.model_construct(), frozenset()  # spares an absent table its validator
    try:
        return model.model_validate(raw), frozenset()
    except ValidationError as error:
        good: dict[str, Any] = raw
        for details in error.errors(include_url=False):
            _explain(model, raw, details, place, findings)
            good = _named(good, details["loc"]) if model is Service else _without(good, details["loc"])
        return model.model_validate(good), frozenset(str(e["loc"][0]) for e in error.errors(include_url=False))


def _without(raw: dict[str, Any], path: tuple[str | int, ...]) -> dict[str, Any]:
    """The table without the value at `path`, or what is nearest around it that can be left out."""
    key, *rest = path
    inner = raw.get(str(key))
    if rest and isinstance(inner, dict) and rest[0] in inner:
        return {**raw, str(key): _without(inner, tuple(rest))}
    return {name: value for name, value in raw.items() if name != key}


def _named(raw: dict[str, Any], path: tuple[str | int, ...]) -> dict[str, Any]:
    """As `_without`, but what `depends_on` names stays: the names are looked at later, whatever else is wrong."""
    needed = raw.get("depends_on")
    match path:
        case ("depends_on", name, "condition") if isinstance(needed, dict) and name in needed:
            rest = needed[name] if isinstance(needed[name], dict) else {}
            # Of all conditions this one contradicts nothing, whether the other is a task or not.
            return {**raw, "depends_on": {**needed, name: {**rest, "condition": "started"}}}
        case ("depends_on", int(), *_) if isinstance(needed, list):
            return {**raw, "depends_on": [name for name in needed if isinstance(name, str)]}
    return _without(raw, path)


def unknown_key(place: Place, key: str, names: Iterable[str], findings: Findings, *, among: Iterable[str] = ()) -> None:
    """A key that is not one of `names` in the table at `place`; `among` are its neighbours."""
    names, among = list(names), frozenset(among)
    table = dotted(place.path)
    alias = ALIASES.get(key.lower().replace("-", "_"), "")
    close = nearest(key, names)
    if close is not None and close in among:
        hint = f"there is a {quoted(close)} already"
    elif close is None and alias in names:
        hint = f"devloop calls it {quoted(alias)}"
    else:
        hint = suggestion(key, names, kind="keys")
    findings.add(place.key(key), f"unknown key {quoted(key)}{f' in {table}' if table else ''}", hint)


def _explain(model: type[Table], raw: Any, details: ErrorDetails, place: Place, findings: Findings) -> None:
    loc = details["loc"]
    on_key = loc[-1] == "[key]"
    path = _unwrapped(raw, loc[:-1] if on_key else loc)
    if details["type"] == "extra_forbidden":
        *outer, key = path
        if model is Defaults and not outer and key in Service.model_fields:
            what = f"{quoted(str(key))} can't be a default: each service has its own"
            findings.add(place.key(key), what, "write it in the services")
            return
        table, neighbours = model, raw
        for part in outer:
            table, neighbours = _below(table, part), neighbours[part]
        unknown_key(place.at(*outer), str(key), table.model_fields, findings, among=neighbours)
        return
    value = details["input"]
    if on_key and not isinstance(raw[path[0]], dict):
        if isinstance(path[-1], str):
            return  # `ports = "x"`: the name was made from the value, which has a problem of its own
        value = raw[path[0]][path[-1]]
    message, hint = _sentence(details, value)
    name = dotted(place.path + _written(raw, path))
    where = place.at(*path)
    # A name in an array is a value, and `locate` finds it as one.
    findings.add(place.key(*path) if on_key else where, f"{name}: {message}", hint)


def _below(table: type[Table], part: str | int) -> type[Table]:
    """The table that a key holds. What stands in an array, or by a service's name in `depends_on`, has its model."""
    return table if isinstance(part, int) or table is DependencyTable else TABLES[table][part]


def _unwrapped(raw: Any, path: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The path without the index that a shorthand, one table for an array of one, was given."""
    parts: list[str | int] = []
    for part in path:
        if isinstance(part, int) and isinstance(raw, dict) and part not in raw:
            continue
        parts.append(part)
        inside = isinstance(raw, dict) and part in raw
        inside = inside or (isinstance(raw, list) and isinstance(part, int) and part < len(raw))
        raw = raw[part] if inside else None
    return tuple(parts)


def _written(raw: Any, path: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """As much of the path as the user wrote: a shorthand stops earlier than the table it stands for."""
    written: list[str | int] = []
    for part in path:
        if not (isinstance(raw, list) if isinstance(part, int) else isinstance(raw, dict) and part in raw):
            break
        raw = raw[part]
        written.append(part)
    return tuple(written)


_EXPECTED = {
    "string_type": "a string",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "model_type": "a table",
    "dict_type": "a table",
    "tuple_type": "an array",
}


def _sentence(details: ErrorDetails, value: Any) -> tuple[str, str]:
    """What was expected instead of the value, and a hint."""
    kind, context = details["type"], details.get("ctx", {})
    got = describe(value)
    match kind:
        case "devloop":
            return context["what"], context["hint"]
        case "literal_error":
            # pydantic joins them as 'a', 'b' or 'c'.
            names = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            hint = ""
            if isinstance(value, str):
                hint = suggestion(value, names, kind="values")
                hint = hint if hint.startswith("did") else ""
            return f"expected {listing(map(quoted, names))}, not {got}", hint
        case "greater_than_equal":
            return f"expected a number of at least {context['ge']}, not {value}", ""
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, not {got}", ""
    return details["msg"][:1].lower() + details["msg"][1:], ""


TOP_LEVEL = tuple(File.model_fields)
"""The tables and keys of a project file."""


def check_top_level(data: Mapping[str, Any], place: Place, findings: Findings, *, project: Place | None) -> None:
    """The keys outside any table. `project` is the project file if this one is included by it."""
    for key, value in data.items():
        if key not in TOP_LEVEL:
            if isinstance(value, dict) and ("command" in value or "cmd" in value):
                findings.add(place.key(key), f"unknown table [{key}]", f"a service is written [services.{key}]")
            elif key in Service.model_fields or key in ProjectTable.model_fields:
                table = "[project]" if key in ProjectTable.model_fields else "[services.NAME]"
                findings.add(
                    place.key(key),
                    f"{quoted(key)} belongs into a {table} table",
                    "TOML has it before any table",
                )
            else:
                unknown_key(place, key, TOP_LEVEL, findings)
        elif project is not None and key != "services":
            findings.add(
                place.key(key),
                f"{quoted(key)} belongs into the project file; an included file has services only",
                f"move it to {project.file.name}",
            )

"""Ports and environment of compose's services on one machine, where no service has a name of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devloop.scaffold.compose_values import default_of, number, translated
from devloop.scaffold.draft import Draft, Value


@dataclass(frozen=True, slots=True)
class Port:
    """One entry of `ports`: where it is reached on the host (None: not at all), and inside."""

    host: int | None
    inside: int


def read_ports(service: Mapping[str, Any]) -> list[Port]:
    """`ports`, in both its syntaxes, then what `expose` adds; TCP only."""
    found = []
    for entry in service.get("ports") or []:
        if isinstance(entry, dict):
            inside, host, protocol = (
                number(entry.get("target")),
                number(entry.get("published")),
                entry.get("protocol"),
            )
        else:
            text, _, protocol = default_of(str(entry)).partition("/")
            *rest, last = text.rsplit(":", 2)
            inside, host = number(last), number(rest[-1]) if rest else None
        if inside is not None and protocol in (None, "", "tcp"):
            found.append(Port(host, inside))
    exposed = [number(str(each).partition("/")[0]) for each in service.get("expose") or []]
    found += [Port(None, each) for each in exposed if each and each not in {port.inside for port in found}]
    return found


def choose(service: Mapping[str, Any], ports: list[Port], taken: set[int]) -> dict[int, int]:
    """Port inside → the one that it gets here.

    A program listens on the port inside, unless its environment tells it otherwise: then the published one is
    better, as it is what people type. Two services can't have the same.
    """
    chosen: dict[int, int] = {}
    local = service.get("build") is not None
    told = set(environment(service).values())
    for port in ports:
        candidates = [port.host, port.inside] if local else [port.host]
        # Below 1024 a program needs rights that it should not have.
        if local and port.inside >= 1024 and str(port.inside) not in told:
            candidates.reverse()
        for wanted in candidates:
            if wanted is not None and wanted not in taken:
                chosen[port.inside] = wanted
                taken.add(wanted)
                break
    return chosen


def set_ports(draft: Draft, service: Mapping[str, Any], ports: list[Port], chosen: Mapping[int, int]) -> None:
    """The draft's ports, and notes on those that differ from the compose file's."""
    told = set(environment(service).values())
    mine = list(dict.fromkeys(chosen.values()))
    draft.settings["ports"] = {"http": mine[0]} if len(mine) == 1 and mine[0] in range(3000, 10_000) else mine
    for port in ports:
        here_ = chosen.get(port.inside)
        if here_ is None:
            draft.notes.append(f"Port {port.inside} is another service's here: give it one of its own.")
        elif here_ != port.inside and str(port.inside) not in told:
            draft.notes.append(f"Port {here_} here is {port.inside} in the container: see that it listens there.")
        elif here_ == port.inside and port.host and port.host != here_:
            draft.notes.append(f"Port {here_} here was published as {port.host} by compose.")


# Environment


def environment(service: Mapping[str, Any]) -> dict[str, str]:
    """Variables with a value; those without one come from the host, here as there."""
    value = service.get("environment")
    if isinstance(value, list):
        pairs = [str(each).partition("=") for each in value]
        return {name: text for name, sign, text in pairs if name and sign}
    if isinstance(value, dict):
        return {
            str(name): ("true" if each else "false") if isinstance(each, bool) else str(each)
            for name, each in value.items()
            if name and each is not None
        }
    return {}


def set_environment(
    draft: Draft,
    file: Path,
    service: Mapping[str, Any],
    services: Mapping[str, Any],
    chosen: Mapping[str, dict[int, int]],
) -> None:
    """The draft's `env` and `env_file`."""
    own = chosen[draft.name]
    env: dict[str, Value] = {}
    moved: set[str] = set()
    for name, raw in environment(service).items():
        value = raw
        for other in services:
            value = _localised(name, value, other, chosen[other], moved)
        if value.isdecimal() and "PORT" in name.upper() and int(value) in own:
            value = str(own[int(value)])
        env[name] = translated(value)
    draft.settings["env"] = env
    if moved:
        names = ", ".join(sorted(moved))
        draft.remarks["env"] = f"Addresses of other services point to this machine here: {names}."
    files = []
    entries = service.get("env_file")
    for entry in entries if isinstance(entries, list) else [entries] if entries else []:
        path = str(entry.get("path", "")) if isinstance(entry, dict) else str(entry)
        path = translated(path)
        if "cwd" in draft.settings and not path.startswith("/"):
            draft.remarks["env_file"] = "Relative to this file."
        optional = isinstance(entry, dict) and entry.get("required") is False
        files.append(path + ("?" if optional or not (file.parent / path).is_file() else ""))
    draft.settings["env_file"] = files


_ADDRESS = re.compile(r"HOST|ADDR|SERVER|ENDPOINT|BROKER|UPSTREAM|URL|URI")


def _localised(variable: str, value: str, host: str, ports: Mapping[int, int], moved: set[str]) -> str:
    """The value with this host replaced by 127.0.0.1, and its port by the one here.

    A host is what follows `://` or an `@` in a URL, or what has a port behind it. The bare name is one only
    if the variable's own name says so: APP_NAME=api is no address.
    """

    def replace(match: re.Match[str]) -> str:
        moved.add(host)
        port = match["port"]
        return "127.0.0.1" if port is None else f"127.0.0.1:{ports.get(int(port), int(port))}"

    name = re.escape(host)
    if value == host:
        if not _ADDRESS.search(variable.upper()):
            return value
        moved.add(host)
        return "127.0.0.1"
    if "://" in value:
        return re.sub(rf"(?:(?<=//)|(?<=[@,])){name}(?::(?P<port>\d+))?(?=[/?,#]|$)", replace, value)
    return re.sub(rf"(?<![^\s,;]){name}:(?P<port>\d+)(?=[/\s,;]|$)", replace, value)

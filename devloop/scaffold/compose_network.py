"""Ports and environment of compose's services on one machine, where no service has a name of its own."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping

from devloop.scaffold.compose_merge import scalar
from devloop.scaffold.compose_service import Port, Reading
from devloop.scaffold.draft import Draft, Value, path_text
from devloop.scaffold.yaml_text import Mapping_, Sequence_


def choose(reading: Reading, ports: list[Port], taken: set[int], *, local: bool) -> dict[int, int]:
    """Port inside → the one that it gets here.

    A program listens on the port inside, unless its environment tells it otherwise: then the published one is
    better, as it is what people type. Two services can't have the same.
    """
    chosen: dict[int, int] = {}
    told = _told(reading)
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


def _told(reading: Reading) -> set[str]:
    return {reading.found.now(value) for value in reading.environment().values() if value is not None}


def set_ports(draft: Draft, reading: Reading, ports: list[Port], chosen: Mapping[int, int]) -> None:
    """The draft's ports, and notes on those that differ from the compose file's."""
    told = _told(reading)
    mine = list(dict.fromkeys(chosen.values()))
    draft.settings["ports"] = {"http": mine[0]} if len(mine) == 1 and mine[0] in range(3000, 10_000) else mine
    for port in ports:
        here_ = chosen.get(port.inside)
        if here_ is None:
            draft.dropped.append(f"Port {port.inside} is another service's here: give it one of its own.")
        elif here_ != port.inside and str(port.inside) not in told:
            draft.dropped.append(f"Port {here_} here is {port.inside} in the container: see that it listens there.")
        elif here_ == port.inside and port.host and port.host != here_:
            draft.notes.append(f"Port {here_} here was published as {port.host} by compose.")


def hosts_of(reading: Reading) -> list[str]:
    """The names that lead to the service in compose's networks."""
    names = [reading.name]
    names += [name for key in ("container_name", "hostname") if (name := reading.now(key))]
    networks = reading.value("networks")
    for each in networks.values() if isinstance(networks, Mapping_) else ():
        aliases = each.get("aliases") if isinstance(each, Mapping_) else None
        if isinstance(aliases, Sequence_):
            names += [reading.found.now(scalar(alias)) for alias in aliases]
    return [name for name in dict.fromkeys(names) if name]


def set_environment(
    draft: Draft,
    reading: Reading,
    hosts: Mapping[str, str],
    chosen: Mapping[str, dict[int, int]],
    image: Mapping[str, str],
) -> None:
    """The draft's `env` and `env_file`. `hosts`: name of a host → its service; `image`: the image's own variables."""
    own = chosen[draft.name]
    env: dict[str, Value] = {}
    moved: set[str] = set()
    links = {alias: name for name, _, alias in (each.partition(":") for each in reading.texts("links")) if alias}
    host_names = {**hosts, **links}
    written: dict[str, str | None] = {**image, **reading.environment()}
    for name, raw in written.items():
        if raw is None:
            # Compose looks a bare name up in .env, too; the process here has the environment alone.
            if name in reading.found.variables and name.isidentifier() and name.isascii():
                env[name] = f"${{{name}:-}}"
            continue
        value = raw
        for host, service in host_names.items():
            if host in value:
                value = _localised(name, value, host, chosen.get(service, {}), moved)
        plain = reading.found.now(value)
        if (
            re.fullmatch(r"[0-9]{1,5}", plain)
            and "PORT" in name.upper()
            and own.get(int(plain), int(plain)) != int(plain)
        ):
            value = str(own[int(plain)])
        env[name] = value
    draft.settings["env"] = env
    if moved:
        names = ", ".join(sorted(moved))
        draft.remarks["env"] = f"Addresses of other services point to this machine here: {names}."
    _set_env_files(draft, reading)


def _set_env_files(draft: Draft, reading: Reading) -> None:
    value = reading.value("env_file")
    entries = value.places() if isinstance(value, Sequence_) else [(value, reading.where("env_file"))]
    files: list[str] = []
    for entry, at in entries:
        table = entry if isinstance(entry, Mapping_) else None
        path = scalar(table.get("path") if table is not None else entry)
        if not path:
            if entry is not None:
                reading.say(at, "env_file: this is no path")
            continue
        if table is not None and table.get("format") is not None:
            reading.say(at, f"env_file: the format {scalar(table['format'])} is not known; it is read as any other")
        optional = table is not None and str(reading.found.now(scalar(table.get("required")))).lower() == "false"
        try:
            if not stat.S_ISREG((reading.found.top / path).stat().st_mode):
                reading.say(at, f"env_file: {path} is no file, and was left out")
                continue
            there = True
        except FileNotFoundError:
            there = False
        except (OSError, ValueError) as error:
            reading.say(at, f"env_file: {path} can't be read ({getattr(error, 'strerror', None) or error})")
            continue
        files.append(path_text(path) + ("?" if optional or not there or path.endswith("?") else ""))
        if not there and not optional:
            reading.say(at, f"env_file: there is no file {path}")
        if "cwd" in draft.settings and not path.startswith("/"):
            draft.remarks["env_file"] = "Relative to this file."
    draft.settings["env_file"] = list(dict.fromkeys(files))


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
        return re.sub(rf"(?:(?<=//)|(?<=[@,])){name}(?::(?P<port>[0-9]{{1,5}}))?(?=[/?,#]|$)", replace, value)
    return re.sub(rf"(?<![^\s,;]){name}:(?P<port>[0-9]{{1,5}})(?=[/\s,;]|$)", replace, value)

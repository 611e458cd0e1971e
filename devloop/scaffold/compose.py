"""From a compose file (https://github.com/compose-spec/compose-spec): what is built from source runs here.

A service with `build` has its code in this project, so it becomes a local service. One with only an image has
not: it is written down as `off`, with what to do about it. Names of services are hosts inside compose; here
they are 127.0.0.1, so addresses in the environment are rewritten.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from devloop.errors import ConfigError
from devloop.scaffold.compose_network import Port, choose, environment, read_ports, set_environment, set_ports
from devloop.scaffold.compose_values import default_of, texts, translated
from devloop.scaffold.detect import from_folder
from devloop.scaffold.dockerfile import Stage, as_typed, here, joined, read_stage
from devloop.scaffold.draft import Draft, Value
from devloop.scaffold.procfile import read

_CONDITIONS = {
    "service_started": "started",
    "service_healthy": "ready",
    "service_completed_successfully": "completed",
}
_RESTART = {"no": "never", "always": "always", "unless-stopped": "always", "on-failure": "on-failure"}


def from_compose(file: Path) -> list[Draft]:
    """A service for each of the file's. Raises ConfigError if it can't be read as a compose file."""
    services = _services(file)
    ports = {name: read_ports(service) for name, service in services.items()}
    taken: set[int] = set()
    chosen: dict[str, dict[int, int]] = {}
    for name, service in services.items():
        chosen[name] = choose(service, ports[name], taken)
    drafts = [_draft(file, name, service, services, ports, chosen) for name, service in services.items()]
    names = {draft.name for draft in drafts}
    completed = {
        name
        for service in services.values()
        for name, condition in _dependencies(service).items()
        if condition == "completed" and name in names
    }
    for draft in drafts:
        if draft.name in completed:
            # A task has no port to wait for; that it completes is all that is asked of it.
            draft.settings["task"] = True
            draft.settings.pop("restart", None)
    return drafts


def _services(file: Path) -> dict[str, dict[str, Any]]:
    try:
        data = yaml.load(read(file), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else str(file)
        raise ConfigError(
            f"not valid YAML: {getattr(error, 'problem', None) or error}",
            where=where,
            hint="mend it, or move it out of the way, then run `devloop init` again",
        ) from None
    entries = data.get("services") if isinstance(data, dict) else None
    if not isinstance(entries, dict) or not entries:
        raise ConfigError("a compose file without services", where=str(file))
    entries = {str(name): each for name, each in entries.items() if isinstance(each, dict)}
    return {name: _extended(each, entries, (name,)) for name, each in entries.items()}


def _extended(service: dict[str, Any], entries: dict[str, Any], seen: tuple[str, ...]) -> dict[str, Any]:
    """With what it `extends` in the same file below it."""
    parent = service.get("extends")
    name = parent.get("service") if isinstance(parent, dict) and "file" not in parent else parent
    if not isinstance(name, str) or name in seen or name not in entries:
        return service
    base = _extended(entries[name], entries, (*seen, name))
    merged = {**base, **service}
    if "environment" in base and "environment" in service:
        merged["environment"] = {**environment(base), **environment(service)}
    return merged


def _draft(
    file: Path,
    name: str,
    service: dict[str, Any],
    services: Mapping[str, dict[str, Any]],
    ports: Mapping[str, list[Port]],
    chosen: Mapping[str, dict[int, int]],
) -> Draft:
    draft = Draft(name, {})
    local = service.get("build") is not None
    if local:
        _command(draft, file, service)
        set_ports(draft, service, ports[name], chosen[name])
        set_environment(draft, file, service, services, chosen)
        _watch(draft, file, service)
    else:
        _image_only(draft, service, chosen[name])
    if probe := _probe(service, chosen[name], local):
        draft.settings["ready"] = probe
    dependencies = _dependencies(service)
    draft.settings["depends_on"] = {
        other: how for other, how in dependencies.items() if other in services and other != name
    }
    restart = str(service.get("restart", "")).partition(":")[0]
    if local and restart in _RESTART:
        draft.settings["restart"] = _RESTART[restart]
    if local:
        stop: dict[str, Value] = {}
        if isinstance(signal := service.get("stop_signal"), str):
            stop["signal"] = signal.removeprefix("SIG")
        if re.fullmatch(r"(\d+(ms|s|m|h))+", str(service.get("stop_grace_period", ""))):
            stop["timeout"] = str(service["stop_grace_period"])
        draft.settings["stop"] = stop
    if profiles := texts(service.get("profiles")):
        draft.settings |= {
            "mode": "off",
            "groups": [re.sub(r"[^a-z0-9]+", "-", p.lower()).strip("-") for p in profiles],
        }
        draft.notes.append("In a profile, so off at first.")
    return draft


# What runs


def _command(draft: Draft, file: Path, service: Mapping[str, Any]) -> None:
    build = service["build"] if isinstance(service["build"], dict) else {"context": service["build"]}
    context = default_of(str(build.get("context", ".")))
    folder = (file.parent / context).resolve()
    if not folder.is_dir():
        draft.settings |= {"command": "false", "mode": "off"}
        draft.notes.append(f"It is built from {context}, which is not here. Give it its command and its cwd.")
        return
    if folder != file.parent.resolve():
        draft.settings["cwd"] = posixpath.normpath(context)
    stage = read_stage(folder / str(build.get("dockerfile", "Dockerfile")), build.get("target"))
    stage = stage or Stage()
    entrypoint = _words(service["entrypoint"]) if service.get("entrypoint") else stage.entrypoint
    own = service.get("command")
    command = joined(entrypoint, _words(own) if own else stage.command if not service.get("entrypoint") else "")
    if command:
        draft.settings["command"] = as_typed(here(command, str(service.get("working_dir") or stage.workdir)))
        if not own:
            draft.remarks["command"] = "From the Dockerfile; here it needs its tools installed."
        return
    found = [each for each in from_folder(folder) if not each.settings.get("cwd")]
    if found:
        draft.settings |= {key: value for key, value in found[0].settings.items() if key != "ports"}
        draft.notes += found[0].notes
    else:
        draft.settings |= {"command": "false", "mode": "off"}
        draft.notes.append("Nothing says what it runs: put the command here, then take out `mode`.")


def _words(value: object) -> list[str] | str:
    if isinstance(value, list):
        return [translated(str(word)) for word in value]
    # Compose splits a string into words, and no shell sees it.
    text = translated(str(value))
    try:
        return shlex.split(text)
    except ValueError:
        return text


_SERVERS = {
    "redis": "redis-server --port {port}",
    "valkey": "valkey-server --port {port}",
    "memcached": "memcached -p {port}",
    "nats": "nats-server -p {port}",
}
"""Images whose program is easy to run without one: last part of the image's name → command."""
_USUAL_PORTS = {
    "redis": 6379, "valkey": 6379, "memcached": 11211, "nats": 4222, "postgres": 5432, "postgis": 5432,
    "mysql": 3306, "mariadb": 3306, "mongo": 27017, "rabbitmq": 5672, "kafka": 9092, "elasticsearch": 9200,
}  # fmt: skip


def _image_only(draft: Draft, service: Mapping[str, Any], chosen: Mapping[int, int]) -> None:
    image = default_of(str(service.get("image", "")))
    kind = _kind(image)
    draft.settings |= {
        "mode": "off",
        "command": ["docker", "compose", "up", "--no-log-prefix", draft.name],
        "watch": [],
        "ports": list(dict.fromkeys(chosen.values())),
    }
    port = next(iter(chosen.values()), _USUAL_PORTS.get(kind, 0))
    draft.notes.append(
        f"Only an image ({image or 'none is named'}), so there is no code to run here. "
        'mode = "remote" uses the cluster\'s; mode = "local" runs the command, and needs what that names.'
    )
    if kind in _SERVERS:
        draft.notes.append(f'Without Docker: command = "{_SERVERS[kind].format(port=port)}"')
    if not chosen:
        draft.notes.append("It publishes no port, so it can't be reached from here as the compose file stands.")


def _kind(image: str) -> str:
    return image.rpartition("/")[2].partition("@")[0].partition(":")[0].lower()


# The rest


def _dependencies(service: Mapping[str, Any]) -> dict[str, str]:
    value = service.get("depends_on")
    if isinstance(value, list):
        return {str(name): "started" for name in value}
    if isinstance(value, dict):
        return {str(name): _CONDITIONS.get(str((how or {}).get("condition")), "started") for name, how in value.items()}
    return {}


_URL = re.compile(r"https?://(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])(?::(\d+))?(/[^\s'\"|;&]*)?")


def _probe(service: Mapping[str, Any], chosen: Mapping[int, int], local: bool) -> dict[str, Value]:
    """`healthcheck` as a ready probe. Its interval is left out: here, it is asked several times a second."""
    check = service.get("healthcheck")
    if not isinstance(check, dict) or check.get("disable") or not check.get("test"):
        return {}
    test = check["test"]
    words = [translated(str(word)) for word in test] if isinstance(test, list) else ["CMD-SHELL", translated(str(test))]
    if words[0] == "NONE" or len(words) < 2:
        return {}
    probe: dict[str, Value] = {}
    line = " ".join(words[1:])
    url = _URL.search(line)
    if url and re.search(r"\b(curl|wget|http)\b", line):
        inside = int(url.group(1) or 80)
        port, path = chosen.get(inside, inside), url.group(2) or "/"
        probe["http"] = path if port == next(iter(chosen.values()), None) else f":{port}{path}"
    elif not local:
        return {}  # its command is in the image
    else:
        probe["exec"] = words[1:] if words[0] == "CMD" else line
    for key, name in (("timeout", "timeout"), ("start_period", "grace")):
        if re.fullmatch(r"(\d+(\.\d+)?(us|ms|s|m|h))+", str(check.get(key, ""))):
            probe[name] = str(check[key])
    if isinstance(check.get("retries"), int) and check["retries"] > 0:
        probe["failures"] = check["retries"]
    return probe


def _watch(draft: Draft, file: Path, service: Mapping[str, Any]) -> None:
    """`develop.watch`: its paths and what they leave out."""
    develop = service.get("develop")
    entries = develop.get("watch") if isinstance(develop, dict) else None
    base = (file.parent / str(draft.settings.get("cwd", "."))).resolve()
    watch: list[Value] = []
    ignore: list[Value] = []
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or "path" not in entry:
            continue
        path = (file.parent / str(entry["path"])).resolve()
        if path.exists():
            watch.append(str(path.relative_to(base)) if path.is_relative_to(base) else str(path))
        ignore += texts(entry.get("ignore"))
    if watch:
        draft.settings["watch"] = list(dict.fromkeys(map(str, watch)))
    draft.settings["ignore"] = list(dict.fromkeys(map(str, ignore)))

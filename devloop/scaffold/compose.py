"""From compose files (https://github.com/compose-spec/compose-spec): what is built from source runs here.

A service with `build` has its code in this project, so it becomes a local service, as does one whose folder here is
mounted over the image's. One with only an image has not: it is written down as `off`, with what to do about it. Names
of services are hosts inside compose; here they are 127.0.0.1, so addresses in the environment are rewritten.
"""

from __future__ import annotations

import posixpath
import re
import signal
from collections.abc import Mapping
from pathlib import Path

from pydantic_core import PydanticCustomError

from devloop.config import values
from devloop.config.model import MS
from devloop.errors import ConfigError
from devloop.scaffold.artifact import built_here, code_folder
from devloop.scaffold.compose_files import ELSEWHERE, Composition, read_composition
from devloop.scaffold.compose_merge import pairs, scalar
from devloop.scaffold.compose_network import choose, hosts_of, set_environment, set_ports
from devloop.scaffold.compose_service import Port, Reading
from devloop.scaffold.compose_values import number
from devloop.scaffold.detect import STARTS_WHAT_WAS_BUILT, from_folder
from devloop.scaffold.dockerfile import Stage, Words, as_typed, here, joined, parse_stage, read_stage
from devloop.scaffold.draft import Draft, Value, literal, path_text
from devloop.scaffold.files import json_of
from devloop.scaffold.yaml_text import AGAIN, Mapping_, Sequence_

_CONDITIONS = {
    "": "started",
    "service_started": "started",
    "service_healthy": "ready",
    "service_completed_successfully": "completed",
}
_RESTART = {"no": "never", "false": "never", "always": "always", "unless-stopped": "always", "on-failure": "on-failure"}


def from_compose(top: Path, files: list[Path], environ: Mapping[str, str]) -> tuple[list[Draft], Composition]:
    """A service for each of the files'. Raises ConfigError if they can't be read as compose files."""
    try:
        found = read_composition(top, files, environ)
        return _drafts(found), found
    except RecursionError:
        raise ConfigError("values are nested too deep", where=str(files[0].name), hint=AGAIN) from None


def _drafts(found: Composition) -> list[Draft]:
    readings = {name: Reading(name, data, found) for name, data in found.services.items()}
    plans = {name: _Plan(reading) for name, reading in readings.items()}
    taken: set[int] = set()
    chosen = {name: choose(plan.reading, plan.ports, taken, local=plan.local) for name, plan in plans.items()}
    hosts: dict[str, str] = {}
    for name, reading in readings.items():
        for host in hosts_of(reading):
            hosts.setdefault(host, name)
    dependencies = {name: _dependencies(reading, readings) for name, reading in readings.items()}
    completed = {other for each in dependencies.values() for other, how in each.items() if how[0] == "completed"}
    _break_cycles(dependencies, readings)
    return [
        _draft(plan, hosts, chosen, _written(dependencies[name], completed), task=name in completed)
        for name, plan in plans.items()
    ]


class _Plan:
    """What is known of a service before any draft is made."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.mounted = "" if reading.has("build") else _mounted(reading)
        self.local = reading.has("build") or bool(self.mounted)
        self.stage, self.context = _stage(reading) if reading.has("build") else (None, "")
        self.ports = reading.ports()
        if self.local and not self.ports and self.stage is not None:
            self.ports = [Port(None, port) for port in dict.fromkeys(self.stage.ports) if 0 < port < 65536]


def _draft(
    plan: _Plan,
    hosts: Mapping[str, str],
    chosen: Mapping[str, dict[int, int]],
    dependencies: Mapping[str, Value],
    *,
    task: bool,
) -> Draft:
    reading = plan.reading
    draft = Draft(reading.name, {})
    mine = chosen[reading.name]
    if plan.local:
        _command(draft, plan)
        set_ports(draft, reading, plan.ports, mine)
        image = {name: literal(value) for name, value in plan.stage.env.items()} if plan.stage else {}
        image = {name: value for name, value in image.items() if "/" not in value and name and "=" not in name}
        set_environment(draft, reading, hosts, chosen, image)
        _watch(draft, reading)
        _life(draft, reading)
        reading.value("stdin_open")  # which is so here for every service
        if reading.now("tty").lower() == "true":
            draft.settings["tty"] = True
    else:
        _image_only(draft, reading, mine)
    if probe := _probe(draft, reading, mine, plan.local):
        draft.settings["ready"] = probe
        if (interval := scalar(reading.table("healthcheck").get("interval"))) and plan.local:
            draft.remarks["ready"] = f"Asked several times a second while it starts; compose asks every {interval}."
    draft.settings["depends_on"] = dict(dependencies)
    profiles = [profile for profile in reading.texts("profiles") if profile]
    if profiles:
        draft.settings["groups"] = profiles
        if not found_active(profiles, reading.found.profiles):
            draft.settings["mode"] = "off"
            draft.notes.append("In a profile, so off at first.")
    if task:
        # A task has no port to wait for; that it completes is all that is asked of it.
        draft.settings["task"] = True
        draft.settings.pop("ready", None)
        if reading.now("restart").partition(":")[0] != "on-failure":
            draft.settings.pop("restart", None)
    draft.dropped += [*reading.said, *filter(None, [reading.left_out() if plan.local else ""])]
    return draft


def found_active(profiles: list[str], active: frozenset[str]) -> bool:
    """Whether one of the profiles is switched on by COMPOSE_PROFILES."""
    return "*" in active or any(profile in active for profile in profiles)


# What runs


def _stage(reading: Reading) -> tuple[Stage | None, str]:
    """The Dockerfile's stage that is built, and the context's path."""
    value = reading.value("build")
    table = value if isinstance(value, Mapping_) else Mapping_()
    if isinstance(value, Sequence_):
        reading.say(reading.where("build"), "build must be text or a mapping; it was taken for this folder")
    context = scalar(table.get("context") if isinstance(value, Mapping_) else value) or "."
    args = pairs(table.get("args"))
    given = {
        name: reading.found.variables.get(name, "") if each is None else reading.found.now(scalar(each))
        for name, each in (args.items() if isinstance(args, Mapping_) else ())
    }
    target = reading.found.now(scalar(table.get("target"))) or None
    if inline := scalar(table.get("dockerfile_inline")):
        return parse_stage(reading.found.now(inline), target, given), context
    name = reading.found.now(scalar(table.get("dockerfile"))) or "Dockerfile"
    if "\0" in context or "\0" in name:
        return None, "."
    stage = read_stage(reading.found.top / context / name, target, given)
    if stage is None and not ELSEWHERE.search(context) and "dockerfile" in table:
        reading.say(table.where("dockerfile"), f"there is no Dockerfile {name} in {context}")
    return stage, context


def _command(draft: Draft, plan: _Plan) -> None:
    reading, context = plan.reading, plan.mounted or plan.context
    folder = reading.found.top / context
    if not plan.mounted and (ELSEWHERE.search(context) or not folder.is_dir()):
        draft.settings |= {"command": "false", "mode": "off"}
        draft.notes.append(f"It is built from {context}, which is not here. Give it its command and its cwd.")
        return
    if posixpath.normpath(context) != ".":
        draft.settings["cwd"] = path_text(posixpath.normpath(context))
    stage = plan.stage or Stage()
    own_entry, own = reading.command("entrypoint"), reading.command("command")
    entrypoint = own_entry or _escaped(stage.entrypoint)
    inherited = "" if own_entry else _escaped(stage.command)
    command = joined(entrypoint, own or inherited)
    workdir = reading.now("working_dir") or stage.workdir
    if own_entry and isinstance(own_entry, str):
        command = own_entry if not own else f"{own_entry} {own if isinstance(own, str) else as_typed(own)}"
    if plan.mounted:
        command = here(command, reading.now("working_dir"))
    elif command and (artifact := built_here(stage, command, workdir, folder)) is not None:
        if artifact.build:
            draft.settings["build"] = _line(artifact.build)
            draft.remarks["build"] = "From the Dockerfile, which makes in the image what the command names."
        _set_folder(draft, context, artifact.cwd)
        command = here(artifact.command, workdir)
    else:
        command = here(command, workdir)
        _set_folder(draft, context, code_folder(stage, workdir, folder))
        _set_script_build(draft, command, folder)
    if (runnable := reading.runnable(command)) and not _is_missing(runnable, folder, draft):
        draft.settings["command"] = runnable
        if not own and not plan.mounted:
            draft.remarks["command"] = "From the Dockerfile; here it needs its tools installed."
        return
    found = [each for each in from_folder(folder) if not each.settings.get("cwd")]
    if found and (not runnable or "build" in found[0].settings):
        settings = {key: value for key, value in found[0].settings.items() if key != "ports"}
        draft.settings |= settings
        draft.notes += found[0].notes
    elif runnable:
        draft.settings["command"] = runnable
        word = runnable.split()[0] if isinstance(runnable, str) else runnable[0]
        draft.notes.append(f"{word} is not here: the image's build makes it. Give the service a `build` that does.")
    else:
        draft.settings |= {"command": "false", "mode": "off"}
        draft.notes.append("Nothing says what it runs: put the command here, then take out `mode`.")


def _set_folder(draft: Draft, context: str, inside: str) -> None:
    path = posixpath.normpath(posixpath.join(context, inside))
    if path != ".":
        draft.settings["cwd"] = path_text(path)


_SCRIPT = re.compile(r"(npm|pnpm|yarn|bun)\s+(?:run\s+)?(?:-\S+\s+)*([\w:.-]+)")


def _set_script_build(draft: Draft, command: Words, folder: Path) -> None:
    """A build for `npm start` whose script runs what the build script makes."""
    match = _SCRIPT.match(command if isinstance(command, str) else " ".join(command))
    scripts = json_of(folder / "package.json").get("scripts")
    if not match or not isinstance(scripts, dict) or not isinstance(scripts.get("build"), str):
        return
    if STARTS_WHAT_WAS_BUILT.search(str(scripts.get(match[2], ""))):
        draft.settings["build"] = f"{match[1]} run build"
        draft.remarks["build"] = "The script starts what the build script makes."


def _escaped(words: Words) -> Words:
    """A Dockerfile's words with their dollars kept from devloop."""
    if isinstance(words, str):
        return literal(words)
    return [word.replace("$", "$$") for word in words]


def _line(text: str) -> Value:
    try:
        values.command_line(text)
    except PydanticCustomError:
        return ["/bin/sh", "-c", text.replace("$", "$$")]
    return literal(text)


def _is_missing(command: Words, folder: Path, draft: Draft) -> bool:
    """Whether the command's program is a path that is not here, and nothing makes it."""
    if "build" in draft.settings:
        return False
    words = command.split() if isinstance(command, str) else command
    first = words[0]
    if not first.startswith(("./", "bin/", "build/", "dist/", "target/", "out/")) or "$" in first:
        return False
    try:
        return not (folder / first).exists()
    except (OSError, ValueError):
        return False


def _mounted(reading: Reading) -> str:
    """The folder here that is mounted where an image's command works: the code, then. Empty if there is none."""
    work = reading.now("working_dir")
    if not work.startswith("/") or not reading.has("command"):
        return ""
    volumes = reading.peek("volumes")
    for each in volumes if isinstance(volumes, Sequence_) else ():
        if isinstance(each, Mapping_):
            source, target = scalar(each.get("source")), reading.found.now(scalar(each.get("target")))
            if each.get("type") != "bind":
                continue
        else:
            source, _, rest = reading.found.now(scalar(each)).partition(":")
            target = rest.partition(":")[0]
        inside = work == target or work.startswith(target.rstrip("/") + "/")
        if not target or not inside or source.startswith(("/", "~")) or not source or "\0" in source:
            continue
        path = posixpath.normpath(posixpath.join(source, posixpath.relpath(work, target)))
        named_volume = "/" not in source and not source.startswith(".")
        if not named_volume and (reading.found.top / path).is_dir():
            return path
    return ""


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


def _image_only(draft: Draft, reading: Reading, chosen: Mapping[int, int]) -> None:
    image = reading.now("image")
    kind = image.rpartition("/")[2].partition("@")[0].partition(":")[0].lower()
    draft.settings |= {
        "mode": "off",
        "command": ["docker", "compose", "up", "--no-log-prefix", literal(draft.name)],
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


# Order and life

_Dependency = tuple[str, bool]
"""Condition, and whether it is restarted with what it depends on."""


def _dependencies(reading: Reading, readings: Mapping[str, Reading]) -> dict[str, _Dependency]:
    made: dict[str, _Dependency] = {}
    for name, how in reading.dependencies().items():
        condition = reading.found.now(scalar(how.get("condition")))
        if condition not in _CONDITIONS:
            reading.say(
                how.where("condition"), f"depends_on: there is no condition {condition}; it waits for the start"
            )
        if name not in readings or name == reading.name:
            reading.say(reading.where("depends_on"), f"depends_on: there is no other service {name}")
            continue
        restart = reading.found.now(scalar(how.get("restart"))).lower() == "true"
        if restart:
            reading.say(how.where("restart"), f"depends_on.{name}.restart was not taken over")
        made[name] = (_CONDITIONS.get(condition, "started"), restart)
    return made


def _break_cycles(dependencies: Mapping[str, dict[str, _Dependency]], readings: Mapping[str, Reading]) -> None:
    """Take out what closes a cycle, which compose refuses as devloop does."""
    done: set[str] = set()
    for start in dependencies:
        path: list[str] = [start]
        pending = [iter(list(dependencies[start]))]
        while pending:
            other = next(pending[-1], None)
            if other is None:
                done.add(path.pop())
                pending.pop()
            elif other in path:
                del dependencies[path[-1]][other]
                reading = readings[path[-1]]
                reading.say(reading.where("depends_on"), f"depends_on: {other} waits for this one in the end")
            elif other not in done:
                path.append(other)
                pending.append(iter(list(dependencies[other])))


def _written(dependencies: Mapping[str, _Dependency], completed: set[str]) -> dict[str, Value]:
    """As devloop.toml has them: a task is always completed, never ready."""
    made: dict[str, Value] = {}
    for name, (condition, _) in dependencies.items():
        made[name] = "completed" if condition == "ready" and name in completed else condition
    return made


def _life(draft: Draft, reading: Reading) -> None:
    policy, _, limit = reading.now("restart").partition(":")
    if policy in _RESTART:
        draft.settings["restart"] = _RESTART[policy]
        if limit.isdecimal() and int(limit[:9]) > 0 and policy == "on-failure":
            draft.settings["restart"] = {"policy": "on-failure", "limit": int(limit[:9])}
    elif policy:
        reading.say(reading.where("restart"), f"restart: {policy} is not known")
    stop: dict[str, Value] = {}
    name = reading.now("stop_signal").upper().removeprefix("SIG")
    if name.isdecimal():
        known = {int(each): each.name.removeprefix("SIG") for each in signal.Signals}
        name = known.get(int(name[:4]), name)
    if name in values.SIGNALS:
        stop["signal"] = name
    elif name:
        reading.say(reading.where("stop_signal"), f"stop_signal: {name} can't be sent")
    if grace := _span(reading.now("stop_grace_period")):
        stop["timeout"] = grace
    draft.settings["stop"] = stop


def _span(text: str, least: int = 1 * MS) -> str:
    """A duration as devloop takes it, empty if it is none."""
    try:
        values.duration(text, least)
    except PydanticCustomError:
        return ""
    return text


_URL = re.compile(r"https?://(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])(?::(\d{1,5}))?(/[^\s'\"|;&)]*)?")


def _probe(draft: Draft, reading: Reading, chosen: Mapping[int, int], local: bool) -> dict[str, Value]:
    """`healthcheck` as a ready probe. Its interval is left out: here, it is asked several times a second."""
    check = reading.table("healthcheck")
    test = check.get("test")
    if reading.found.now(scalar(check.get("disable"))).lower() == "true" or not test:
        return {}
    words = [scalar(word) for word in test] if isinstance(test, Sequence_) else ["CMD-SHELL", scalar(test)]
    if isinstance(test, Mapping_):
        reading.say(check.where("test"), "healthcheck.test must be text or a list; it was left out")
        return {}
    if words[0] not in ("NONE", "CMD", "CMD-SHELL"):
        reading.say(check.where("test"), "healthcheck.test must begin with CMD, CMD-SHELL or NONE; CMD was meant")
        words = ["CMD", *words]
    if words[0] == "NONE" or len(words) < 2:
        return {}
    probe: dict[str, Value] = {}
    line = reading.found.now(" ".join(words[1:]))
    url = _URL.search(line)
    if url and url.group().startswith("http:") and re.search(r"\b(curl|wget|http)\b", line):
        inside = number(url.group(1) or "80") or 80
        port, path = chosen.get(inside, inside), literal(url.group(2) or "/")
        probe["http"] = path if port == next(iter(chosen.values()), None) else f":{port}{path}"
    elif not local:
        if chosen:
            draft.notes.append("Its healthcheck is a command of the image, so devloop waits for its port instead.")
        return {}
    elif words[0] == "CMD":
        probe["exec"] = reading.runnable(words[1:])
    else:
        probe["exec"] = reading.runnable(" ".join(words[1:]))
    if "exec" in probe and not probe["exec"]:
        return {}
    for key, name, least in (("timeout", "timeout", 1 * MS), ("start_period", "grace", 0)):
        text = reading.found.now(scalar(check.get(key)))
        if text and (span := _span(text, least)):
            probe[name] = span
        elif text:
            reading.say(check.where(key), f"healthcheck.{key}: {text} is no duration")
    retries = reading.found.now(scalar(check.get("retries")))
    if re.fullmatch(r"[1-9][0-9]{0,8}", retries):
        probe["failures"] = int(retries)
    return probe


def _watch(draft: Draft, reading: Reading) -> None:
    """`develop.watch`: its paths and what they leave out."""
    top = reading.found.top
    entries = reading.table("develop").get("watch")
    base = (top / str(draft.settings.get("cwd", "."))).resolve()
    watch: list[str] = []
    ignore: list[str] = []
    for entry in entries if isinstance(entries, Sequence_) else []:
        text = scalar(entry.get("path")) if isinstance(entry, Mapping_) else ""
        if not text or not isinstance(entry, Mapping_):
            continue
        try:
            path = (top / text).resolve()
            if path.exists():
                watch.append(literal(str(path.relative_to(base)) if path.is_relative_to(base) else str(path)))
        except (OSError, ValueError):
            continue
        ignored = entry.get("ignore")
        each = ignored if isinstance(ignored, Sequence_) else [ignored]
        ignore += [text for one in each if (text := scalar(one))]
    if watch:
        draft.settings["watch"] = list(dict.fromkeys(watch))
    draft.settings["ignore"] = list(dict.fromkeys(ignore))

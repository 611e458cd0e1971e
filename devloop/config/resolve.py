"""One service's table and the defaults → `model.Service`, with the checks that need one service only."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from devloop.config.envfile import read_env_file
from devloop.config.find import other_owner
from devloop.config.forms import NO_WORKLOAD
from devloop.config.model import (
    MS,
    SECOND,
    Attach,
    AttachKind,
    Command,
    Condition,
    Encryption,
    ExecCheck,
    Matching,
    Mode,
    Probe,
    Reload,
    Restart,
    RestartPolicy,
    RouteRule,
    Schedule,
    Service,
    StopPolicy,
    TcpCheck,
    WatchMode,
)
from devloop.config.model import Place as ServicePlace
from devloop.config.probe import HOST, probe, rhythm
from devloop.config.problems import Findings, Place
from devloop.config.schema import Common, Defaults, Table, TlsTable
from devloop.config.schema import Service as ServiceTable
from devloop.config.values import command_line
from devloop.config.words import dotted, quoted
from devloop.places import user_name

DEBOUNCE = 4 * MS
STOP_TIMEOUT = 5 * SECOND
HOLD = 10 * SECOND
_NONE = Command(("true",), "")
"""Stands for a command that is missing, so that the rest is still checked."""


@dataclass(slots=True)
class EnvFiles:
    """The env files of a project; each is read once, for many services name the same."""

    environ: Mapping[str, str]
    variables: Mapping[str, str]
    """The same with the project's .env, for references in env files."""
    findings: Findings
    read: dict[Path, dict[str, str]] = field(default_factory=dict)
    missing: set[Path] = field(default_factory=set)
    """Those that are not there."""
    project: Path = Path("devloop.toml")
    """The project file, of which `devloop trust` may have been said."""
    foreign: dict[Path, int] = field(default_factory=dict)
    """Those of other users, who could run commands as this one by their variables: they are not read."""

    def at(self, file: Path, place: Place, hint: str | None) -> dict[str, str] | None:
        """What the file says, or None if it is missing, which is a finding unless there is no `hint`."""
        if file in self.read:
            return self.read[file]
        try:
            if (uid := other_owner(file, self.project)) is not None:
                self.foreign[file] = uid
                whose = f"{user_name(uid)}, whose variables could run commands as you"
                what = f"{dotted(place.path)}: {file} belongs to {whose}"
                self.findings.add(place, what, "look through it, then allow it with `devloop trust`")
                return None
            self.read[file] = read_env_file(file, self.variables, self.findings)
            return self.read[file]
        except FileNotFoundError:
            self.missing.add(file)
            if hint is not None:
                self.findings.add(place, f"{dotted(place.path)}: there is no file {file}", hint)
        except OSError as error:
            self.findings.add(place, f"{dotted(place.path)}: {file} can't be read: {error.strerror}")
        return None


@dataclass(frozen=True, slots=True)
class Scope:
    """A service's table, where it stands, and the defaults behind it."""

    name: str
    table: ServiceTable
    broken: frozenset[str]
    """Its keys that were left out because they are wrong."""
    place: Place
    defaults: Defaults
    defaults_place: Place
    env_files: EnvFiles
    findings: Findings
    has_remote: bool
    project_shell: tuple[str, ...] | None = None

    def holder(self, key: str) -> tuple[Common, Place]:
        """The table that decides on a key that is replaced as a whole, and the place of its value."""
        if getattr(self.table, key) is not None or key in self.broken:
            return self.table, self.place.at(key)
        return self.defaults, self.defaults_place.at(key)

    def path(self, text: str, folder: Path) -> Path:
        """A path as it is written in a file, made absolute."""
        if text == "~" or text.startswith("~/"):
            text = self.env_files.environ.get("HOME", "~") + text[1:]
        path = folder / text
        # Following links costs system calls, and without `..` it changes nothing.
        return path.resolve() if ".." in path.parts else path


def resolve(scope: Scope) -> Service:
    """The service. What is wrong becomes a finding, and a value that lets the other checks go on."""
    table, defaults = scope.table, scope.defaults
    if table.command is None and "command" not in scope.broken:
        scope.findings.add(
            scope.place.key(),
            f"{dotted(scope.place.path)}: has no command",
            'add command = "…": what it runs',
        )
    task = bool(table.task)
    cwd = _cwd(scope)
    env_files = _env_files(scope, cwd)
    watch = table.watch if table.watch is not None else (() if task else (".",))
    gitignore = scope.holder("gitignore")[0].gitignore
    debounce = scope.holder("debounce")[0].debounce
    ports = table.ports or {}
    shell = _Shell(scope)
    return Service(
        name=scope.name,
        command=shell.runs(table.command or _NONE, "command"),
        cwd=cwd,
        env={**(defaults.env or {}), **(table.env or {})},
        env_files=tuple(env_files),
        watch=tuple(_watch(scope, index, text, cwd) for index, text in enumerate(watch)),
        ignore=scope.holder("ignore")[0].ignore or (),
        gitignore=True if gitignore is None else gitignore,
        watch_mode=_watch_mode(scope),
        poll=scope.holder("poll")[0].poll or 0,
        build=None if table.build is None else shell.runs(table.build, "build"),
        reload=_reload(scope, shell),
        ports=ports,
        ready=_shelled(_ready(scope, task), shell, "ready"),
        live=_shelled(_live(scope, task), shell, "live"),
        depends_on={name: Condition(each.condition or "ready") for name, each in (table.depends_on or {}).items()},
        restarts_with=tuple(name for name, each in (table.depends_on or {}).items() if each.restart),
        schedule=_schedule(scope, task),
        restart=_restart(scope, task),
        stop=_stop(scope),
        task=task,
        mode=_mode(scope),
        groups=tuple(dict.fromkeys(scope.holder("groups")[0].groups or ())),
        debounce=DEBOUNCE if debounce is None else debounce,
        tty=bool(scope.holder("tty")[0].tty),
        place=_place_of(scope),
        attach=_attach(scope),
        hold=HOLD if (hold := scope.holder("hold")[0].hold) is None else hold,
        file_env=env_files,
        env_from_workload=scope.holder("env_from_workload")[0].env_from_workload or (),
    )


class _Shell:
    """The shell of one service's commands."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        holder, self._place = scope.holder("shell")
        words = holder.shell
        if words is None and scope.project_shell is not None:
            words, self._place = scope.project_shell, Place(scope.defaults_place.file, ("project", "shell"))
        self._words = words and (_expanded(words[0], scope), *words[1:])

    def runs(self, command: Command, key: str) -> Command:
        """The command for this shell, if a shell is what it takes. One that is not installed is a finding."""
        if self._words is None or not command.typed:
            return command
        found = command_line(command.text, self._words)
        if found.argv[: len(self._words)] == self._words:
            scope = self._scope
            path = (scope.table.env or {}).get("PATH") or scope.env_files.environ.get("PATH")
            if shutil.which(self._words[0], path=path) is None:
                what = f"{dotted(self._place.path)}: there is no {quoted(self._words[0])} on this machine"
                scope.findings.add(self._place, what, f"install it; {dotted(scope.place.path)}.{key} needs a shell")
        return found


def _expanded(name: str, scope: Scope) -> str:
    return str(scope.path(name, Path())) if name.startswith("~/") else name


def _reload(scope: Scope, shell: _Shell) -> Reload:
    reload = scope.holder("reload")[0].reload or Reload()
    return reload if reload.command is None else replace(reload, command=shell.runs(reload.command, "reload"))


def _shelled(probe: Probe | None, shell: _Shell, key: str) -> Probe | None:
    if probe is None or not isinstance(probe.check, ExecCheck):
        return probe
    return replace(probe, check=ExecCheck(shell.runs(probe.check.command, f"{key}.exec")))


def nothing(name: str, cwd: Path, place: ServicePlace) -> Service:
    """A service that runs nothing and stands for a workload."""
    return Service(
        name=name,
        command=_NONE,
        cwd=cwd,
        env={},
        env_files=(),
        watch=(),
        ignore=(),
        gitignore=True,
        build=None,
        reload=Reload(),
        ports={},
        ready=None,
        live=None,
        depends_on={},
        restart=RestartPolicy(),
        stop=StopPolicy(int(signal.SIGTERM), STOP_TIMEOUT),
        task=False,
        mode=Mode.LOCAL,
        groups=(),
        debounce=DEBOUNCE,
        place=place,
    )


def _cwd(scope: Scope) -> Path:
    folder = scope.place.file.parent
    text = scope.table.cwd
    if text is None:
        return folder
    cwd = scope.path(text, folder)
    if not cwd.is_dir():
        what = "is not a folder" if cwd.exists() else "does not exist"
        place = scope.place.at("cwd")
        scope.findings.add(
            place, f"{dotted(place.path)}: the folder {quoted(text)} {what}", f"it is looked for in {folder}"
        )
    return cwd


def _env_files(scope: Scope, cwd: Path) -> dict[Path, Mapping[str, str]]:
    holder, place = scope.holder("env_file")
    found: dict[Path, Mapping[str, str]] = {}
    for index, text in enumerate(holder.env_file or ()):
        optional = text.endswith("?")
        file = scope.path(text.removesuffix("?"), place.file.parent)
        hint = None if optional else 'a "?" at the end of the name says that it may be missing'
        if hint and scope.table.cwd and (scope.path(text, cwd)).is_file():
            hint = f"it is relative to this file, so {quoted(f'{scope.table.cwd}/{text}')} would be the one"
        values = scope.env_files.at(file, place.at(index), hint)
        if values is not None:
            found[file] = values
    return found


def _watch(scope: Scope, index: int, text: str, cwd: Path) -> Path:
    path = scope.path(text, cwd)
    if "*" in text and not path.exists():
        place = scope.place.at("watch", index)
        hint = "watch the folder above it; `ignore` leaves files out"
        scope.findings.add(place, f"{dotted(place.path)}: watch takes folders and files, not patterns", hint)
    return path


def _watch_mode(scope: Scope) -> WatchMode:
    """The service's own words, then those of [defaults]; an interval alone asks for polling."""
    own = scope.table
    if own.poll is not None and own.watch_mode == "events":
        place = scope.place.at("poll")
        what = f'{dotted(place.path)}: nothing is polled with watch_mode = "events"'
        scope.findings.add(place, what, "remove one of the two")
    for table in (own, scope.defaults):
        if table.watch_mode is not None:
            return WatchMode(table.watch_mode)
        if table.poll is not None:
            return WatchMode.POLL
    return WatchMode.AUTO


def _ready(scope: Scope, task: bool) -> Probe | None:
    table, ports = scope.table, scope.table.ports or {}
    if "ready" in table.model_fields_set:
        if table.ready is None or _on_task(scope, "ready", task):
            return None
        timing = rhythm(TcpCheck(HOST, 0), table.ready, scope.defaults.ready)
        known = None if "ports" in scope.broken else ports
        return probe(
            table.ready,
            timing,
            known,
            scope.place.at("ready"),
            scope.findings,
            complete="ready" not in scope.broken,
            path=lambda text: scope.path(text, scope.place.file.parent),
        )
    if ports and not task:
        return rhythm(TcpCheck(HOST, next(iter(ports.values()))), scope.defaults.ready)
    return None


def _live(scope: Scope, task: bool) -> Probe | None:
    table = scope.table
    if table.live is None or _on_task(scope, "live", task):
        return None
    timing = rhythm(TcpCheck(HOST, 0), table.live, scope.defaults.live, live=True)
    known = None if "ports" in scope.broken else table.ports or {}
    return probe(
        table.live,
        timing,
        known,
        scope.place.at("live"),
        scope.findings,
        complete="live" not in scope.broken,
        path=lambda text: scope.path(text, scope.place.file.parent),
    )


def _on_task(scope: Scope, key: str, task: bool) -> bool:
    if task:
        place = scope.place.key(key)
        what = f"{dotted(place.path)}: a task has no probes; it is completed by its exit code"
        scope.findings.add(place, what, f"remove {key}, or task = true")
    return task


def _restart(scope: Scope, task: bool) -> RestartPolicy:
    own, shared, base = scope.table.restart, scope.defaults.restart, RestartPolicy()
    written = own.policy if own else None
    # A default that keeps services up would run a migration that has failed half-way again, unasked.
    policy = written or ("never" if task else (shared.policy if shared else None) or base.policy)
    if task and written == "always":
        place = scope.place.at("restart", "policy")
        what = f"{dotted(scope.place.path)}.restart: a task that is always restarted is never completed"
        scope.findings.add(place, what, 'use "on-failure" to try again until it succeeds')
    delay = _merged(own, shared, "delay", base.delay)
    given = _merged(own, shared, "max_delay", 0)
    max_delay = given or max(base.max_delay, delay)
    if given and given < delay:
        place = (scope.place if own else scope.defaults_place).at("restart", "max_delay")
        what = f"max_delay is {given / SECOND:g} s, and delay {delay / SECOND:g} s"
        scope.findings.add(place, f"{dotted(place.path[:-1])}: {what}", "max_delay is the longer one")
    return RestartPolicy(
        policy=Restart(policy),
        delay=delay,
        max_delay=max_delay,
        limit=_merged(own, shared, "limit", base.limit),
        window=_merged(own, shared, "window", base.window),
    )


def _schedule(scope: Scope, task: bool) -> Schedule | None:
    table = scope.table
    given = [key for key in ("schedule", "every") if getattr(table, key) is not None]
    if not given:
        return None
    place = scope.place.key(given[-1])
    if len(given) > 1:
        what = f"{dotted(scope.place.path)}: has schedule and every"
        scope.findings.add(place, what, "every is short for a schedule; leave out one")
    elif not task and "task" not in scope.broken:
        what = f"{dotted(place.path)}: only a task runs by the clock"
        scope.findings.add(place, what, "add task = true; what always runs has no schedule")
    return table.schedule or Schedule(every=table.every or 0)


def _stop(scope: Scope) -> StopPolicy:
    own, shared = scope.table.stop, scope.defaults.stop
    return StopPolicy(
        signal=_merged(own, shared, "signal", int(signal.SIGTERM)),
        timeout=_merged(own, shared, "timeout", STOP_TIMEOUT),
        group=next((t.to for t in (own, shared) if t is not None and t.to is not None), "main") == "group",
    )


def _merged(own: Table | None, shared: Table | None, key: str, default: int) -> int:
    """A key of a table that services and defaults both have: tables are merged key by key."""
    for table in (own, shared):
        value: int | None = getattr(table, key, None)
        if value is not None:
            return value
    return default


def _mode(scope: Scope) -> Mode:
    holder, place = scope.holder("mode")
    mode = Mode(holder.mode or Mode.LOCAL)
    if mode is Mode.REMOTE and not scope.has_remote:
        what = f"{dotted(place.path)}: this project has no remote, so nothing can run there"
        scope.findings.add(place, what, 'add a [remote] table, or use "local" or "off"')
    return mode


def _attach(scope: Scope) -> Attach:
    table = scope.table.attach
    if table is None:
        return Attach()
    rules = []
    for each in table.routes or ():
        headers = {name.lower(): _matching(found) for name, found in (each.headers or {}).items()}
        path = _matching(each.path) if each.path else None
        rules.append(RouteRule(headers, path, (each.method or "").upper(), each.share or 100.0, each.sni or ""))
    kind, fail, way = AttachKind(table.kind or "ingest"), table.fail or "open", table.way or "service"
    attach = Attach(kind, table.ports or {}, tuple(rules), fail, way, _encryption(table.tls))
    if attach.kind is not AttachKind.INGEST and not scope.has_remote:
        place = scope.place.at("attach")
        what = f"{dotted(place.path)}: this project has no remote to be attached to"
        scope.findings.add(place, what, "add a [remote] table, or remove this")
    elif attach.kind is AttachKind.REPLACE:
        _check_replace(scope, attach)
    else:
        _check_names(scope, attach)
    if attach.kind is not AttachKind.INGEST:
        _check_datagrams(scope, attach)
    return attach


def _encryption(table: TlsTable | Literal[False] | None) -> Encryption:
    if table is None:
        return Encryption()
    if table is False:
        return Encryption(inside=False)
    return Encryption(table.secret or "", table.local or "tls", table.client_ca or "", table.client or "")


def _check_names(scope: Scope, attach: Attach) -> None:
    """A connection that is taken by its server's name passes as it is: nothing in it is seen or changed."""
    for index, each in enumerate(attach.routes):
        if not each.sni:
            continue
        place = scope.place.at("attach", "routes", index, "sni")
        if each.headers or each.path or each.method or each.share != 100.0:
            what = f"{dotted(place.path)}: a route by the server's name has no other condition"
            scope.findings.add(place, what, "make two routes of it; the header `host` has the name, too")
        if attach.kind is AttachKind.WIRETAP:
            what = f"{dotted(place.path)}: connections are not copied, and requests are not seen in them"
            scope.findings.add(place, what, 'use kind = "intercept", or headers')
        if attach.tls.local == "plain":
            what = f"{dotted(place.path)}: what is taken by the server's name passes as TLS, and the local service "
            scope.findings.add(place, what + "speaks plain HTTP", 'remove `local = "plain"`, or use headers')


def _check_datagrams(scope: Scope, attach: Attach) -> None:
    """UDP is taken in the pods, as a whole. What a port's name means, the Service alone knows."""
    port = next((each for each in attach.ports if each.lower().endswith("/udp")), None)
    if port is None:
        return
    place = scope.place.at("attach", "ports", port)
    if attach.kind is not AttachKind.INTERCEPT:
        what = f"{dotted(place.path)}: UDP can be intercepted, and neither copied nor replaced"
        scope.findings.add(place, what, 'use kind = "intercept", or leave this port out')
    elif attach.way != "pods":
        what = f"{dotted(place.path)}: UDP is taken in the pods, and not at the Service's address"
        scope.findings.add(place, what, 'add way = "pods" to attach: each pod gets a container with NET_ADMIN')
    elif not attach.takes_all:
        what = f"{dotted(place.path)}: a datagram has neither headers nor a path, so all of UDP is taken, or nothing"
        scope.findings.add(place, what, 'add routes = "all" to attach')


def _check_replace(scope: Scope, attach: Attach) -> None:
    """While a workload is replaced, it has no pods: nobody would answer what a route does not take."""
    table = scope.table.attach
    assert table is not None
    if table.routes is not None and not attach.takes_all:
        place = scope.place.at("attach", "routes")
        what = f"{dotted(place.path)}: a replace takes all requests, for nobody else is there to answer the rest"
        scope.findings.add(place, what, 'remove routes, or use kind = "intercept": the workload goes on')
    if attach.way == "pods":
        place = scope.place.at("attach", "way")
        what = f"{dotted(place.path)}: while its workload is replaced, it has no pods in which traffic could be taken"
        scope.findings.add(place, what, 'remove way, or use kind = "intercept"')


def _matching(table: Mapping[str, str]) -> Matching:
    ((how, value),) = table.items()
    return Matching(how, value)


def _place_of(scope: Scope) -> ServicePlace:
    table = scope.table
    return ServicePlace(
        workload=table.workload or None,
        none=table.workload == NO_WORKLOAD,
        container=table.container,
        namespace=table.namespace,
        names=table.names or (),
        volumes={**(scope.defaults.volumes or {}), **(table.volumes or {})},
    )

"""devloop.toml → `model.Project`, or every problem with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic_core import PydanticCustomError

from devloop import user
from devloop.config import graph
from devloop.config.explain import TOP_LEVEL, shaped
from devloop.config.model import LOGS_KEPT, Network, Project
from devloop.config.problems import ConfigProblems, Findings, Place
from devloop.config.read import Source, Sources, read, read_own
from devloop.config.remote import remote
from devloop.config.resolve import EnvFiles, Scope, resolve
from devloop.config.schema import Defaults, LogsTable, ProjectTable, UserTable
from devloop.config.schema import Service as ServiceTable
from devloop.config.values import label
from devloop.config.words import describe, quoted
from devloop.errors import ConfigError


def load(file: Path, environ: Mapping[str, str]) -> Project:
    """The project that the file and its includes describe. `environ` is for `${VAR}` and `~`.

    Raises `ConfigProblems` with every problem at once, and ConfigError if the file can't be read at all.
    """
    file = file.resolve()
    findings = Findings()
    try:
        sources = read(file, environ, findings)
    except FileNotFoundError:
        raise ConfigError("the file does not exist", where=str(file), hint="devloop init writes one") from None
    except OSError as error:
        hint = "see to its owner and mode: ls -l" if isinstance(error, PermissionError) else None
        raise ConfigError(f"can't be read: {error.strerror}", where=str(file), hint=hint) from error
    env_files = EnvFiles(environ, sources.variables, findings, project=file)
    project = _project(file, sources, env_files, findings)
    own = _own(project, env_files, findings)
    if own is not None and project.user is None:
        project = replace(project, user=_user(own.data, own.place, env_files, findings))
    if findings:
        texts = dict.fromkeys(sources.named, "") | {source.file: source.text for source in sources.files}
        if own is not None:
            texts[own.file] = own.text
        looked_at = dict.fromkeys((*texts, *project.files, *project.missing))
        raise ConfigProblems(findings.problems(texts), tuple(looked_at), env_files.foreign)
    return project


def _project(file: Path, sources: Sources, env_files: EnvFiles, findings: Findings) -> Project:
    main = sources.files[0].data if sources.files else {}
    place = Place(file)
    table, _ = shaped(ProjectTable, main.get("project", {}), place.at("project"), findings)
    logs, _ = shaped(LogsTable, main.get("logs", {}), place.at("logs"), findings)
    has_remote = "remote" in main
    defaults = main.get("defaults", {})
    entries = _services(
        sources,
        defaults,
        place.at("defaults"),
        env_files,
        findings,
        has_remote=has_remote,
        project_shell=table.shell,
    )
    if not entries and sources.complete and not findings:
        findings.add(place, "the project has no services", 'add one: [services.web] with command = "…"')
    # With a remote each service has a network of its own, but for the ways that say otherwise.
    own_ports = not has_remote or table.network in (Network.PORTS, Network.HOSTS)
    graph.check(entries, findings, complete=sources.complete, own_ports=own_ports)
    services = {name: entry.service for name, entry in entries.items()}
    groups: dict[str, tuple[str, ...]] = {}
    for name, service in services.items():
        for group in service.groups:
            groups[group] = (*groups.get(group, ()), name)
    toml_files = (source.file for source in sources.files)
    return Project(
        name=table.name or file.parent.name or "devloop",
        file=file,
        files=tuple(dict.fromkeys((*toml_files, *sources.extra, *env_files.read))),
        services=services,
        groups=groups,
        remote=remote(main, place, env_files.environ, findings),
        network=Network(table.network) if table.network else None,
        user=_user(main, place, env_files, findings),
        logs_kept=LOGS_KEPT if logs.keep is None else logs.keep,
        missing=tuple(sorted({*sources.missing, *env_files.missing})),
    )


def _own(project: Project, env_files: EnvFiles, findings: Findings) -> Source | None:
    """The developer's own file, where it has something to say: there is a cluster, and no name yet."""
    if project.remote is None or project.user is not None:
        return None
    source = read_own(user.own_file(), env_files.variables, findings)
    for key in source.data if source is not None else ():
        if source is not None and key != "user" and key in TOP_LEVEL:
            findings.add(source.place.key(key), f"[{key}] is a project's", "this file has [user] alone")
    return source


def _user(main: Mapping[str, Any], place: Place, env_files: EnvFiles, findings: Findings) -> str | None:
    """The developer's name: the environment's, the .env's, the file's (the project's, or their own)."""
    table, _ = shaped(UserTable, main.get("user", {}), place.at("user"), findings)
    name = env_files.variables.get(user.VARIABLE) or table.name
    if name is not None and (len(name) > user.LONGEST or not name.isprintable() or name != name.strip()):
        what = f"{quoted(name)} is no name for a developer"
        findings.add(place.at("user", "name"), f"user.name: {what}", f"up to {user.LONGEST} printable characters")
    return name


def _services(
    sources: Sources,
    defaults: object,
    defaults_place: Place,
    env_files: EnvFiles,
    findings: Findings,
    *,
    has_remote: bool,
    project_shell: tuple[str, ...] | None,
) -> dict[str, graph.Entry]:
    shared, _ = shaped(Defaults, defaults, defaults_place, findings)
    entries: dict[str, graph.Entry] = {}
    for source in sources.files:
        raw = source.data.get("services", {})
        place = source.place.at("services")
        if not isinstance(raw, dict):
            findings.add(place, f"services: expected tables such as [services.web], not {describe(raw)}")
            continue
        for name, table in raw.items():
            here = place.at(name)
            if name in entries:
                what = f"services.{name} is defined twice: here and at {{other}}"
                findings.add(here.key(), what, "remove or rename one", other=entries[name].place.key())
                continue
            _check_name(name, here, findings)
            own, broken = shaped(ServiceTable, table, here, findings)
            scope = Scope(
                name, own, broken, here, shared, defaults_place, env_files, findings, has_remote, project_shell
            )
            entries[name] = graph.Entry(resolve(scope), scope)
    return entries


def _check_name(name: str, place: Place, findings: Findings) -> None:
    try:
        label(name, "service names")
    except PydanticCustomError as error:
        context = error.context or {}
        findings.add(place.key(), context["what"], context["hint"])

"""Which compose files there are, and what they say together: overrides, `include`, `extends`, `.env`.

There is no library for Python that does this: `compose-spec` and `compose_pydantic` on PyPI have the types of one file
alone and neither merge nor substitute; docker-compose 1, which did, ended in 2021. The rules are compose-go's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from devloop.config.envfile import read_env_file
from devloop.config.problems import Findings
from devloop.errors import ConfigError
from devloop.scaffold.compose_merge import listed, merged_file, merged_service, scalar
from devloop.scaffold.compose_values import evaluated, translated
from devloop.scaffold.yaml_text import Mapping_, Sequence_, Value, read_yaml

COMPOSE_FILES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
OVERRIDES = (
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
)
"""In the order in which `docker compose` looks for them; the first of each counts."""
_ONE = re.compile(r"(?:docker-)?compose(?:[._-][\w.-]+)?\.ya?ml")
ELSEWHERE = re.compile(r"^(?:[a-z][a-z0-9+.-]*://|git@|github\.com/|oci:)|\.git(?:#|$)")
"""A context, or a file to include, that is not on this machine."""


@dataclass(slots=True)
class Composition:
    """What the compose files of a folder say together. Strings have devloop's variables, see `translated`."""

    top: Path
    variables: Mapping[str, str]
    """The environment, and below it the .env beside the compose file."""
    files: list[str] = field(default_factory=list)
    """Those that were read, as they are shown."""
    services: dict[str, Mapping_] = field(default_factory=dict)
    name: str = ""
    profiles: frozenset[str] = frozenset()
    """Those that COMPOSE_PROFILES switches on."""
    left_out: list[str] = field(default_factory=list)
    """What of the files as a whole was not taken over, or is not as it should be: sentences."""

    def now(self, text: str) -> str:
        """The text with its variables as they are now."""
        return evaluated(text, self.variables)


def compose_files(top: Path, environ: Mapping[str, str]) -> list[Path]:
    """The files that `docker compose` would read in this folder; none if there are none."""
    variables = {**_env_file(top / ".env", environ, []), **environ}
    if listed_ := variables.get("COMPOSE_FILE", ""):
        separator = variables.get("COMPOSE_PATH_SEPARATOR") or os.pathsep
        return [top / each for each in listed_.split(separator) if each and "\0" not in each]
    main = next((top / name for name in COMPOSE_FILES if (top / name).is_file()), None)
    if main is None:
        return []
    override = next((top / name for name in OVERRIDES if (top / name).is_file()), None)
    return [main, override] if override else [main]


def other_compose_files(top: Path, files: list[Path]) -> list[str]:
    """A sentence on the compose files of the folder that `docker compose` does not read by itself."""
    try:
        names = sorted(each.name for each in top.iterdir() if _ONE.fullmatch(each.name) and each not in files)
    except OSError:
        return []
    if not names:
        return []
    chosen = ":".join([*(each.name for each in files), names[0]])
    return [
        f"{', '.join(names[:5])} {'was' if len(names) == 1 else 'were'} not read, as `docker compose` would not; "
        f"`COMPOSE_FILE={chosen} devloop init` does"
    ]


def read_composition(top: Path, files: list[Path], environ: Mapping[str, str]) -> Composition:
    """The files in their order, each over those before. Raises ConfigError if they can't be read as compose files."""
    notices: list[str] = []
    dotenv = _env_file(top / ".env", environ, notices)
    found = Composition(top, {**dotenv, **environ}, left_out=notices)
    reader = _Reader(found)
    folder = files[0].parent
    data = reader.project(files, folder, found.variables, ())
    services = data.get("services")
    if not isinstance(services, Mapping_) or not services:
        raise ConfigError(
            "a compose file without services", where=found.files[0], hint="devloop makes its services of those"
        )
    for name, service in services.items():
        if isinstance(service, Mapping_):
            found.services[name] = service
        else:
            notices.append(f"{services.where(name)}: the service {name} has no settings, and was left out")
    found.name = found.now(scalar(data.get("name"))) or found.variables.get("COMPOSE_PROJECT_NAME", "")
    found.profiles = frozenset(each.strip() for each in found.variables.get("COMPOSE_PROFILES", "").split(","))
    known = ("services", "name", "version", "include")
    others = [key for key in data if key not in known and not key.startswith("x-")]
    notices += [f"{data.where(key)}: {key} was not taken over: nothing is in a container here" for key in others]
    if (files_ := found.variables.get("COMPOSE_ENV_FILES", "")) not in ("", ".env"):
        notices.append(f"COMPOSE_ENV_FILES names {files_}; devloop reads .env alone")
    return found


def _env_file(file: Path, environ: Mapping[str, str], notices: list[str]) -> dict[str, str]:
    findings = Findings()
    try:
        if not file.is_file():
            return {}
        values = read_env_file(file, environ, findings)
    except (OSError, ValueError) as error:
        notices.append(f"{file.name}: can't be read: {getattr(error, 'strerror', None) or error}")
        return {}
    notices += [f"{file.name}:{each.line}:{each.column}: {each.message}" for each in findings.problems({})]
    return values


class _Reader:
    """Reads files for one composition."""

    def __init__(self, found: Composition) -> None:
        self._found = found
        self._top = found.top.resolve()
        self._say = found.left_out.append

    def shown(self, file: Path) -> str:
        """The file's name as places have it: relative to the project's folder."""
        return os.path.relpath(file, self._top) if file.is_absolute() else str(file)

    def project(
        self, files: list[Path], folder: Path, variables: Mapping[str, str], including: tuple[Path, ...]
    ) -> Mapping_:
        """The files laid over each other. `folder` is what their paths are relative to."""
        data = Mapping_()
        for file in files:
            path = file.resolve()
            if path in including:
                self._say(f"{self.shown(file)} includes itself; the second time was left out")
                continue
            for document in self._documents(file, folder, variables):
                self._extend_all(document, path, variables)
                self._include(document, folder, variables, (*including, path))
                data = merged_file(data, document, self._found.left_out)
        return data

    def _documents(self, file: Path, folder: Path, variables: Mapping[str, str]) -> Iterator[Mapping_]:
        shown = self.shown(file.resolve())
        if shown not in self._found.files:
            self._found.files.append(shown)
        for document in read_yaml(file, shown, self._found.left_out):
            self._translate(document, variables)
            services = document.get("services")
            for service in services.values() if isinstance(services, Mapping_) else ():
                if isinstance(service, Mapping_):
                    self._rebase(service, folder)
            yield document

    # Variables

    def _translate(self, value: Value, variables: Mapping[str, str]) -> None:
        """Turn every string below `value` into devloop's language, in place."""
        if isinstance(value, Mapping_):
            for key, each in value.items():
                if isinstance(each, str):
                    value[key] = self._text(each, variables, value.where(key))
                else:
                    self._translate(each, variables)
        elif isinstance(value, Sequence_):
            for index, each in enumerate(value):
                if isinstance(each, str):
                    value[index] = self._text(each, variables, value.at[index])
                else:
                    self._translate(each, variables)

    def _text(self, text: str, variables: Mapping[str, str], at: str) -> str:
        if "\0" in text:
            self._say(f"{at}: a NUL character was left out")
            text = text.replace("\0", "")
        made, notices = translated(text, variables, self._found.variables)
        for each in notices:
            self._say(f"{at}: {each}")
        return made

    # Paths

    def _rebase(self, service: Mapping_, folder: Path) -> None:
        """Make the service's paths relative to the project's folder, with their variables as they are now."""

        def rebased(value: Value) -> Value:
            if not isinstance(value, str):
                return value
            return self._path(self._found.now(value), folder)

        build = service.get("build")
        if isinstance(build, str):
            service["build"] = rebased(build)
        elif isinstance(build, Mapping_):
            build["context"] = rebased(build.get("context", "."))
        env_file = service.get("env_file")
        if isinstance(env_file, str):
            service["env_file"] = rebased(env_file)
        develop = service.get("develop")
        watch = develop.get("watch") if isinstance(develop, Mapping_) else None
        for entries in (env_file, watch):
            for index, each in enumerate(entries if isinstance(entries, Sequence_) else ()):
                if isinstance(each, Mapping_) and "path" in each:
                    each["path"] = rebased(each["path"])
                elif isinstance(entries, Sequence_) and entries is env_file:
                    entries[index] = rebased(each)
        volumes = service.get("volumes")
        for index, each in enumerate(volumes if isinstance(volumes, Sequence_) else ()):
            if isinstance(each, Mapping_) and each.get("type") == "bind":
                each["source"] = rebased(each.get("source"))
            elif isinstance(each, str) and isinstance(volumes, Sequence_) and each.startswith((".", "$")):
                source, colon, rest = self._found.now(each).partition(":")
                if source.startswith("."):
                    # With `./`, without which it would be the name of a volume.
                    volumes[index] = f"./{self._path(source, folder)}{colon}{rest}"

    def _path(self, text: str, folder: Path) -> str:
        if text.startswith(("/", "~")) or ELSEWHERE.search(text) or not text:
            return text
        whole = os.path.normpath(os.path.join(folder.resolve(), text))  # noqa: PTH118 - `..` is taken as it is written
        return os.path.relpath(whole, self._top)

    # include and extends

    def _include(
        self, document: Mapping_, folder: Path, variables: Mapping[str, str], including: tuple[Path, ...]
    ) -> None:
        entries = document.pop("include", None)
        for entry, at in listed(entries, document.where("include")).places() if entries is not None else ():
            table = entry if isinstance(entry, Mapping_) else None
            value = entry if table is None else table.get("path")
            paths = [self._found.now(scalar(each)) for each in listed(value, at)]
            paths = [each for each in paths if each]
            if not paths or any(ELSEWHERE.search(each) for each in paths):
                self._say(f"{at}: include: {', '.join(paths) or 'this'} is no file here, and was left out")
                continue
            files = [folder / each for each in paths]
            if missing := [each for each in files if not each.is_file()]:
                self._say(f"{at}: include: there is no file {self.shown(missing[0])}")
                continue
            home = files[0].parent
            if table is not None and (named := self._found.now(scalar(table.get("project_directory")))):
                home = folder / named
            own = table.get("env_file") if table is not None else None
            env_files = [home / ".env"]
            if own is not None:
                env_files = [folder / self._found.now(scalar(each)) for each in listed(own, at)]
            known = dict(variables)
            for each in env_files:
                known = {**_env_file(each, known, self._found.left_out), **known}
            self._take(document, self.project(files, home, known, including))

    def _take(self, document: Mapping_, included: Mapping_) -> None:
        """What is included goes below what stands in the file; compose would refuse a name that is in both."""
        for key, value in included.items():
            mine = document.get(key)
            if not isinstance(value, Mapping_):
                continue
            if not isinstance(mine, Mapping_):
                document.put(key, value, included.where(key))
                continue
            for name, each in value.items():
                if name not in mine:
                    mine.put(name, each, value.where(name))
                elif mine[name] != each:
                    self._say(f"{value.where(name)}: {name} is in the including file too, which counts")

    def _extend_all(self, document: Mapping_, file: Path, variables: Mapping[str, str]) -> None:
        services = document.get("services")
        if isinstance(services, Mapping_):
            for name in list(services):
                services[name] = self._extended(name, services, file, variables, ())

    def _extended(
        self,
        name: str,
        services: Mapping_,
        file: Path,
        variables: Mapping[str, str],
        seen: tuple[tuple[Path, str], ...],
    ) -> Value:
        """The service with what it `extends` below it."""
        service = services.get(name)
        if not isinstance(service, Mapping_) or "extends" not in service:
            return service
        at, extends = service.where("extends"), service["extends"]
        own = service.copied()
        del own["extends"]
        parent = scalar(extends.get("service")) if isinstance(extends, Mapping_) else scalar(extends)
        named = self._found.now(scalar(extends.get("file"))) if isinstance(extends, Mapping_) else ""
        where, others = file, services
        if named:
            where = file.parent / named
            if ELSEWHERE.search(named) or "\0" in named or not where.is_file():
                self._say(f"{at}: extends: there is no file {named}, so {name} lacks what it has from there")
                return own
            where = where.resolve()
            others = Mapping_()
            for document in self._documents(where, where.parent, variables):
                found = document.get("services")
                others = found if isinstance(found, Mapping_) else others
        if (where, parent) in (*seen, (file, name)):
            self._say(f"{at}: extends: {name} extends itself in the end; this was left out")
            return own
        base = self._extended(parent, others, where, variables, (*seen, (file, name)))
        if not isinstance(base, Mapping_):
            self._say(f"{at}: extends: there is no service {parent} in {self.shown(where)}")
            return own
        return merged_service(base, own, self._found.left_out)

"""One service of a compose file, read leniently: what has a wrong shape is said with its place, and never fatal."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic_core import PydanticCustomError

from devloop.config import shell, values
from devloop.scaffold.compose_files import Composition
from devloop.scaffold.compose_merge import named, pairs, scalar
from devloop.scaffold.compose_values import number
from devloop.scaffold.dockerfile import Words, as_typed
from devloop.scaffold.yaml_text import Mapping_, Sequence_, Value

MOST_PORTS = 16
"""Of a range of ports, so many are taken over."""
_SILENT = {"extends", "labels", "container_name", "hostname", "develop", "build", "image", "annotations", "attach"}
"""Keys that say nothing about how the service runs, or that are read elsewhere."""


@dataclass(frozen=True, slots=True)
class Port:
    """One entry of `ports`: where it is reached on the host (None: not at all), and inside."""

    host: int | None
    inside: int


class Reading:
    """A service's settings. What is asked for counts as taken over; `left_out` names the rest."""

    def __init__(self, name: str, data: Mapping_, found: Composition) -> None:
        self.name = name
        self.found = found
        self.said: list[str] = []
        """What is wrong with the settings, each with its place."""
        self._data = data
        self._asked: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether the key is there with a value."""
        return self._data.get(key) is not None

    def value(self, key: str) -> Value:
        """The value, whatever it is."""
        self._asked.add(key)
        return self._data.get(key)

    def say(self, at: str, what: str) -> None:
        """Note a problem with what stands at this place."""
        text = f"{at}: {what}"
        if text not in self.said:
            self.said.append(text)

    def peek(self, key: str) -> Value:
        """The value, which still counts as not taken over."""
        return self._data.get(key)

    def where(self, key: str) -> str:
        """The place of this key's value."""
        return self._data.where(key)

    def text(self, key: str) -> str:
        """A scalar in devloop's language; empty if there is none."""
        value = self.value(key)
        if isinstance(value, Mapping_ | Sequence_):
            self.say(self.where(key), f"{key} must be text; it was left out")
        return scalar(value)

    def now(self, key: str) -> str:
        """A scalar with its variables as they are now."""
        return self.found.now(self.text(key))

    def items(self, key: str) -> Iterator[tuple[Value, str]]:
        """A list's entries with their places. A single value is a list of one, and that is said."""
        value = self.value(key)
        if isinstance(value, Sequence_):
            yield from value.places()
        elif isinstance(value, Mapping_):
            self.say(self.where(key), f"{key} must be a list; it was left out")
        elif value is not None:
            self.say(self.where(key), f"{key} must be a list; {scalar(value)} was taken for its only entry")
            yield value, self.where(key)

    def texts(self, key: str) -> list[str]:
        """A list of scalars with their variables as they are now; a single one will do."""
        value = self.value(key)
        if isinstance(value, str):
            return [self.found.now(value)]
        return [self.found.now(scalar(each)) for each, _ in self.items(key)]

    def table(self, key: str) -> Mapping_:
        """A mapping; empty if there is none."""
        value = self.value(key)
        if value is not None and not isinstance(value, Mapping_):
            self.say(self.where(key), f"{key} must be a mapping; it was left out")
        return value if isinstance(value, Mapping_) else Mapping_()

    def environment(self) -> dict[str, str | None]:
        """`environment`, in both its forms; None is the host's value."""
        value = pairs(self.value("environment"))
        if value is not None and not isinstance(value, Mapping_):
            self.say(self.where("environment"), "environment must be a mapping or a list; it was left out")
        made: dict[str, str | None] = {}
        for name, each in value.items() if isinstance(value, Mapping_) else ():
            if not name or "=" in name or "\0" in name:
                self.say(self.where("environment"), f"{name!r} can't be the name of a variable")
            elif isinstance(each, Mapping_ | Sequence_):
                self.say(self.where("environment"), f"{name} must be text; it was left out")
            else:
                made[name] = None if each is None else scalar(each)
        return made

    def dependencies(self) -> dict[str, Mapping_]:
        """`depends_on` in its long form, with what `links` adds."""
        made: dict[str, Mapping_] = {}
        value = named(self.value("depends_on"))
        if isinstance(value, str):
            self.say(self.where("depends_on"), f"depends_on must be a list; {value} was taken for its only entry")
            value = Mapping_()
            made[self.found.now(scalar(self.value("depends_on")))] = Mapping_()
        elif value is not None and not isinstance(value, Mapping_):
            self.say(self.where("depends_on"), "depends_on must be a list or a mapping; it was left out")
        for name, how in value.items() if isinstance(value, Mapping_) else ():
            if isinstance(how, Mapping_):
                made[name] = how
                continue
            made[name] = Mapping_()
            if how is not None:
                at = value.where(name) if isinstance(value, Mapping_) else ""
                self.say(at, f"depends_on.{name} must be a mapping, as in {{condition: {scalar(how)}}}")
                made[name].put("condition", how, at)
        for link in self.texts("links"):
            made.setdefault(link.partition(":")[0], Mapping_())
        return made

    # Commands

    def command(self, key: str) -> Words:
        """A command in devloop's language: words, or a string where its variables must come first."""
        value = self.value(key)
        if isinstance(value, Sequence_):
            return [scalar(each) for each in value]
        if isinstance(value, Mapping_):
            self.say(self.where(key), f"{key} must be text or a list; it was left out")
            return ""
        return self.words(scalar(value))

    def words(self, text: str) -> Words:
        """A string as compose splits it, with no shell that would see it."""
        if "${" in text.replace("$$", ""):
            # Its variables may hold spaces and quotes, and come before it is split, here as there.
            return " ".join(text.split("\n")).strip()
        try:
            return shlex.split(text)
        except ValueError:
            return text

    def runnable(self, command: Words) -> Words:
        """The command if devloop takes it, else in a form that it takes; empty if there is none."""
        if isinstance(command, str):
            plain = self.found.now(command)
            if not plain.strip():
                return ""
            try:
                values.command_line(plain)
            except PydanticCustomError:
                return ["/bin/sh", "-c", command]
            return command
        if not command or not self.found.now(command[0]).strip():
            return ""
        typed = as_typed(command)
        if isinstance(typed, str) and shell.needs_shell(typed):
            return command  # no shell sees it there, so none does here
        return typed

    # Ports

    def ports(self) -> list[Port]:
        """`ports`, in both its forms, then what `expose` adds; TCP alone."""
        made: list[Port] = []
        for entry, at in self.items("ports"):
            made += self._port(entry, at)
        for entry, at in self.items("expose"):
            text, _, protocol = self.found.now(scalar(entry)).partition("/")
            inside = number(text)
            if inside is None:
                self.say(at, f"expose: {scalar(entry) or 'this'} is no port")
            elif protocol in ("", "tcp") and inside not in {port.inside for port in made}:
                made.append(Port(None, inside))
        return made

    def _port(self, entry: Value, at: str) -> list[Port]:
        if isinstance(entry, Mapping_):
            inside, published, protocol = (
                self.found.now(scalar(entry.get(key))) for key in ("target", "published", "protocol")
            )
        else:
            text, _, protocol = self.found.now(scalar(entry)).partition("/")
            *rest, inside = re.sub(r"^\[[^\]]*\]:?|^(?:\d{1,3}\.){3}\d{1,3}:", "", text).rsplit(":", 2)
            published = rest[-1] if rest else ""
        if protocol not in ("", "tcp"):
            self.say(at, f"ports: {protocol} is not taken over")
            return []
        targets, hosts = _range(inside), _range(published)
        if not targets:
            self.say(at, f"ports: {self.found.now(scalar(entry)) or 'this'} is no port")
            return []
        if len(targets) > MOST_PORTS:
            self.say(at, f"ports: of a range of {len(targets)}, the first {MOST_PORTS} were taken over")
        pairs_ = zip(targets, hosts, strict=False) if len(hosts) >= len(targets) else ((each, None) for each in targets)
        return [Port(host, target) for target, host in list(pairs_)[:MOST_PORTS]]

    # The rest

    def left_out(self) -> str:
        """A sentence on the keys that nobody asked for; empty if there are none."""
        kept = self._asked | _SILENT
        rest = [key for key, value in self._data.items() if key not in kept and not key.startswith("x-") and value]
        if not rest:
            return ""
        listed = ", ".join(f"{key} ({self.where(key)})" for key in rest)
        return f"Not taken over, since it runs here and in no container: {listed}."


def _range(text: str) -> list[int]:
    first, dash, last = text.strip().partition("-")
    start = number(first) if re.fullmatch(r"\d{1,5}", first) else None
    end = number(last) if dash and re.fullmatch(r"\d{1,5}", last) else start if not dash else None
    return list(range(start, end + 1)) if start is not None and end is not None and end >= start else []

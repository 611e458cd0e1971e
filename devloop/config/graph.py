"""The checks that need all services: dependencies, cycles, ports, groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from devloop.config.model import Condition, Mode, Service
from devloop.config.problems import Findings, Place
from devloop.config.resolve import Scope
from devloop.config.words import dotted, quoted, suggestion


@dataclass(frozen=True, slots=True)
class Entry:
    """A service, and where its values come from."""

    service: Service
    scope: Scope

    @property
    def place(self) -> Place:
        """The service's table."""
        return self.scope.place


def check(entries: Mapping[str, Entry], findings: Findings, *, complete: bool, own_ports: bool) -> None:
    """Add what is wrong between services. Not `complete`: an unknown name may stand in an unread file.

    `own_ports`: all share the host's ports. With a remote each may have a network of its own.
    """
    for entry in entries.values():
        _dependencies(entry, entries, findings, complete=complete)
    _cycles(entries, findings)
    if own_ports:
        _ports(entries, findings)
    _groups(entries, findings)


def _dependencies(entry: Entry, entries: Mapping[str, Entry], findings: Findings, *, complete: bool) -> None:
    label = f"{dotted(entry.place.path)}.depends_on"
    for name, condition in entry.service.depends_on.items():
        place = entry.place.at("depends_on", name)
        target = entries.get(name)
        if target is None:
            if complete:
                others = [n for n in entries if n != entry.service.name]
                hint = suggestion(name, others, kind="services")
                key = entry.place.key("depends_on", name)
                findings.add(key, f"{label}: there is no service {quoted(name)}", hint)
        elif name == entry.service.name:
            findings.add(place, f"{label}: {name} depends on itself")
        else:
            if target.scope.broken & {"task", "command"}:
                continue
            if condition is Condition.COMPLETED and not target.service.task:
                hint = f'write {name} = "ready", or make it a task with task = true'
                findings.add(place, f"{label}: {name} is not a task, so it is never completed", hint)
            elif condition is Condition.READY and target.service.task:
                hint = f'write depends_on = {{ {name} = "completed" }}'
                findings.add(place, f"{label}: {name} is a task; tasks are completed, not ready", hint)


def _cycles(entries: Mapping[str, Entry], findings: Findings) -> None:
    graph = {
        name: {d for d in entry.service.depends_on if d in entries and d != name} for name, entry in entries.items()
    }
    rank = {name: index for index, name in enumerate(entries)}
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            # Each node of the list is a dependency of the next; the first is repeated at the end.
            cycle: list[str] = error.args[1][:0:-1]
            start = min(range(len(cycle)), key=lambda i: rank[cycle[i]])
            cycle = cycle[start:] + cycle[:start]
            first, second = cycle[0], cycle[1]
            findings.add(
                entries[first].place.at("depends_on", second),
                f"these services wait for each other: {' → '.join([*cycle, first])}",
                "remove one of the dependencies",
            )
            # One cycle at a time is what graphlib tells; without this edge it finds the next.
            graph[first] -= {second}
        else:
            return


def _ports(entries: Mapping[str, Entry], findings: Findings) -> None:
    owner: dict[int, tuple[Entry, str]] = {}
    for entry in entries.values():
        if entry.service.mode is not Mode.LOCAL:
            continue
        for name, port in entry.service.ports.items():
            first, first_name = owner.setdefault(port, (entry, name))
            if first is not entry:
                findings.add(
                    entry.place.at("ports", name),
                    f"{dotted(entry.place.path)}.ports: {first.service.name} has {port} too ({{other}})",
                    "two services that run here can't listen on one port",
                    other=first.place.at("ports", first_name),
                )


def _groups(entries: Mapping[str, Entry], findings: Findings) -> None:
    for entry in entries.values():
        place = entry.scope.holder("groups")[1]
        for group in entry.service.groups:
            if group in entries:
                what = f"{dotted(place.path)}: {quoted(group)} is the name of a service"
                findings.add(place.at(group), what, f"`devloop up {group}` could mean either; rename the group")

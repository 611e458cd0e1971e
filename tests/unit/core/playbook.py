"""Playbooks for the core: a clock that only moves when told, services in one line, commands as words."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devloop.config.model import (
    MS,
    SECOND,
    Command,
    Condition,
    Mode,
    Project,
    Reload,
    Remote,
    Restart,
    RestartPolicy,
    Service,
    StopPolicy,
)
from devloop.core import commands as do
from devloop.core import events as ev
from devloop.core.supervisor import Supervisor
from devloop.protocol import Outcome, State

ROOT = Path("/project")


def service(name: str, *depends_on: str, **fields: Any) -> Service:
    """A service with the usual defaults; `depends_on` are conditions like "store" or "seed:completed"."""
    conditions = {}
    for dependency in depends_on:
        other, _, condition = dependency.partition(":")
        conditions[other] = Condition(condition or "ready")
    defaults: dict[str, Any] = {
        "command": Command((name,), name),
        "cwd": ROOT,
        "env": {},
        "env_files": (),
        "watch": (ROOT,),
        "ignore": (),
        "gitignore": True,
        "build": None,
        "reload": Reload(),
        "ports": {},
        "ready": None,
        "live": None,
        "depends_on": conditions,
        "restart": RestartPolicy(Restart.NEVER if fields.get("task") else Restart.ON_FAILURE),
        "stop": StopPolicy(signal.SIGTERM, 5 * SECOND),
        "task": False,
        "mode": Mode.LOCAL,
        "groups": (),
        "debounce": 4 * MS,
    }
    return Service(name=name, **(defaults | fields))


def project(*services: Service, remote: Remote | None = None) -> Project:
    file = ROOT / "devloop.toml"
    return Project("test", file, (file,), {s.name: s for s in services}, remote=remote)


class Playbook:
    """Feeds a Supervisor and remembers what it asked for."""

    def __init__(self, *services: Service, remote: Remote | None = None) -> None:
        self.supervisor = Supervisor(project(*services, remote=remote))
        self.now = 1000 * SECOND
        self.loops: list[do.RecordLoop] = []
        self.told: list[do.Tell] = []
        self.backoffs: dict[str, do.SetBackoff] = {}

    def tick(self, ms: float) -> None:
        self.now += int(ms * MS)

    def feed(self, event: ev.Event) -> list[str]:
        """Commands as "StartProcess api 1", without those that only publish."""
        words = []
        for command in self.supervisor.handle(event, self.now):
            match command:
                case do.RecordLoop():
                    self.loops.append(command)
                case do.Tell():
                    self.told.append(command)
                case do.SetBackoff(name):
                    self.backoffs[name] = command
                    words.append(f"SetBackoff {name}")
                case do.PublishStatus() | do.StopProbes() | do.WatchAgain():
                    pass
                case do.Finish():
                    words.append("Finish")
                case do.IgnoreFiles(name, files):
                    words.append(f"IgnoreFiles {name} {' '.join(files)}")
                case (
                    do.ClearBackoff(name)
                    | do.Forget(name)
                    | do.OpenWorld(name)
                    | do.EndBuildServers(name)
                    | do.HoldProbes(name)
                    | do.ReleaseProbes(name)
                    | do.SetSchedule(name)
                    | do.ClearSchedule(name)
                ):
                    words.append(f"{type(command).__name__} {name}")
                case _:
                    words.append(f"{type(command).__name__} {command.service} {command.run}")
        return words

    # Shorthands: the run is the service's own.

    def start(self, *names: str) -> list[str]:
        return self.feed(ev.StartRequested(names))

    def started(self, name: str) -> list[str]:
        return self.feed(ev.ProcessStarted(name, self.run(name), 4711))

    def ready(self, name: str) -> list[str]:
        return self.feed(ev.BecameReady(name, self.run(name)))

    def up(self, *names: str) -> None:
        """All the way to ready."""
        self.start(*names)
        for name in names:
            self.started(name)
            self.ready(name)
        assert all(self.state(name) is State.READY for name in names)
        self.loops.clear()

    def changed(self, name: str, *files: str) -> list[str]:
        return self.feed(ev.FilesChanged(name, files or ("main.py",), self.now - MS))

    def settled(self, name: str) -> list[str]:
        return self.feed(ev.FilesSettled(name))

    def ended(self, name: str, code: int = -15, **more: Any) -> list[str]:
        return self.feed(ev.ProcessEnded(name, self.run(name), code, **more))

    def built(self, name: str, failure: str = "") -> list[str]:
        return self.feed(ev.BuildEnded(name, self.run(name), failure))

    def run(self, name: str) -> int:
        return self.supervisor.services[name].run

    def state(self, name: str) -> State:
        return self.supervisor.services[name].state

    def reason(self, name: str) -> str:
        return self.supervisor.services[name].reason

    def outcomes(self) -> list[tuple[str, Outcome]]:
        return [(loop.service, loop.outcome) for loop in self.loops]

    def stamps(self) -> Mapping[str, float]:
        """Of the last loop, in milliseconds since its first."""
        stamps = self.loops[-1].stamps
        first = min(stamps.values())
        return {phase: (at - first) / MS for phase, at in stamps.items()}

"""What a devloop.toml means, after defaults, includes and interpolation. Plain frozen data, no I/O.

Times are integer nanoseconds, paths are absolute, commands are argument vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

MS = 1_000_000
"""Nanoseconds in a millisecond."""
SECOND = 1_000_000_000
"""Nanoseconds in a second."""


class Mode(StrEnum):
    """Where a service runs."""

    LOCAL = "local"
    REMOTE = "remote"
    OFF = "off"


class Condition(StrEnum):
    """What a dependency must have reached before its dependent starts."""

    STARTED = "started"
    READY = "ready"
    COMPLETED = "completed"


class Restart(StrEnum):
    """Which exits of a process start it again."""

    NEVER = "never"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


class ReloadKind(StrEnum):
    """What a change of a watched file does."""

    RESTART = "restart"
    SIGNAL = "signal"
    EXEC = "exec"
    MANUAL = "manual"


@dataclass(frozen=True, slots=True)
class Command:
    """An argument vector; `text` is what the user wrote, for messages."""

    argv: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Reload:
    """How a change reaches the service. `signal` is a signal's number, for SIGNAL; `command` for EXEC."""

    kind: ReloadKind = ReloadKind.RESTART
    signal: int = 0
    command: Command | None = None


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """A GET that must answer with a status from 200 to 399 (the kubelet's rule for httpGet)."""

    host: str
    port: int
    path: str = "/"


@dataclass(frozen=True, slots=True)
class TcpCheck:
    """A connection that must be accepted."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class ExecCheck:
    """A command, in the service's folder and environment, that must exit with 0."""

    command: Command


@dataclass(frozen=True, slots=True)
class LogCheck:
    """A line of the service's output that must match this regular expression (`re.search`)."""

    pattern: str


Check = HttpCheck | TcpCheck | ExecCheck | LogCheck


@dataclass(frozen=True, slots=True)
class Probe:
    """A check and its rhythm, in nanoseconds.

    For `ready`, the first attempts come quicker than `period` and slow down to it. `grace` is how long
    failures after the start do not count; `failures` in a row then mean that the probe has failed.
    """

    check: Check
    period: int
    timeout: int
    grace: int
    failures: int


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Exponential backoff: `delay`, doubled at each attempt up to `max_delay` (nanoseconds).

    After `limit` failures, each within `window` of its start, the service is in a crash loop: it waits
    for a change or a key instead of trying again.
    """

    policy: Restart = Restart.ON_FAILURE
    delay: int = 100 * MS
    max_delay: int = 10 * SECOND
    limit: int = 5
    window: int = 10 * SECOND


@dataclass(frozen=True, slots=True)
class StopPolicy:
    """The signal that asks, and how long (nanoseconds) before SIGKILL ends the whole tree."""

    signal: int
    timeout: int


@dataclass(frozen=True, slots=True)
class Service:
    """One entry of `[services]`."""

    name: str
    command: Command
    cwd: Path
    env: Mapping[str, str]
    env_files: tuple[Path, ...]
    watch: tuple[Path, ...]
    ignore: tuple[str, ...]
    gitignore: bool
    build: Command | None
    reload: Reload
    ports: Mapping[str, int]
    ready: Probe | None
    live: Probe | None
    depends_on: Mapping[str, Condition]
    restart: RestartPolicy
    stop: StopPolicy
    task: bool
    mode: Mode
    groups: tuple[str, ...]
    debounce: int
    """Shortest quiet time after a whole save before it counts as settled, in nanoseconds."""
    file_env: Mapping[Path, Mapping[str, str]] = field(default_factory=dict)
    """What each of `env_files` said at loading. Later files win, and `env` over all of them."""


@dataclass(frozen=True, slots=True)
class Project:
    """One devloop.toml with its includes."""

    name: str
    file: Path
    files: tuple[Path, ...]
    """Every file that was read for it: the project file, its includes and the env files."""
    services: Mapping[str, Service]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Group → its services, in the order of `services`."""
    missing: tuple[Path, ...] = ()
    """Files that are not there and would change the project if they were: its .env, optional env files."""

    @property
    def root(self) -> Path:
        """The folder that the project file stands in."""
        return self.file.parent

"""What the outside tells the core. A `run` numbers the process or build it is about; old ones are ignored."""

from __future__ import annotations

from dataclasses import dataclass

from devloop.config.model import Mode, Project
from devloop.protocol import Cause


@dataclass(frozen=True, slots=True)
class StartRequested:
    """These services, and what they depend on, shall run; those that do already are left alone."""

    services: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StopRequested:
    """These services shall not run."""

    services: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RestartRequested:
    """A new process for this service, with a build before it if it has one and `build` is set."""

    service: str
    cause: Cause = Cause.MANUAL
    build: bool = False


@dataclass(frozen=True, slots=True)
class ModeRequested:
    """The service moves here, there or off."""

    service: str
    mode: Mode


@dataclass(frozen=True, slots=True)
class WorldOpened:
    """What the service has of its remote is there: its network, variables and files."""

    service: str


@dataclass(frozen=True, slots=True)
class WorldFailed:
    """It can't be had, and trying again by itself won't help."""

    service: str
    failure: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class WorldChanged:
    """Another environment would come of a new start: `reason` says why. The process goes on with the old one."""

    service: str
    reason: str


@dataclass(frozen=True, slots=True)
class FilesChanged:
    """The content of watched files has changed; more may follow before `FilesSettled`."""

    service: str
    files: tuple[str, ...]
    edited: int
    """When the first of them was written."""


@dataclass(frozen=True, slots=True)
class FilesSettled:
    """The burst that `FilesChanged` began is over."""

    service: str


@dataclass(frozen=True, slots=True)
class BuildEnded:
    """The build succeeded (`failure` is empty) or failed. Not sent for a build that was cancelled."""

    service: str
    run: int
    failure: str = ""


@dataclass(frozen=True, slots=True)
class ProcessStarted:
    """The new process runs, since `at` (None: since now)."""

    service: str
    run: int
    pid: int
    at: int | None = None


@dataclass(frozen=True, slots=True)
class ProcessNotStarted:
    """It could not be started: no such program, a port that is taken, a folder that is gone."""

    service: str
    run: int
    failure: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class ProcessEnded:
    """The process and all that descends from it have ended, except the `survivors`."""

    service: str
    run: int
    code: int
    """Exit code; negative for a signal."""
    left_behind: int = 0
    """Processes that outlived the main one, and were ended."""
    survivors: tuple[str, ...] = ()
    """Processes ("pid name") that SIGKILL did not end."""
    at: int | None = None
    """When its first process ended; None: now."""


@dataclass(frozen=True, slots=True)
class BecameReady:
    """The readiness probe passed; with no probe, sent when the process has started."""

    service: str
    run: int


@dataclass(frozen=True, slots=True)
class NotReadyYet:
    """Why the readiness probe does not pass so far; sent again when the reason has changed."""

    service: str
    run: int
    failure: str


@dataclass(frozen=True, slots=True)
class NotReadyInTime:
    """The readiness probe still fails after its grace. It goes on."""

    service: str
    run: int
    failure: str


@dataclass(frozen=True, slots=True)
class PromptShown:
    """It waits for a person, at this debugger's prompt or for a debugger."""

    service: str
    run: int
    prompt: str


@dataclass(frozen=True, slots=True)
class PromptGone:
    """It goes on."""

    service: str
    run: int


@dataclass(frozen=True, slots=True)
class NotAlive:
    """The liveness probe failed as often in a row as it may."""

    service: str
    run: int
    failure: str


@dataclass(frozen=True, slots=True)
class ReloadEnded:
    """The signal was sent, or the command of `reload = "exec: …"` has ended."""

    service: str
    run: int
    failure: str = ""


@dataclass(frozen=True, slots=True)
class BackoffEnded:
    """The time of a `SetBackoff` has come."""

    service: str
    run: int


@dataclass(frozen=True, slots=True)
class RunDue:
    """A time of its schedule has come."""

    service: str


@dataclass(frozen=True, slots=True)
class ProjectChanged:
    """A new devloop.toml is in force."""

    project: Project


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """Everything stops, dependents before what they depend on."""


Event = (
    StartRequested
    | StopRequested
    | RestartRequested
    | ModeRequested
    | WorldOpened
    | WorldFailed
    | WorldChanged
    | FilesChanged
    | FilesSettled
    | BuildEnded
    | ProcessStarted
    | ProcessNotStarted
    | ProcessEnded
    | BecameReady
    | NotReadyYet
    | NotReadyInTime
    | NotAlive
    | PromptShown
    | PromptGone
    | ReloadEnded
    | BackoffEnded
    | RunDue
    | ProjectChanged
    | ShutdownRequested
)

"""What the core asks of the outside. Each is answered by an event of `core.events`, or says it is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from devloop.protocol import Cause, Outcome


@dataclass(frozen=True, slots=True)
class StartProcess:
    """Answered by ProcessStarted or ProcessNotStarted, later by ProcessEnded."""

    service: str
    run: int


@dataclass(frozen=True, slots=True)
class StopProcess:
    """Ask the process to end, then end its whole tree. Answered by ProcessEnded."""

    service: str
    run: int


@dataclass(frozen=True, slots=True)
class OpenWorld:
    """Get what the service has of its remote, in place of what there may be from before.

    Answered by WorldOpened or WorldFailed, however long that takes.
    """

    service: str


@dataclass(frozen=True, slots=True)
class StartBuild:
    """Answered by BuildEnded, unless it is cancelled."""

    service: str
    run: int


@dataclass(frozen=True, slots=True)
class CancelBuild:
    """End the build's whole tree. Not answered."""

    service: str
    run: int


@dataclass(frozen=True, slots=True)
class EndBuildServers:
    """End what builds have left running for the next one (Gradle's, Bazel's server). Not answered."""

    service: str


@dataclass(frozen=True, slots=True)
class ReloadProcess:
    """Tell the process to reload itself, as its `reload` says. Answered by ReloadEnded."""

    service: str
    run: int


@dataclass(frozen=True, slots=True)
class StartProbes:
    """Begin to ask whether it is ready, and from then on whether it is alive.

    Answered by NotReadyYet, BecameReady, NotReadyInTime, NotAlive. Replaces the probes of that run, if there are any.
    """

    service: str
    run: int


@dataclass(frozen=True, slots=True)
class HoldProbes:
    """Nothing is asked until ReleaseProbes, which begins all graces anew; a success on its way counts. Not answered."""

    service: str


@dataclass(frozen=True, slots=True)
class ReleaseProbes:
    """The end of HoldProbes; no harm where there was none. Not answered."""

    service: str


@dataclass(frozen=True, slots=True)
class StopProbes:
    """Not answered."""

    service: str


@dataclass(frozen=True, slots=True)
class SetBackoff:
    """Answered by BackoffEnded at `at`. A later one of the same service replaces it."""

    service: str
    run: int
    at: int


@dataclass(frozen=True, slots=True)
class ClearBackoff:
    """Not answered."""

    service: str


@dataclass(frozen=True, slots=True)
class SetSchedule:
    """Answered by RunDue at each time of the service's schedule, in place of what was set before."""

    service: str


@dataclass(frozen=True, slots=True)
class ClearSchedule:
    """No RunDue any more. Not answered."""

    service: str


@dataclass(frozen=True, slots=True)
class IgnoreFiles:
    """Stop watching these files for this service: it writes them itself. Not answered."""

    service: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WatchAgain:
    """Take back every IgnoreFiles of this service. Not answered."""

    service: str


@dataclass(frozen=True, slots=True)
class PublishStatus:
    """Something that a person sees of the service has changed. Not answered."""

    service: str


@dataclass(frozen=True, slots=True)
class RecordLoop:
    """A loop has ended. Stamps are monotonic, in the order in which they happened. Not answered."""

    service: str
    cause: Cause
    outcome: Outcome
    stamps: Mapping[str, int]
    files: tuple[str, ...]
    detail: str


@dataclass(frozen=True, slots=True)
class Tell:
    """A notice for a person. Not answered."""

    level: str
    service: str
    text: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Forget:
    """The service is gone from the project and its process has ended. Not answered."""

    service: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The shutdown is complete. Not answered."""


Command = (
    StartProcess
    | StopProcess
    | OpenWorld
    | StartBuild
    | CancelBuild
    | EndBuildServers
    | ReloadProcess
    | StartProbes
    | StopProbes
    | HoldProbes
    | ReleaseProbes
    | SetBackoff
    | ClearBackoff
    | SetSchedule
    | ClearSchedule
    | IgnoreFiles
    | WatchAgain
    | PublishStatus
    | RecordLoop
    | Tell
    | Forget
    | Finish
)

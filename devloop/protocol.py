"""The words that the engine and its clients share: what goes over the control socket, as typed data.

JSON-RPC 2.0 messages, one a line. A client calls `METHODS`; after `subscribe` it gets one `snapshot`
notification and then events. This module is plain dataclasses and imports next to nothing: the TUI, the
command line and the engine all build on it.

All times are in nanoseconds. `*_at` are Unix times; stamps of a loop count from its first stamp.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Hashable, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from functools import cache
from itertools import pairwise
from typing import Any, Self, Union, cast, get_args, get_origin, get_type_hints

PHASES = ("edited", "detected", "settled", "built", "stopped", "spawned", "ready", "served")
"""The stamps of a loop, in the order in which a restart with a build passes them."""


class State(StrEnum):
    """Where a service is in its life."""

    OFF = "off"  # not wanted here, or never started
    WAITING = "waiting"  # for its dependencies
    BUILDING = "building"  # nothing runs; the build does
    STARTING = "starting"  # a process runs and is not ready yet
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"  # by the user
    COMPLETED = "completed"  # exited with 0 and is not to be restarted
    FAILED = "failed"
    BACKOFF = "backoff"  # waits before the next attempt
    CRASH_LOOP = "crash-loop"  # failed too often; waits for a change or a key
    REMOTE = "remote"


class Cause(StrEnum):
    """Why a loop began."""

    START = "start"
    CHANGE = "change"
    MANUAL = "manual"
    CRASH = "crash"
    CONFIG = "config"
    DEPENDENCY = "dependency"  # what it depends on was restarted
    SCHEDULE = "schedule"  # a task's time has come


class Outcome(StrEnum):
    """How a loop ended."""

    OK = "ok"
    FAILED = "failed"
    SUPERSEDED = "superseded"


class _Wire:
    """JSON in and out for the dataclasses below."""

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types, with every field."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The reverse. Unknown keys, from a newer engine, are passed over; raises TypeError if one lacks."""
        hints = _hints(cast(Hashable, cls))
        return cls(**{key: _decode(hints[key], value) for key, value in data.items() if key in hints})


@cache
def _hints(cls: Hashable) -> dict[str, Any]:
    assert isinstance(cls, type)
    names = {f.name for f in fields(cls)}
    return {name: hint for name, hint in get_type_hints(cls).items() if name in names}


def _decode(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    origin, args = get_origin(hint), get_args(hint)
    if origin is Union or origin is types.UnionType:
        return _decode(next(a for a in args if a is not type(None)), value)
    if origin is tuple:
        return tuple(_decode(args[0], v) for v in value)
    if origin is dict:
        return {key: _decode(args[1], v) for key, v in value.items()}
    if isinstance(hint, type) and issubclass(hint, _Wire):
        return hint.from_json(value)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint(value)
    return value


@dataclass(frozen=True, slots=True)
class Loop(_Wire):
    """One trip from an edit, a key or a crash to a service that is ready again."""

    id: int
    service: str
    cause: Cause
    outcome: Outcome
    started_at: int
    """Unix time of the first stamp."""
    stamps: dict[str, int]
    """Phase → nanoseconds since the first stamp, in the order in which they happened."""
    files: tuple[str, ...] = ()
    """Changed files, relative to the project's folder."""
    detail: str = ""
    """For a failed loop: what failed."""

    @property
    def total(self) -> int:
        """Nanoseconds from the first stamp to the last."""
        return max(self.stamps.values(), default=0)

    @property
    def waited(self) -> int:
        """Nanoseconds from the first stamp to `ready`, or to the last but `served` if it never got ready.

        `served` comes whenever somebody asks.
        """
        if "ready" in self.stamps:
            return self.stamps["ready"]
        return max((at for phase, at in self.stamps.items() if phase != "served"), default=0)

    def spans(self) -> list[tuple[str, int, int]]:
        """(phase that the span ends with, begin, end), by time; the first stamp has no span."""
        ordered = sorted(self.stamps.items(), key=lambda item: item[1])
        return [(name, before, at) for (_, before), (name, at) in pairwise(ordered)]


@dataclass(frozen=True, slots=True)
class EarlierConnections(_Wire):
    """Connections that a client made before a service moved, and that still lead to where it was."""

    client: str
    """A service of the project, "localhost" for other programs of this machine, or a pod."""
    count: int
    leads_to: str
    """local (the process that was here), remote, or original: the pods whose traffic is attached."""


def earlier_in_words(found: Collection[EarlierConnections], rate: float | None = None) -> tuple[str, ...]:
    """A sentence for each place that they lead to: how many, what they carry if the `rate` of requests per second is
    known, and whose they are."""
    places = {"local": "the process that was here", "remote": "the remote", "original": "the original"}
    said = []
    for place in dict.fromkeys(each.leads_to for each in found):
        here = sorted((each for each in found if each.leads_to == place), key=lambda each: (-each.count, each.client))
        number = sum(each.count for each in here)
        lead = "1 connection from before still leads" if number == 1 else f"{number} connections from before still lead"
        carried = ""
        if rate is not None:
            verb = "is" if number == 1 else "are"
            carried = f", with {_per_second(rate)}" if rate else f" and {verb} idle"
        whose = ", ".join(f"{each.count} from {each.client}" for each in here)
        said.append(f"{lead} to {places.get(place, place)}{carried}: {whose}")
    return tuple(said)


def _per_second(rate: float) -> str:
    if rate < 0.05:
        return "fewer than 0.1 requests/s"
    number = f"{rate:.0f}" if rate >= 9.95 else f"{rate:.1f}".removesuffix(".0")
    return f"about {number} request{'' if number == '1' else 's'}/s"


@dataclass(frozen=True, slots=True)
class AttachmentStatus(_Wire):
    """How a local service holds a Service's traffic, or a workload's place."""

    kind: str
    """intercept, replace or wiretap."""
    target: str
    """The Service, or the workload where no traffic is taken."""
    phase: str
    """attaching, attached, failed open, contested, refused, leaving or left (`devloop.attach.Phase`)."""
    since_at: int
    routes: tuple[str, ...] = ()
    """Which requests, for people."""
    reason: str = ""
    notes: tuple[str, ...] = ()
    local_rate: float = 0.0
    """Requests that were answered here, per second, over the last seconds."""
    original_rate: float = 0.0
    """Requests that the original pods answered."""
    other_rate: float = 0.0
    """Requests that other developers' services answered, or other services of this project."""
    failed_rate: float = 0.0
    """Requests that nobody answered."""
    earlier: tuple[EarlierConnections, ...] = ()
    """Connections that clients made before it was attached, and that still lead to the original: nothing of them comes
    here. Looked for every 10 s while there are some, else every minute."""
    earlier_rate: float | None = None
    """About how many requests per second they carry, by the packets that the kernel counted between the last two looks;
    0 if none came or went. None: that is not known."""
    uncounted: str = ""
    """Why it is not known whether there are any; empty if it is."""


GRPC_STATUSES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
"""By number (gRPC's statuscodes.md)."""
_GRPC_CLIENTS = frozenset(
    (
        *("CANCELLED", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED"),
        *("FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNAUTHENTICATED"),
    )
)


@dataclass(frozen=True, slots=True)
class RequestRecord(_Wire):
    """One request that went through an attached Service; never its body."""

    service: str
    """The project's service."""
    at: int
    """When it began, Unix time by the cluster's clock."""
    method: str
    path: str
    """Without its query."""
    status: int
    """0: it ended without an answer."""
    duration: int
    answered: str
    """local, original, other (another holder of the same Service) or nobody."""
    protocol: str = ""
    failed_over: bool = False
    """It was taken, and the original pods answered after all."""
    target: str = ""
    """The Service that was asked."""
    by: str = ""
    """Which other holder answered, as in "ben@studio"; empty if that is not known."""
    grpc: int | None = None
    """The status of a gRPC call, whose HTTP status is 200 whatever happens."""

    @property
    def outcome(self) -> str:
        """The status in a word: "200", "UNAVAILABLE"; empty if it ended without an answer."""
        if self.grpc is None:
            return str(self.status) if self.status else ""
        return GRPC_STATUSES[self.grpc] if self.grpc < len(GRPC_STATUSES) else f"grpc {self.grpc}"

    @property
    def blame(self) -> str:
        """Whose fault it is that it went wrong, by its status: "" (nobody's), "client", or "server"."""
        if self.grpc is not None:
            return "" if not self.grpc else "client" if self.outcome in _GRPC_CLIENTS else "server"
        if self.status >= 500 or (not self.status and self.method != "TCP") or self.answered == "nobody":
            return "server"
        return "client" if self.status >= 400 else ""


@dataclass(frozen=True, slots=True)
class RequestBatch(_Wire):
    """Requests that are over, oldest first. There may have been more than are told."""

    requests: tuple[RequestRecord, ...]


@dataclass(frozen=True, slots=True)
class ServiceStatus(_Wire):
    """All that a client shows of a service."""

    name: str
    mode: str
    state: State
    reason: str
    """Why it is in this state, in words for a person; empty if the state says it all."""
    since_at: int
    pid: int | None = None
    exit_code: int | None = None
    """Of the last process; negative for a signal, as in `subprocess`."""
    restarts: int = 0
    """Starts after the first, for any cause, since the engine started."""
    ports: dict[str, int] = field(default_factory=dict)
    """Those that devloop.toml declares."""
    groups: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()
    task: bool = False
    has_build: bool = False
    stale: bool = False
    """Files have changed that the process has not seen (`reload = "manual"`, or a failed build)."""
    opened_at: int | None = None
    """Unix time at which the loop that is under way began."""
    last_loop: Loop | None = None
    loops: int = 0
    """Loops that ended ok in the engine's history (at most the last 200)."""
    p50: int | None = None
    p95: int | None = None
    history: tuple[int, ...] = ()
    """Totals of the last ok loops, oldest first, at most 32: for a sparkline."""
    modes: tuple[str, ...] = ("local", "off")
    """Those that it can have, in the order in which `toggle` goes through them."""
    published: dict[str, int] = field(default_factory=dict)
    """Port's name or number → the port of this machine's localhost that leads to it, wherever it runs.

    What is there now: a declared port (`ports`) that nothing listens on, or that another program has, is not in it.
    """
    workload: str = ""
    """What it stands for, as in "deployment/web"; empty if nothing, or not known yet."""
    notes: tuple[str, ...] = ()
    """How its environment and files differ from its pod's, a sentence each."""
    attachments: tuple[AttachmentStatus, ...] = ()
    """What it holds of the remote's traffic; one for each Service."""
    earlier: tuple[EarlierConnections, ...] = ()
    """Connections of this machine's clients that were made before it was toggled and don't lead to where it is now."""
    stuck: str = ""
    """While it waits: the service that keeps it from ever starting, having failed or been stopped."""
    next_at: int | None = None
    """Unix time of a task's next run by its schedule."""
    tty: bool = False
    """Its input and output are a terminal."""
    prompt: str = ""
    """It runs and waits for a person: a debugger's prompt, such as "(Pdb)", or "waits for a debugger". Empty if not."""

    @property
    def at_prompt(self) -> str:
        """The same in words; empty if it does not wait."""
        return self.prompt and (self.prompt if self.prompt.startswith("waits") else f"at prompt {self.prompt}")


@dataclass(frozen=True, slots=True)
class Notice(_Wire):
    """Something that the engine has to tell a person, outside any service's log."""

    level: str
    """info, warning or error."""
    text: str
    at: int
    service: str | None = None
    hint: str = ""


@dataclass(frozen=True, slots=True)
class RemoteStatus(_Wire):
    """The connection to the remote."""

    kind: str
    """kubernetes, ssh or sandbox."""
    link: str
    """agent, portforward, ssh or sandbox: what carries it."""
    where: str
    """The context and namespace, or the host, for people."""
    phase: str
    """connecting, connected, reconnecting, failed (only `reconnect` tries again) or closed."""
    since_at: int
    reason: str = ""
    """Why it is not connected."""
    attempt: int = 0
    """How many attempts have failed since it was last connected."""
    next_at: int | None = None
    """Unix time of the next attempt; None while one is under way."""
    notes: tuple[str, ...] = ()
    """What people should know though it works."""
    network: str = ""
    """How local services reach it: namespace, ports or hosts."""
    direct: str = ""
    """The agent's address (host:port) if connections go straight there, and not by the API server."""
    forwarded: dict[str, int] = field(default_factory=dict)
    """With the network `ports`: name:port of the remote → the port of localhost that leads there."""
    closed: tuple[str, ...] = ()
    """With the network `ports`: Services that have no port here, as nothing names them."""


@dataclass(frozen=True, slots=True)
class Mounted(_Wire):
    """A file or folder that a local service has from its workload."""

    path: str
    """Where the service sees it."""
    source: str
    """Where it lies on this machine."""
    volume: str
    kind: str
    """configMap, secret, persistentVolumeClaim, …"""
    read_only: bool
    follows: bool = False
    """It changes as the cluster's does."""


@dataclass(frozen=True, slots=True)
class Snapshot(_Wire):
    """The whole state, sent first to a subscriber and printed by `devloop status --json`."""

    project: str
    root: str
    file: str
    engine_pid: int
    version: str
    started_at: int
    services: tuple[ServiceStatus, ...]
    notices: tuple[Notice, ...] = ()
    remote: RemoteStatus | None = None
    stopping: bool = False
    config_error: str = ""
    """Why the newest devloop.toml on disk is not in force; empty if it is."""


@dataclass(frozen=True, slots=True)
class LogLine(_Wire):
    """One line of a service's output, without its line end; ANSI sequences are kept."""

    service: str
    at: int
    stream: str
    """out, err, build or devloop (the engine's own words on that service)."""
    text: str
    partial: bool = False
    """It has no end yet (a prompt, a progress bar): the next line of the same service and stream takes its place."""

    @property
    def level(self) -> str:
        """What the line says of itself (`devloop.records.LEVELS`), or empty. Found by who asks, never by the engine."""
        from devloop.records import level_of

        return level_of(self.text) if self.stream != "devloop" else ""


@dataclass(frozen=True, slots=True)
class LogBatch(_Wire):
    """Lines that a subscriber has not seen yet, oldest first."""

    lines: tuple[LogLine, ...]
    dropped: int = 0
    """Lines passed over before these because the client read too slowly."""

    def to_json(self) -> dict[str, Any]:
        """Rows instead of objects: this is the one message that comes by the thousand."""
        rows = [
            (line.service, line.at, line.stream, line.text, *([True] if line.partial else ())) for line in self.lines
        ]
        return {"rows": rows, "dropped": self.dropped}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The reverse. `chunks` hold lines that came together: service, time, stream, and the lines as one text."""
        lines = [LogLine(*row) for row in data.get("rows", ())]
        for service, at, stream, text in data.get("chunks", ()):
            lines += [LogLine(service, at, stream, line) for line in text.split("\n")]
        return cls(tuple(lines), data["dropped"])


@dataclass(frozen=True, slots=True)
class TerminalOutput(_Wire):
    """What a service's own process printed, as it is: for who has called `terminal_open`."""

    service: str
    data: str
    """The bytes, in base64."""
    missed: int = 0
    """Bytes before these that were passed over because the client read too slowly."""
    starts: bool = False
    """Another process has started since the bytes before: these, if there are any, are its first."""


@dataclass(frozen=True, slots=True)
class Variable(_Wire):
    """One variable of a service's environment."""

    name: str
    value: str
    origin: str
    """Where it comes from: host, an env file's path, devloop.toml, devloop, or what the workload has it from."""
    secret: bool = False
    """It comes from a Secret, or its name looks like one's; shown masked until asked for."""


@dataclass(frozen=True, slots=True)
class StopProgress(_Wire):
    """Who is still alive during a shutdown."""

    alive: tuple[str, ...]
    """Services that have not ended yet."""
    survivors: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Service → processes ("pid name") that even SIGKILL did not end."""
    done: bool = False


METHODS: Mapping[str, str] = {
    "subscribe": "{logs: [service] | '*' | null, tail: lines, every: bool} → a snapshot, then events on this "
    "connection. With `every` log lines come in chunks, oldest first, as fast as the client reads; else the newest",
    "ping": "→ {}, at once: whether the engine answers at all",
    "status": "→ Snapshot",
    "toggle": "{service, mode: local|remote|off|null} → {mode}; null moves to the next mode it can have",
    "start": "{services} → {}; starts them, and what they depend on",
    "stop": "{services} → {}",
    "restart": "{services} → {}",
    "build": "{services} → {}; builds, and restarts if the build succeeds",
    "logs": "{services: [name] | null, tail: lines} → {lines: [LogLine], earlier}; the newest in memory, at most "
    "20,000, and how many there were before them",
    "terminal_open": "{service, columns, rows, tail: bytes} → {tty: bool}; what the service prints comes as `terminal` "
    "events on this connection, with so much of what was printed before (default: all that is kept); the size is that "
    "of who opened or resized last",
    "terminal_type": "{service, data: base64} → {}; input for its process, answered once it is taken; anybody may type",
    "terminal_interrupt": "{service} → {}; SIGINT to its process group: Ctrl-C where there is no terminal",
    "terminal_resize": "{service, columns, rows} → {}; without `terminal_open` it counts while nobody has it open",
    "terminal_close": "{service} → {}; also done by hanging up",
    "env": "{service, reveal: bool} → {variables: [Variable]}",
    "world": "{service} → {workload, mounts: [Mounted], notes: [text]}; what a local service has of its workload",
    "enter": "{service} → {pid, cwd, env}: what it takes to run a command as this service sees the world; "
    "pid is null where the network is the host's",
    "attach": "{service, kind: intercept|replace|wiretap|null, routes: 'personal'|'all'|[Route]|null, ports: {the "
    "Service's: local|null}|null, way: service|pods|null, take_over: bool} → {taken_over: [text]}; a Route is "
    "{headers: {name: match}, path: match, method, share}, a match {exact|prefix|regex: text}; "
    "null is what devloop.toml says; take_over puts back what a dead developer's devloop holds, and says whose it was",
    "move": "{service, force: bool} → {ended: number, left: [EarlierConnections], notes: [text]}; has clients make "
    "connections anew that lead to where the service was before it was toggled or attached, with no request lost, or "
    "with force at once. It takes some seconds",
    "leave": "{service} → {}; the original pods have all the traffic again",
    "requests": "{service, limit} → {requests: [RequestRecord]}, oldest first, of those that were seen lately",
    "reconnect": "→ {}; looks at once whether the connection to the remote lives, and tries again if not",
    "loops": "{service, limit} → {loops: [Loop]}, oldest first, from the history that survives restarts",
    "reload_config": "→ {changed: [service]}",
    "shutdown": "→ {}; progress comes as `stop_progress` events",
}
"""What a client may call: method → parameters and result."""

EVENTS: Mapping[str, type[_Wire]] = {
    "snapshot": Snapshot,
    "service": ServiceStatus,
    "loop": Loop,
    "logs": LogBatch,
    "terminal": TerminalOutput,
    "notice": Notice,
    "remote": RemoteStatus,
    "requests": RequestBatch,
    "stop_progress": StopProgress,
}
"""What a subscriber gets: notification's method → the type of its params. A `snapshot` may come again, after
a configuration change or when a client has read too slowly to be told each step."""

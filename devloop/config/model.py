"""What a devloop.toml means, after defaults, includes and interpolation. Plain frozen data, no I/O.

Times are integer nanoseconds, paths are absolute, commands are argument vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

MS = 1_000_000
"""Nanoseconds in a millisecond."""
SECOND = 1_000_000_000
"""Nanoseconds in a second."""


class Mode(StrEnum):
    """Where a service runs."""

    LOCAL = "local"
    REMOTE = "remote"
    OFF = "off"


class RemoteKind(StrEnum):
    """What stands at the other end."""

    KUBERNETES = "kubernetes"
    SSH = "ssh"
    SANDBOX = "sandbox"


class LinkWay(StrEnum):
    """How a cluster is connected to."""

    AUTO = "auto"
    AGENT = "agent"
    PORTFORWARD = "portforward"


LOGS_KEPT = 200_000_000
"""Bytes that the log files of each service hold unless `[logs] keep` says otherwise."""


class Network(StrEnum):
    """What network the local services of a project with a remote have."""

    NAMESPACE = "namespace"
    PORTS = "ports"
    HOSTS = "hosts"


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


class WatchMode(StrEnum):
    """How changes of files are found out."""

    AUTO = "auto"
    """By events, and by polling where a file system does not report everything."""
    EVENTS = "events"
    POLL = "poll"


@dataclass(frozen=True, slots=True)
class Command:
    """An argument vector; `text` is what the user wrote, for messages."""

    argv: tuple[str, ...]
    text: str
    typed: bool = field(default=False, compare=False)
    """It was written as a string, not as an array of words."""
    folder: str = ""
    """Where it runs, relative to the service's own: `cd FOLDER &&` before it."""
    env: Mapping[str, str] = field(default_factory=dict)
    """What it has besides the service's variables: `NAME=value` before it."""


@dataclass(frozen=True, slots=True)
class Reload:
    """How a change reaches the service. `signal` is a signal's number, for SIGNAL; `command` for EXEC."""

    kind: ReloadKind = ReloadKind.RESTART
    signal: int = 0
    command: Command | None = None


@dataclass(frozen=True, slots=True)
class Tls:
    """How a probe speaks TLS."""

    ca: Path | None = None
    """Whose certificates it accepts (PEM); None: any, as the kubelet's probes."""


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """A GET that must answer with a status from 200 to 399 (the kubelet's rule for httpGet)."""

    host: str
    port: int
    path: str = "/"
    tls: Tls | None = None
    """None: plain HTTP."""


@dataclass(frozen=True, slots=True)
class GrpcCheck:
    """A call of grpc.health.v1.Health/Check that must answer SERVING (the kubelet's rule for grpc)."""

    host: str
    port: int
    service: str = ""
    """Empty: the server as a whole."""
    tls: Tls | None = None


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


Check = HttpCheck | GrpcCheck | TcpCheck | ExecCheck | LogCheck


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
    for a change or a key instead of trying again. A task's failures count whatever `window` says.
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
    group: bool = False
    """Whether its whole process group is asked at once, not its main process alone."""


@dataclass(frozen=True, slots=True)
class Remote:
    """What services that are not here are reached at: `[remote]`."""

    kind: RemoteKind
    context: str | None = None
    """Of the kubeconfig; None: the current one."""
    kubeconfig: Path | None = None
    """None: as kubectl finds it."""
    namespace: str | None = None
    """None: the context's."""
    link: LinkWay = LinkWay.AUTO
    agent_image: str | None = None
    mesh: bool = False
    """The agent's pod gets the proxy of the namespace's service mesh."""
    """None: `IMAGE` of `devloop.remote.kubernetes.install`, which no registry has yet."""
    secrets_on_disk: bool = False
    """Secret files may lie on a disk where there is no tmpfs."""
    direct: bool | tuple[str, int] = True
    """Whether the agent's pod is tried at its own address, or at which other one (host, port)."""
    host: str | None = None
    """A name as `ssh` takes it."""
    forward: tuple[str, ...] = ()
    """With `network = "ports"`: Services that have ports though nothing names them; "*" is all."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that HTTP requests to ports of localhost may be for, and web pages come from; `*.NAME`: any below NAME."""
    networks: tuple[str, ...] = ()
    """CIDRs that are reached through the link, besides what devloop finds out by itself."""
    names: tuple[str, ...] = ()
    """Domains that the remote's resolver is asked for, besides its own (`dns.remote`)."""
    manifests: tuple[Path, ...] = ()
    """Of the sandbox: files and folders of Kubernetes manifests."""
    images: Mapping[str, Path] = field(default_factory=dict)
    """Of the sandbox: image → the folder whose code it would hold."""


@dataclass(frozen=True, slots=True)
class Place:
    """How a service stands for a workload of the remote."""

    workload: str | None = None
    """"deployment/web"; None: the one that has the service's name, if there is one."""
    none: bool = False
    """It stands for no workload (`workload = false`): it is new, or has nothing to take from there."""
    container: str | None = None
    namespace: str | None = None
    """None: the remote's."""
    names: tuple[str, ...] = ()
    """Services that lead to it; empty: those that select the workload's pods, else its own name."""
    volumes: Mapping[str, str] = field(default_factory=dict)
    """A volume's name or mount path → copy, mount or ignore; "*" is for all others."""


SERVER_NAME = r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?"
"""The name of a server that clients of TLS ask for, as a pattern; `*.NAME` is any below NAME."""


class AttachKind(StrEnum):
    """How a local service joins its workload."""

    INGEST = "ingest"
    """Environment and files, read-only."""
    INTERCEPT = "intercept"
    """Its traffic too."""
    REPLACE = "replace"
    """Its traffic, and the workload is stopped."""
    WIRETAP = "wiretap"
    """A copy of its traffic."""


@dataclass(frozen=True, slots=True)
class Matching:
    """How a text of a request has to be: `exact`, `prefix` or `regex` (RE2's, of all of it)."""

    how: str
    value: str


@dataclass(frozen=True, slots=True)
class RouteRule:
    """Which requests are taken: those that meet every condition, and of these a share in percent."""

    headers: Mapping[str, Matching] = field(default_factory=dict)
    path: Matching | None = None
    method: str = ""
    share: float = 100.0
    sni: str = ""
    """The name of the server that clients of TLS ask for."""


@dataclass(frozen=True, slots=True)
class Encryption:
    """What a developer says of ports that speak TLS: `attach.tls`. Names are of Secrets of the Service's namespace."""

    secret: str = ""
    """The certificate's; empty: that which the original's pods mount and show."""
    local: Literal["tls", "plain"] = "tls"
    """What the local service speaks there."""
    client_ca: str = ""
    """Has the `ca.crt` by which clients' certificates are checked; empty: the certificate's own Secret."""
    client: str = ""
    """Has the certificate that the original sees, where it wants one of its clients."""
    inside: bool = True
    """TLS may be ended at the agent, where routes look at what is in it."""


@dataclass(frozen=True, slots=True)
class Attach:
    """How a service is attached while it is local: `attach`."""

    kind: AttachKind = AttachKind.INGEST
    ports: Mapping[str, int | None] = field(default_factory=dict)
    """The Service's, by name or number → the local one, None where that follows from `ports`; empty: all."""
    routes: tuple[RouteRule, ...] = ()
    """Empty: by the developer's own `baggage` entry."""
    fail: str = "open"
    way: str = "service"
    """`service`, or `pods` for clients that go by the pods' addresses."""
    tls: Encryption = Encryption()

    @property
    def takes_all(self) -> bool:
        """One of its routes takes every request."""
        return RouteRule() in self.routes


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a task runs by itself: after each `every` nanoseconds, or at the times of `cron` in local time."""

    every: int = 0
    cron: str = ""
    """Five fields of cron(5), in upper case; "" if it goes by `every`."""


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
    """In the order of the file."""
    restart: RestartPolicy
    stop: StopPolicy
    task: bool
    mode: Mode
    groups: tuple[str, ...]
    debounce: int
    """Shortest quiet time after a whole save before it counts as settled, in nanoseconds."""
    tty: bool = False
    """Whether its input and output are a terminal (pty(7))."""
    restarts_with: tuple[str, ...] = ()
    """Those of `depends_on` whose restart restarts it."""
    schedule: Schedule | None = None
    """Of a task: when it runs by itself."""
    place: Place = Place()
    attach: Attach = Attach()
    hold: int = 10 * SECOND
    """How long a connection waits for it while it is not listening, in nanoseconds."""
    watch_mode: WatchMode = WatchMode.AUTO
    poll: int = 0
    """Nanoseconds between two looks at the files, when they are polled; 0: as devloop likes."""
    file_env: Mapping[Path, Mapping[str, str]] = field(default_factory=dict)
    """What each of `env_files` said at loading. Later files win, and `env` over all of them."""
    env_from_workload: tuple[str, ...] = ()
    """Patterns of variables that it takes from its workload though they make programs run other code."""


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
    remote: Remote | None = None
    network: Network | None = None
    """None: the best that this machine can."""
    user: str | None = None
    """The developer's name for colleagues; None: the login name."""
    logs_kept: int = LOGS_KEPT
    """Bytes that the log files of each service hold."""
    missing: tuple[Path, ...] = ()
    """Files that are not there and would change the project if they were: its .env, optional env files."""

    @property
    def root(self) -> Path:
        """The folder that the project file stands in."""
        return self.file.parent

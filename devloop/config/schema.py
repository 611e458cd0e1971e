"""The tables of devloop.toml: which keys there are, and what they say to an editor.

One pydantic model per table. A shorthand (`restart = "never"`) is turned into the long form before it is
checked, so that no `Union` blurs what is expected where. Every field is None if it was not given: the
defaults are `resolve`'s, after `[defaults]` has had its say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WrapValidator

from devloop.config.forms import (
    DEPENDENCIES_SHAPE,
    AttachName,
    Bytes,
    CommandLine,
    ConditionName,
    Endpoint,
    Env,
    FailName,
    Groups,
    HttpTarget,
    InsideName,
    Interval,
    LinkName,
    Match,
    MeshName,
    ModeName,
    NetworkName,
    Pause,
    PolicyName,
    Ports,
    Regex,
    ReloadAction,
    RemoteName,
    ScheduleText,
    ServerName,
    Share,
    ShellWords,
    Signal,
    Span,
    StopTarget,
    Strings,
    TakenPorts,
    Text,
    Volumes,
    WatchModeName,
    WayName,
    WorkloadName,
    depends_on,
    routes,
    short,
    switch,
    tls,
)


class Table(BaseModel):
    """A table of the file. TOML has types, so nothing is converted unless a validator above does it."""

    # Built at its first use: a table inside another is part of that one's validator.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class Timings(Table):
    """The rhythm of a probe."""

    period: Span | None = Field(None, description="Time between two attempts. Default: 250ms (ready), 2s (live).")
    timeout: Span | None = Field(None, description="How long one attempt may take. Default: 1s.")
    grace: Pause | None = Field(
        None, description="How long failures after the start do not count. Default: 30s (ready), 0s (live)."
    )
    failures: int | None = Field(None, ge=1, description="Failures in a row that count as failed. Default: 3.")


_OVER_TLS: Any = {key: {"anyOf": [{"required": ["http"]}, {"required": ["grpc"]}]} for key in ("tls", "ca")}


class LiveProbe(Timings):
    """How to tell that the service still works. One of http, grpc, tcp and exec."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": [k]} for k in ("http", "grpc", "tcp", "exec")],
            "dependentRequired": {"port": ["http"]},
            "dependentSchemas": _OVER_TLS,
        }
    )

    http: HttpTarget | None = Field(
        None, description='A path on the first port, ":PORT/path" or a URL; a status from 200 to 399 is well.'
    )
    grpc: Endpoint | None = Field(
        None, description="A port's name or number, or host:port, and /SERVICE if one is meant; its health is SERVING."
    )
    tcp: Endpoint | None = Field(None, description="A port's name or number, or host:port; a connection is well.")
    exec: CommandLine | None = Field(None, description="A command in the service's folder; exit code 0 is well.")
    port: Endpoint | None = Field(None, description="The port, by name or number, that the path in `http` is for.")
    tls: bool | None = Field(
        None, description="Whether it speaks TLS, for http and grpc. Default: as the URL says; else false."
    )
    ca: Text | None = Field(
        None,
        description="A file of certificates (PEM), relative to this file: the server's must be signed by one of them. "
        "Default: none is checked.",
    )


class ReadyProbe(LiveProbe):
    """How to tell that the service can be used. One of http, grpc, tcp, exec and log."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": [k]} for k in ("http", "grpc", "tcp", "exec", "log")],
            "dependentRequired": {"port": ["http"]},
            "dependentSchemas": _OVER_TLS,
        }
    )

    log: Regex | None = Field(None, description="A regular expression that a line of output must match.")


class RestartTable(Table):
    """Which exits start the service again, and how soon."""

    policy: PolicyName | None = Field(
        None, description="never, on-failure or always (not for tasks). Default: on-failure; for tasks never."
    )
    delay: Span | None = Field(None, description="Before the first attempt; doubled at each one. Default: 100ms.")
    max_delay: Span | None = Field(None, description="The longest delay. Default: 10s.")
    limit: int | None = Field(None, ge=1, description="Failures in a row that make a crash loop. Default: 5.")
    window: Span | None = Field(
        None,
        description="A service's failure later than this after its start begins a new count. Default: 10s.",
    )


class StopTable(Table):
    """How the service is asked to end."""

    signal: Signal | None = Field(None, description="The signal that asks. Default: TERM.")
    timeout: Span | None = Field(None, description="How long until the whole tree is killed. Default: 5s.")
    to: StopTarget | None = Field(
        None,
        description="Who gets the signal: main (its main process, then what that leaves behind) or group (its whole "
        "process group at once, as Ctrl-C in a terminal). Default: main.",
    )


class RouteTable(Table):
    """Which requests an attachment takes: those that meet every condition."""

    headers: dict[str, Match] | None = Field(
        None, description="Headers and how each must be: a string, or { prefix = … }, or { regex = … }."
    )
    path: Match | None = Field(None, description="How the path must be: a string, or { prefix = … }, or { regex = … }.")
    method: Text | None = Field(None, description="The method, such as GET.")
    share: Share | None = Field(None, description='Of these requests, how many: "10%". Default: all.')
    sni: ServerName | None = Field(
        None,
        description="On ports that speak TLS, the name of the server that clients ask for: api.example.com, or "
        "*.example.com. It stands alone: nothing else of the connection is seen.",
    )


class DependencyTable(Table):
    """What a dependency must have reached, and what its restart does."""

    condition: ConditionName | None = Field(None, description="started, ready or completed. Default: ready.")
    restart: bool | None = Field(
        None, description="Whether its restart restarts this service, once the condition holds again. Default: false."
    )


if TYPE_CHECKING:
    Dependencies: TypeAlias = dict[str, DependencyTable]
else:
    Dependencies = Annotated[dict[str, DependencyTable], BeforeValidator(depends_on), DEPENDENCIES_SHAPE]


class TlsTable(Table):
    """Ports that speak TLS: how devloop looks inside where routes need it, and what the local service speaks."""

    secret: Text | None = Field(
        None,
        description="The certificate's Secret (tls.crt, tls.key). Default: the one that the pods mount and show.",
    )
    local: InsideName | None = Field(
        None, description="What the local service speaks on these ports: tls or plain (HTTP). Default: tls."
    )
    client_ca: Text | None = Field(
        None,
        description="Where clients show certificates: the Secret whose ca.crt checks them. Default: `secret`'s.",
    )
    client: Text | None = Field(
        None,
        description="Where clients show certificates: the Secret of the one that the original sees instead.",
    )


if TYPE_CHECKING:
    Tls: TypeAlias = TlsTable | Literal[False]
else:
    Tls = Annotated[
        TlsTable | Literal[False],
        BeforeValidator(tls, json_schema_input_type=TlsTable | Text | Literal[False]),
    ]

if TYPE_CHECKING:
    Routes: TypeAlias = tuple[RouteTable, ...]
else:
    Routes = Annotated[
        tuple[RouteTable, ...],
        BeforeValidator(
            routes, json_schema_input_type=Literal["personal", "all"] | RouteTable | tuple[RouteTable, ...]
        ),
    ]


class AttachTable(Table):
    """How a service joins its workload while it is local."""

    kind: AttachName | None = Field(
        None, description="ingest, intercept, replace (the workload is stopped) or wiretap (a copy). Default: ingest."
    )
    ports: TakenPorts | None = Field(
        None, description="The Service's ports, by name or number, and the local one of each. Default: all."
    )
    routes: Routes | None = Field(
        None,
        description='"personal" (by the baggage entry devloop=YOU), "all", or tables of conditions. Default: personal.',
    )
    fail: FailName | None = Field(
        None, description="What answers while it can't: open (the original pods) or closed (nobody). Default: open."
    )
    tls: Tls | None = Field(
        None,
        description="For ports that speak TLS: the certificate's Secret, or a table; false: TLS passes as it is.",
    )
    way: WayName | None = Field(
        None,
        description="Where its traffic is taken: service (at the Service's address) or pods (in each of them, by a "
        "container with NET_ADMIN: for headless Services, and clients that go by pods' addresses). Default: service.",
    )


# Tables with a shorthand. The type checker sees the table; pydantic, the way to it.
if TYPE_CHECKING:
    Ready: TypeAlias = ReadyProbe
    Live: TypeAlias = LiveProbe
    RestartRule: TypeAlias = RestartTable
    Attachment: TypeAlias = AttachTable
    StopRule: TypeAlias = StopTable
else:
    Ready = Annotated[ReadyProbe | None, WrapValidator(switch, json_schema_input_type=ReadyProbe | Literal[False])]
    Live = Annotated[LiveProbe | None, WrapValidator(switch, json_schema_input_type=LiveProbe | Literal[False])]
    Attachment = Annotated[
        AttachTable,
        BeforeValidator(
            short("kind", '"ingest", "intercept", "replace", "wiretap" or a table'),
            json_schema_input_type=AttachName | AttachTable,
        ),
    ]
    RestartRule = Annotated[
        RestartTable,
        BeforeValidator(
            short("policy", '"never", "on-failure", "always" or a table'),
            json_schema_input_type=PolicyName | RestartTable,
        ),
    ]
    StopRule = Annotated[
        StopTable,
        BeforeValidator(
            short("signal", 'a signal such as "TERM", or a table'), json_schema_input_type=Signal | StopTable
        ),
    ]


class Common(Table):
    """The keys that `[defaults]` has too."""

    env: Env | None = Field(None, description="Environment variables; numbers and booleans become strings.")
    env_file: Strings | None = Field(
        None, description='Files of NAME=value lines; one whose name ends in "?" may be missing.'
    )
    env_from_workload: Strings | None = Field(
        None,
        description="Variables of the workload that a local process gets although they make programs run other code: "
        'names, or patterns such as "BUNDLE_*". Default: none of them.',
    )
    ignore: Strings | None = Field(
        None, description="Files that are not watched, in gitignore syntax, besides the built-in ones."
    )
    gitignore: bool | None = Field(
        None, description="Whether .gitignore and the usual build folders are left out. Default: true."
    )
    watch_mode: WatchModeName | None = Field(
        None,
        description="How changes are found: events, poll, or auto (events, and polling where a file system does not "
        "report all changes). Default: auto; poll if `poll` is set.",
    )
    poll: Span | None = Field(None, description="Time between two looks at the files, when polled. Default: 500ms.")
    reload: ReloadAction | None = Field(
        None,
        description="What a change does: restart, manual, signal:NAME or exec: COMMAND. Default: restart.",
    )
    restart: RestartRule | None = Field(
        None,
        description="When the process is started again after it ended. Default: on-failure; for tasks never.",
    )
    stop: StopRule | None = Field(None, description="The signal that asks it to end, and for how long.")
    mode: ModeName | None = Field(
        None, description="Where it runs: local (here), remote (in the cluster) or off. Default: local."
    )
    groups: Groups | None = Field(None, description="Names that stand for several services.")
    tty: bool | None = Field(
        None,
        description="Whether it gets a terminal: colours, prompts, debuggers, `devloop terminal`. Default: false.",
    )
    hold: Pause | None = Field(
        None, description="How long connections wait for it while it reloads, with a remote. Default: 10s."
    )
    volumes: Volumes | None = Field(
        None,
        description="What becomes of volumes that only the cluster has (claims, emptyDir, hostPath): copy, mount or "
        "ignore, for all or by name or path. Default: copy.",
    )
    debounce: Span | None = Field(
        None, description="Shortest quiet time after a change before it counts as settled. Default: 4ms."
    )
    shell: ShellWords | None = Field(
        None,
        description="What runs commands that only a shell understands: a name or path such as bash, or an array of "
        'words such as ["bash", "-euo", "pipefail", "-c"]. Default: the project\'s, or /bin/sh.',
    )


class Defaults(Common):
    """What holds for every service that does not say otherwise."""

    ready: Timings | None = Field(None, description="Rhythm of the ready probes; the check is the service's own.")
    live: Timings | None = Field(None, description="Rhythm of the live probes; the check is the service's own.")


_ALWAYS: Any = {"const": "always"}
_TASK: Any = {"properties": {"task": {"const": True}}, "required": ["task"]}
_OBJECT: Any = {"type": "object", "required": ["policy"]}


class Service(Common):
    """A process that devloop runs and reloads."""

    model_config = ConfigDict(
        json_schema_extra={
            "required": ["command"],
            "dependentSchemas": {
                "schedule": {**_TASK, "not": {"required": ["every"]}},
                "every": {**_TASK, "not": {"required": ["schedule"]}},
            },
            "if": {"properties": {"task": {"const": True}}, "required": ["task"]},
            "then": {
                "properties": {
                    "ready": {"const": False},
                    "live": {"const": False},
                    "restart": {"not": {"anyOf": [_ALWAYS, {"properties": {"policy": _ALWAYS}, **_OBJECT}]}},
                }
            },
        }
    )

    command: CommandLine | None = Field(None, description="What to run: as typed in a shell, or an array of words.")
    cwd: Text | None = Field(None, description="The folder it runs in. Default: the folder of this file.")
    watch: Strings | None = Field(
        None,
        description='Folders and files whose changes matter, relative to cwd. Default: ["."]; for tasks [].',
    )
    build: CommandLine | None = Field(None, description="A command that must succeed before each start.")
    ports: Ports | None = Field(None, description="The ports that it listens on, by name.")
    ready: Ready | None = Field(
        None, description="How to tell that it is ready. Default: the first port accepts a connection."
    )
    live: Live | None = Field(None, description="How to tell that it still works; a failure restarts it.")
    depends_on: Dependencies | None = Field(
        None, description="Services that must be started, ready (the default) or completed before it starts."
    )
    task: bool | None = Field(None, description="Whether it runs once and completes by exit code 0. Default: false.")
    schedule: ScheduleText | None = Field(
        None, description='When a task runs by itself: "every 10m", or cron\'s "*/5 * * * *" or "@hourly", local time.'
    )
    every: Interval | None = Field(None, description='The same, short: "10m". One of schedule and every.')
    workload: WorkloadName | None = Field(
        None,
        description="The workload that it stands for, as KIND/NAME or NAME, or false for none. "
        "Default: the one of its name, if the remote has it.",
    )
    container: Text | None = Field(None, description="Which of the pod's containers. Default: as kubectl picks it.")
    namespace: Text | None = Field(None, description="The workload's namespace. Default: the remote's.")
    attach: Attachment | None = Field(
        None, description="How it joins its workload while it is local. Default: ingest (environment and files)."
    )
    names: Strings | None = Field(
        None, description="Names of Services that lead to it. Default: those that select its workload, else its own."
    )


class ProjectTable(Table):
    """The project as a whole."""

    name: Text | None = Field(None, description="Its name. Default: the folder's.")
    shell: ShellWords | None = Field(
        None, description="What runs commands that only a shell understands, such as bash. Default: /bin/sh."
    )
    network: NetworkName | None = Field(
        None,
        description="How local services reach the remote: in a network namespace each, by ports on localhost, or by "
        "the hosts file. Default: namespace on Linux, else ports.",
    )


class RemoteTable(Table):
    """Where the services are that do not run here."""

    kind: RemoteName | None = Field(
        None, description="kubernetes, ssh or sandbox. Default: ssh if there is a host, else kubernetes."
    )
    context: Text | None = Field(None, description="The kubeconfig's context. Default: the current one.")
    kubeconfig: Text | None = Field(None, description="The kubeconfig's file. Default: as kubectl finds it.")
    namespace: Text | None = Field(None, description="The namespace. Default: the context's.")
    link: LinkName | None = Field(
        None,
        description="agent (a pod that devloop makes), portforward (nothing is installed) or auto: the agent, or "
        "port-forwards where it may not be made. Default: auto.",
    )
    agent_image: Text | None = Field(None, description="The agent's image, from a registry of your own.")
    secrets_on_disk: bool | None = Field(
        None,
        description="Whether secret files of workloads may lie on a disk where this machine has no tmpfs (macOS, small "
        "containers). Default: false: such a service does not start.",
    )
    mesh: MeshName | None = Field(
        None,
        description="Where the namespace has a service mesh's injector (Istio, Linkerd, Kuma, Consul): whether the "
        "agent's pod stays out of it, or joins. Default: out.",
    )
    direct: Text | None = Field(
        None,
        description="auto: connections go straight to the agent's pod where this machine reaches its address, and by "
        "the API server else. off: always by the API server. HOST:PORT: where something of yours leads to the agent's "
        "port 2223. Default: auto.",
    )
    host: Text | None = Field(None, description="Of kind ssh: the host, as `ssh` takes it.")
    forward: Strings | None = Field(
        None,
        description='With network = "ports": Services with ports on localhost though nothing names them; "*": all. '
        "Default: those that environments and depends_on name.",
    )
    allowed_hosts: Strings | None = Field(
        None,
        description="Names besides those of this machine that HTTP requests to ports of localhost may be for, and that "
        "web pages may send them from; *.NAME is any below NAME, * is all. Default: none.",
    )
    networks: Strings | None = Field(
        None, description="Networks (CIDR) to reach through the link, besides those that devloop finds by itself."
    )
    manifests: Strings | None = Field(None, description="Of kind sandbox: Kubernetes manifests, files or folders.")
    images: Env | None = Field(None, description="Of kind sandbox: an image's name → the folder with its code.")


class DnsTable(Table):
    """Who is asked for which names."""

    remote: Strings | None = Field(
        None, description="Domains that the remote's resolver knows, such as a VPC's: names at and below them."
    )


class LogsTable(Table):
    """What is kept of what services print."""

    keep: Bytes | None = Field(
        None, description='How much the log files of each service hold, such as "1GB"; "0" for none. Default: 200MB.'
    )


class UserTable(Table):
    """Who you are, for colleagues who use the same cluster."""

    name: Text | None = Field(
        None,
        description="Your name in routes, leases and messages: personal routes take requests with the baggage entry "
        "devloop=NAME. DEVLOOP_USER, in the environment or in .env, goes before it. Default: that of your own "
        "~/.config/devloop/config.toml, else the login name.",
    )


class Head(Table):
    """What decides on the files of a project."""

    include: Strings | None = Field(
        None, description="Further files with services: paths or globs (*, **), relative to this file."
    )


class File(Head):
    """A whole devloop.toml, or a file that it includes (which has services only)."""

    project: ProjectTable | None = Field(None, description="The project as a whole.")
    defaults: Defaults | None = Field(None, description="What holds for every service that does not say otherwise.")
    remote: RemoteTable | None = Field(None, description="Where the services are that do not run here.")
    dns: DnsTable | None = Field(None, description="Who is asked for which names.")
    logs: LogsTable | None = Field(None, description="What is kept of what services print.")
    user: UserTable | None = Field(None, description="Who you are, for colleagues who use the same cluster.")
    services: dict[str, Service] | None = Field(None, description="The services, by name.")


TABLES: Mapping[type[Table], Mapping[str, type[Table]]] = {
    Service: {
        "ready": ReadyProbe,
        "live": LiveProbe,
        "restart": RestartTable,
        "stop": StopTable,
        "attach": AttachTable,
        "depends_on": DependencyTable,
    },
    AttachTable: {"routes": RouteTable, "tls": TlsTable},
    Defaults: {"ready": Timings, "live": Timings, "restart": RestartTable, "stop": StopTable},
}
"""The model of the table that a key holds, for the names that are valid in it."""

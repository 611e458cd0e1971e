"""What a value of devloop.toml may look like: the forms that a key takes, and what each turns into.

A form is a type for pydantic: the validators that widen a shorthand (`ports = 8081`) to the long form and
check it, and the JSON schema that tells an editor the same. To the type checker it is what comes out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema, WrapValidator

from devloop.config import values
from devloop.config.label import PATTERN as LABEL_PATTERN
from devloop.config.model import (
    MS,
    SERVER_NAME,
    AttachKind,
    Command,
    LinkWay,
    Mode,
    Network,
    Reload,
    RemoteKind,
    Restart,
    Schedule,
    WatchMode,
)
from devloop.config.words import describe, quoted

ALL_VOLUMES = "*"
MATCHES = ("exact", "prefix", "regex")
NO_WORKLOAD = ""
VARIABLE: dict[str, Any] = {"type": "string", "pattern": r"\$\{"}
"""What an editor lets pass wherever a string of some form stands: its value is known to `load` only."""


def _shape(*forms: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema(forms[0] if len(forms) == 1 else {"anyOf": list(forms)})


def _text(value: str) -> str:
    if not value:
        raise values.wrong("expected a string that is not empty")
    return value


def _strings(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list):
        return tuple(value)
    raise values.unexpected("a string or an array of strings", value)


def _scalar(value: Any) -> str:
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case datetime() | date() | time():
            return value.isoformat()
    raise values.unexpected("a string, a number, true or false", value)


def _variable_name(name: str) -> str:
    if not name or "=" in name or "\0" in name:
        raise values.wrong(f"{quoted(name)} can't be the name of a variable")
    return name


def _command(value: Any, items: Callable[[Any], Any]) -> Command:
    if isinstance(value, str):
        return values.command_line(value)
    if isinstance(value, list):
        return values.command_words(items(tuple(value)))
    raise values.unexpected("a command: a string or an array of strings", value)


def _shell(value: Any) -> Any:
    if isinstance(value, str) and value.strip():
        words = value.split()
        if len(words) > 1:
            raise values.wrong(
                f"expected the name or path of a shell, not {quoted(value)}", f"write its words as an array: {words}"
            )
        return (value, "-c")
    if isinstance(value, list):
        if len(value) < 2 or not str(value[-1]).startswith(("-", "/")):
            raise values.wrong("expected words that end with what makes the shell take a command", 'add "-c"')
        return tuple(value)
    raise values.unexpected('a shell such as "bash", or an array of words', value)


def _ports(value: Any) -> Any:
    if isinstance(value, dict):
        return value
    if isinstance(value, int | str) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, list):
        # A port without a name is named by its number; `locate` finds the element by what it says.
        return {(describe(p) if isinstance(p, bool | list | dict) else str(p)): p for p in value}
    raise values.unexpected("a port, an array of ports or a table of names and ports", value)


def depends_on(value: Any) -> Any:
    """A name, names, or a table of these and conditions, or of tables with a condition."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list):
        # What is not a name keeps its index as the key, and is then refused there.
        return {(d if isinstance(d, str) else i): {"condition": "ready"} for i, d in enumerate(value)}
    if isinstance(value, dict):
        return {name: each if isinstance(each, dict) else {"condition": each} for name, each in value.items()}
    raise values.unexpected('a service, an array of services or a table such as { store = "ready" }', value)


def short(key: str, expected: str) -> Callable[[Any], Any]:
    """A string stands for a table with this one key."""

    def widen(value: Any) -> Any:
        if isinstance(value, str):
            return {key: value}
        if isinstance(value, dict):
            return value
        raise values.unexpected(expected, value)

    return widen


def switch(value: Any, table: Callable[[Any], Any]) -> Any:
    """`false` switches a probe off: the field is then given, and None."""
    if value is False:
        return None
    if isinstance(value, dict):
        return table(value)
    raise values.unexpected('a table such as { http = "/healthz" }, or false', value)


def _endpoint(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(values.port(value))
    if isinstance(value, str) and value:
        return value
    raise values.unexpected("the name or number of a port", value)


def _volumes(value: Any) -> Any:
    if isinstance(value, str):
        return {ALL_VOLUMES: value}
    if isinstance(value, dict):
        return value
    raise values.unexpected('"copy", "mount", "ignore" or a table such as { data = "ignore" }', value)


def _matching(value: Any) -> Any:
    if isinstance(value, str):
        return {"exact": value}
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in MATCHES:
        return value
    raise values.unexpected('a string, or one of exact, prefix and regex, such as { prefix = "/v2" }', value)


def _taken_ports(value: Any) -> Any:
    if isinstance(value, int | str) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, list) and all(isinstance(each, int | str) and not isinstance(each, bool) for each in value):
        return {str(each): None for each in value}
    if isinstance(value, dict):
        return value
    raise values.unexpected("a Service's port, an array of them, or a table of these and local ports", value)


def routes(value: Any) -> Any:
    """Which requests: a word, a table, or an array of tables."""
    if value == "personal":
        return ()
    if value == "all":
        return ({},)
    if isinstance(value, dict):
        return (value,)
    if isinstance(value, list):
        return tuple(value)
    raise values.unexpected('"personal", "all", or a table such as { headers = { x-user = "ada" } }', value)


def tls(value: Any) -> Any:
    """A Secret's name, a table, or false."""
    if value is False or isinstance(value, dict):
        return value
    if isinstance(value, str) and value:
        return {"secret": value}
    raise values.unexpected('a Secret\'s name, a table such as { local = "plain" }, or false', value)


def _server_name(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(SERVER_NAME, value):
        return value.lower()
    raise values.unexpected('the name of a server, such as "api.example.com" or "*.example.com"', value)


def _share(value: Any) -> float:
    if isinstance(value, str) and value.endswith("%"):
        value = value[:-1].strip()
        value = float(value) if value.replace(".", "", 1).isdigit() else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 100:
        raise values.unexpected('a share such as "10%", above 0 and up to 100', value)
    return float(value)


def _workload(value: Any) -> str:
    if value is False:
        return NO_WORKLOAD
    if isinstance(value, str):
        return values.workload(value)
    raise values.unexpected('a workload such as "deployment/web", or false', value)


def _duration(least: int) -> BeforeValidator:
    return BeforeValidator(lambda value: values.duration(value, least))


_DURATION = {"type": "string", "pattern": values.DURATION_PATTERN}
_NOT_ZERO = {**_DURATION, "pattern": _DURATION["pattern"].replace("^", "^(?=.*[1-9])", 1)}
_SIGNAL_NAMES = f"(SIG)?({'|'.join(values.SIGNALS)})"
_NAMED_PORT = {"type": "string", "pattern": LABEL_PATTERN}
_PORT_NUMBER = {"type": "integer", "minimum": 1, "maximum": 65535}
_PORT_TEXT = {"type": "string", "pattern": r"^0*[1-9][0-9]{0,4}$"}
_PORT_FORMS = {"anyOf": [_PORT_NUMBER, _PORT_TEXT, VARIABLE]}
_NONEMPTY = {"type": "string", "minLength": 1}
_COMMAND = _shape({"type": "string", "pattern": r"\S"}, {"type": "array", "items": _NONEMPTY, "minItems": 1})
_STRINGS = _shape(_NONEMPTY, {"type": "array", "items": _NONEMPTY})
_LABELS = {"anyOf": [{"type": "string", "pattern": LABEL_PATTERN}, VARIABLE]}

# What the resolver reads is the type after validation; what pydantic reads is the way there.
if TYPE_CHECKING:
    Text: TypeAlias = str
    Span: TypeAlias = int
    Pause: TypeAlias = int
    Bytes: TypeAlias = int
    Strings: TypeAlias = tuple[str, ...]
    Groups: TypeAlias = tuple[str, ...]
    CommandLine: TypeAlias = Command
    ShellWords: TypeAlias = tuple[str, ...]
    Env: TypeAlias = dict[str, str]
    Ports: TypeAlias = dict[str, int]
    Signal: TypeAlias = int
    ScheduleText: TypeAlias = Schedule
    Interval: TypeAlias = int
    ReloadAction: TypeAlias = Reload
    Regex: TypeAlias = str
    HttpTarget: TypeAlias = str
    Endpoint: TypeAlias = str
    Volumes: TypeAlias = dict[str, str]
    Match: TypeAlias = dict[str, str]
    TakenPorts: TypeAlias = dict[str, int | None]
    Share: TypeAlias = float
    WorkloadName: TypeAlias = str
else:
    Text = Annotated[str, AfterValidator(_text), _shape(_NONEMPTY)]
    Span = Annotated[int, _duration(1 * MS), _shape(_NOT_ZERO, VARIABLE)]
    Pause = Annotated[int, _duration(0), _shape(_DURATION, VARIABLE)]
    Bytes = Annotated[
        int, BeforeValidator(values.size), _shape({"type": "string", "pattern": values.SIZE_PATTERN}, VARIABLE)
    ]
    Strings = Annotated[tuple[Text, ...], BeforeValidator(_strings), _STRINGS]
    Groups = Annotated[
        tuple[Annotated[Text, AfterValidator(lambda name: values.label(name, "group names"))], ...],
        BeforeValidator(_strings),
        _shape(_LABELS, {"type": "array", "items": _LABELS}),
    ]
    CommandLine = Annotated[tuple[str, ...], WrapValidator(_command), _COMMAND]
    ShellWords = Annotated[
        tuple[Text, ...],
        BeforeValidator(_shell),
        _shape(
            {"type": "string", "pattern": r"^\s*\S+\s*$"},
            {"type": "array", "items": _NONEMPTY, "minItems": 2},
            VARIABLE,
        ),
    ]
    Env = Annotated[
        dict[Annotated[str, AfterValidator(_variable_name)], Annotated[str, BeforeValidator(_scalar)]],
        _shape(
            {
                "type": "object",
                "propertyNames": {"pattern": "^[^=]+$"},
                "additionalProperties": {"type": ["string", "number", "boolean"]},
            }
        ),
    ]
    Ports = Annotated[
        dict[
            Annotated[str, AfterValidator(lambda name: values.label(name, "port names"))],
            Annotated[int, BeforeValidator(values.port)],
        ],
        BeforeValidator(_ports),
        _shape(
            *_PORT_FORMS["anyOf"],
            {"type": "array", "items": _PORT_FORMS},
            {
                "type": "object",
                "propertyNames": {"pattern": LABEL_PATTERN},
                "additionalProperties": _PORT_FORMS,
            },
        ),
    ]
    Signal = Annotated[
        str,
        AfterValidator(values.signal_number),
        _shape({"type": "string", "pattern": f"^{_SIGNAL_NAMES}$"}, VARIABLE),
    ]
    Interval = Annotated[int, _duration(1000 * MS), _shape(_NOT_ZERO, VARIABLE)]
    ScheduleText = Annotated[
        str,
        AfterValidator(values.schedule),
        _shape(
            {"type": "string", "pattern": rf"^\s*@?[Ee]very\s+{_DURATION['pattern'].strip('^$')}\s*$"},
            {"enum": [name.lower() for name in values.NICKNAMES]},
            {"type": "string", "pattern": r"^\s*[^\s@]+(\s+\S+){4}\s*$"},
            VARIABLE,
        ),
    ]
    ReloadAction = Annotated[
        str,
        AfterValidator(values.reload),
        _shape(
            {"enum": ["restart", "manual"]},
            {"type": "string", "pattern": rf"^\s*signal\s*:\s*{_SIGNAL_NAMES}\s*$"},
            {"type": "string", "pattern": r"^\s*exec\s*:\s*\S"},
            VARIABLE,
        ),
    ]
    HttpTarget = Annotated[
        Text, _shape({"type": "string", "pattern": r"^(/|:[0-9]{1,5}(/|$)|https?://[^/:])"}, VARIABLE)
    ]
    Regex = Annotated[Text, AfterValidator(values.regex)]
    Endpoint = Annotated[str, BeforeValidator(_endpoint), _shape(_NONEMPTY, _PORT_NUMBER)]
    Volumes = Annotated[
        dict[str, Literal["copy", "mount", "ignore"]],
        BeforeValidator(_volumes),
        _shape(
            {"enum": ["copy", "mount", "ignore"]},
            VARIABLE,
            {
                "type": "object",
                "additionalProperties": {"anyOf": [{"enum": ["copy", "mount", "ignore"]}, VARIABLE]},
            },
        ),
    ]
    Match = Annotated[
        dict[Literal["exact", "prefix", "regex"], Text],
        BeforeValidator(_matching),
        _shape(
            _NONEMPTY,
            {
                "type": "object",
                "properties": dict.fromkeys(MATCHES, _NONEMPTY),
                "additionalProperties": False,
                "minProperties": 1,
                "maxProperties": 1,
            },
        ),
    ]
    TakenPorts = Annotated[
        dict[str, Annotated[int, BeforeValidator(values.port)] | None],
        BeforeValidator(_taken_ports),
        _shape(
            _NONEMPTY,
            _PORT_NUMBER,
            {"type": "array", "items": {"anyOf": [_NONEMPTY, _PORT_NUMBER]}},
            {"type": "object", "additionalProperties": _PORT_FORMS},
        ),
    ]
    Share = Annotated[
        float,
        BeforeValidator(_share),
        _shape(
            {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
            {"type": "string", "pattern": r"^[0-9.]+ ?%$"},
            VARIABLE,
        ),
    ]
    WorkloadName = Annotated[str, BeforeValidator(_workload), _shape(_NONEMPTY, {"const": False}, VARIABLE)]

ModeName = Annotated[Literal["local", "remote", "off"], _shape({"enum": list(Mode)}, VARIABLE)]
PolicyName = Annotated[Literal["never", "on-failure", "always"], _shape({"enum": list(Restart)}, VARIABLE)]
AttachName = Annotated[
    Literal["ingest", "intercept", "replace", "wiretap"], _shape({"enum": list(AttachKind)}, VARIABLE)
]
MeshName = Annotated[Literal["out", "join"], _shape({"enum": ["out", "join"]}, VARIABLE)]
InsideName = Annotated[Literal["tls", "plain"], _shape({"enum": ["tls", "plain"]}, VARIABLE)]
if TYPE_CHECKING:
    ServerName: TypeAlias = str
else:
    ServerName = Annotated[
        str, BeforeValidator(_server_name), _shape({"type": "string", "pattern": f"^{SERVER_NAME}$"}, VARIABLE)
    ]
WayName = Annotated[Literal["service", "pods"], _shape({"enum": ["service", "pods"]}, VARIABLE)]
WatchModeName = Annotated[Literal["auto", "events", "poll"], _shape({"enum": list(WatchMode)}, VARIABLE)]
FailName = Annotated[Literal["open", "closed"], _shape({"enum": ["open", "closed"]}, VARIABLE)]
RemoteName = Annotated[Literal["kubernetes", "ssh", "sandbox"], _shape({"enum": list(RemoteKind)}, VARIABLE)]
LinkName = Annotated[Literal["auto", "agent", "portforward"], _shape({"enum": list(LinkWay)}, VARIABLE)]
NetworkName = Annotated[Literal["namespace", "ports", "hosts"], _shape({"enum": list(Network)}, VARIABLE)]
StopTarget = Annotated[Literal["main", "group"], _shape({"enum": ["main", "group"]}, VARIABLE)]
ConditionName = Literal["started", "ready", "completed"]
_CONDITION = {"anyOf": [{"enum": ["started", "ready", "completed"]}, VARIABLE]}
DEPENDENCIES_SHAPE = _shape(
    _NONEMPTY,
    {"type": "array", "items": _NONEMPTY},
    {
        "type": "object",
        "additionalProperties": {
            "anyOf": [
                *_CONDITION["anyOf"],
                {
                    "type": "object",
                    "properties": {"condition": _CONDITION, "restart": {"type": "boolean"}},
                    "additionalProperties": False,
                },
            ]
        },
    },
)

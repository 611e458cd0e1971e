"""The small languages inside string values: durations, commands, signals, reload actions, patterns.

Each function takes what stands in the file and returns what it means, or raises a `PydanticCustomError`
that says what was expected; `explain` turns that into a problem at the value's position.
"""

from __future__ import annotations

import posixpath
import re
import shlex
import signal
from datetime import datetime
from typing import Any

import durationpy
from pydantic_core import PydanticCustomError

from devloop.config.label import LABEL
from devloop.config.model import MS, Command, Reload, ReloadKind, Schedule
from devloop.config.shell import POSIX, SH, TAKES_ITS_PLACE, needs_shell, simple, with_exec
from devloop.config.words import describe, quoted, suggestion
from devloop.config.workload import read
from devloop.errors import UsageError

DURATION_PATTERN = (
    r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))*$"
)
"""Go's time.ParseDuration without a sign. durationpy alone would also take days, months and years."""

SIGNALS = (
    "HUP",
    "INT",
    "QUIT",
    "ABRT",
    "KILL",
    "USR1",
    "USR2",
    "ALRM",
    "TERM",
    "CONT",
    "STOP",
    "TSTP",
    "WINCH",
)
"""The signals that a service can be sent, by their POSIX names."""

_DURATION = re.compile(DURATION_PATTERN)
_NUMBER = re.compile(r"^[0-9.]+$")


def wrong(what: str, hint: str = "") -> PydanticCustomError:
    """The error for a value that can't be used. `what` is the whole sentence."""
    return PydanticCustomError("devloop", "{what}", {"what": what, "hint": hint})


def unexpected(expected: str, value: object, hint: str = "") -> PydanticCustomError:
    """The same, as `expected …, not …`."""
    return wrong(f"expected {expected}, not {describe(value)}", hint)


def workload(value: str) -> str:
    """A workload as kubectl writes it, by its kind's own name: "deploy/web" is "deployment/web"."""
    try:
        return str(read(value))
    except UsageError as error:
        raise wrong(error.what, error.hint or "") from None


def duration(value: Any, least: int) -> int:
    """Nanoseconds, to the microsecond. `least` is the smallest that makes sense, in nanoseconds."""
    expected = 'a duration such as "250ms" or "1m30s"'
    if (isinstance(value, int | float) and not isinstance(value, bool)) or (
        isinstance(value, str) and _NUMBER.fullmatch(value)
    ):
        hint = f'add the unit: "{value}ms" is milliseconds, "{value}s" seconds'
        raise unexpected(expected, value, hint)
    if not isinstance(value, str):
        raise unexpected(expected, value)
    if not _DURATION.fullmatch(value):
        if value.startswith("-") and _DURATION.fullmatch(value[1:]):
            raise unexpected("a duration that is not negative", value)
        raise unexpected(expected, value, "units are h, m, s, ms, us and ns, with no space before them")
    try:
        nanoseconds = round(durationpy.from_str(value).total_seconds() * 1_000_000) * 1_000
    except durationpy.DurationError:
        raise unexpected("a duration of at most some years", value) from None
    if nanoseconds < least:
        raise unexpected(f"a duration of at least {least // MS} ms", value)
    return nanoseconds


SIZE_PATTERN = r"^(0|([0-9]{1,15}(\.[0-9]{1,9})?)(([kKmMgGtT])([iI]?))?[bB])$"
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def size(value: Any) -> int:
    """Bytes. "1MB" is a million, "1MiB" 2**20 (IEC 80000-13)."""
    expected = 'a size such as "200MB" or "1GiB"'
    if isinstance(value, int) and not isinstance(value, bool):
        raise unexpected(expected, value, f'add the unit: "{value}MB" is megabytes')
    if not isinstance(value, str):
        raise unexpected(expected, value)
    found = re.fullmatch(SIZE_PATTERN, value)
    if found is None:
        raise unexpected(expected, value, "units are B, kB, MB, GB, and KiB, MiB, GiB, with no space before them")
    factor: int = (1024 if found[6] else 1000) ** _UNITS[(found[5] or "").lower()]
    return round(float(found[2] or 0) * factor)


NICKNAMES = {
    "@YEARLY": "0 0 1 1 *",
    "@ANNUALLY": "0 0 1 1 *",
    "@MONTHLY": "0 0 1 * *",
    "@WEEKLY": "0 0 * * 0",
    "@DAILY": "0 0 * * *",
    "@MIDNIGHT": "0 0 * * *",
    "@HOURLY": "0 * * * *",
}
"""cron(8)'s, of Debian."""


def schedule(text: str) -> Schedule:
    """`every 10m`, five fields as in cron(5), or one of cron's nicknames."""
    expected = 'a schedule such as "every 10m", "*/5 * * * *" or "@hourly"'
    words = text.split()
    if words and words[0].lower() in ("every", "@every"):
        if len(words) != 2:
            raise unexpected(expected, text)
        return Schedule(every=duration(words[1], 1000 * MS))
    cron = NICKNAMES.get(text.strip().upper(), " ".join(words).upper())
    if cron == "@REBOOT":
        raise unexpected(expected, text, "a task without a schedule runs when devloop starts")
    if cron.startswith("@"):
        raise unexpected(expected, text, suggestion(text.lower(), [n.lower() for n in NICKNAMES], kind="nicknames"))
    if len(cron.split()) != 5:
        hint = "cron's fields are minute, hour, day of the month, month, day of the week"
        raise unexpected(expected, text, f'write "every {text}"' if _DURATION.fullmatch(text) else hint)
    from cronsim import CronSim, CronSimError

    try:
        next(CronSim(cron, datetime(2000, 1, 1)))
    except CronSimError as error:
        raise wrong(f"{quoted(text)} is no schedule: {str(error).lower()}", "see cron(5)") from None
    except StopIteration:
        raise wrong(f"{quoted(text)} is no schedule: that day never comes") from None
    return Schedule(cron=cron)


def label(name: str, what: str) -> str:
    """The name if it is a DNS label; `what` is the plural, such as "service names"."""
    if LABEL.fullmatch(name):
        return name
    fixed = re.sub(r"-{2,}", "-", re.sub(r"[^a-z0-9-]", "-", name.lower())).strip("-")[:63].strip("-")
    rule = f"{what} are made of a-z, 0-9 and - (at most 63, no - at either end), as in Kubernetes"
    hint = f"{quoted(fixed)} would do" if fixed and fixed != name else ""
    raise wrong(f"{rule}; {quoted(name)} is not", hint)


def port(value: Any) -> int:
    """A TCP port. Digits in a string count too: that is what `"${PORT}"` becomes."""
    number = int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value) else value
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= 65535:
        raise unexpected("a port from 1 to 65535", value)
    return number


def signal_number(name: str) -> int:
    """The number of `TERM` or `SIGTERM`."""
    bare = name.removeprefix("SIG")
    if bare not in SIGNALS:
        upper = name.upper().removeprefix("SIG")
        raise wrong(f"there is no signal {quoted(name)}", suggestion(upper, SIGNALS, kind="signals"))
    return int(getattr(signal, f"SIG{bare}"))


def regex(text: str) -> str:
    """The text if it is a regular expression of Python's."""
    try:
        re.compile(text)
    except re.error as error:
        at = f" at character {error.pos + 1}" if error.pos is not None else ""
        raise wrong(f"not a regular expression: {error.msg}{at}", "a \\ before ( [ . * + ? takes it as it is") from None
    return text


def reload(text: str) -> Reload:
    """`restart`, `manual`, `signal:NAME` or `exec: COMMAND`."""
    kind, colon, rest = text.partition(":")
    rest = rest.strip()
    match kind.strip():
        case "restart" if not colon:
            return Reload(ReloadKind.RESTART)
        case "manual" if not colon:
            return Reload(ReloadKind.MANUAL)
        case "signal" if rest:
            return Reload(ReloadKind.SIGNAL, signal=signal_number(rest))
        case "exec" if rest:
            return Reload(ReloadKind.EXEC, command=command_line(rest))
        case "signal" | "exec" as missing:
            what = 'a signal, as in "signal:HUP"' if missing == "signal" else 'a command, as in "exec: make reload"'
            raise unexpected(what, text)
    kinds = ("restart", "manual", "signal:HUP", "exec: COMMAND")
    hint = suggestion(text, ("restart", "manual"), kind="forms") if not colon else ""
    raise unexpected(", ".join(quoted(k) for k in kinds[:-1]) + f" or {quoted(kinds[-1])}", text, hint)


def command_line(text: str, shell: tuple[str, ...] = SH) -> Command:
    """A command as it is typed: split into words if no shell is needed, else for `shell`, the words before it."""
    line = text.strip()
    if not line:
        raise wrong("expected a command, not an empty string")
    name = shell[0].rpartition("/")[2]
    if name not in POSIX:
        return Command((*shell, line), line, typed=True)
    if needs_shell(line):
        if found := simple(line):
            return Command(found.words, line, typed=True, folder=posixpath.join("", *found.folders), env=found.env)
        return Command((*shell, line if name in TAKES_ITS_PLACE else with_exec(line)), line, typed=True)
    try:
        # shlex reads a character at a time, which 100 services notice.
        words = tuple(shlex.split(line) if any(c in line for c in "\"'\\") else line.split())
    except ValueError as error:
        raise wrong(
            f"not a command line: {str(error).lower()}", "close the quote, or give the words as an array"
        ) from None
    if not words or not words[0]:
        raise wrong("expected a command, not an empty string")
    return Command(words, line, typed=True)


def command_words(words: tuple[str, ...]) -> Command:
    """A command given as its words; no shell looks at them."""
    if not words or not words[0]:
        raise wrong("expected a command: the first word is the program")
    return Command(words, shlex.join(words))

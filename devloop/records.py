"""What a log line says of itself: its level, and the parts of a JSON or logfmt line.

A level is taken from where loggers put it and from nowhere else: a JSON key, a logfmt pair, or the head of the line
(after times, names in brackets and numbers). The word "error" in a sentence is no level. Nothing here is called while
lines are collected: only for lines that somebody reads.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from devloop.escapes import plain

LEVELS = ("trace", "debug", "info", "warning", "error", "fatal")
"""From the least to the most."""

_SPELLINGS = {
    "trace": "trace trc trce verbose vrb silly finest finer",
    "debug": "debug debu dbg dbug fine",
    "info": "info inf information informational notice log",
    "warning": "warning warn wrn",
    "error": "error err erro fail severe failure",
    "fatal": "fatal ftl critical crit panic pnc pan dpanic emerg emergency alert fata",
}
_BY_WORD = {word: level for level, spelled in _SPELLINGS.items() for word in spelled.split()}
_LETTERS = {"T": "trace", "V": "trace", "D": "debug", "I": "info", "N": "info", "W": "warning", "E": "error"}
_LETTERS |= {"F": "fatal", "C": "fatal", "A": "fatal"}
_LONGEST = 16 * 1024
"""A longer line is not looked into, in characters."""


@dataclass(frozen=True, slots=True)
class Record:
    """A structured line, taken apart."""

    level: str
    """One of LEVELS, or empty if it says none."""
    time: str
    """HH:MM:SS.mmm as the line has it; empty if it has none."""
    message: str
    fields: Mapping[str, str]
    """Whatever else it says, in its order."""


def level_of(text: str) -> str:
    """The level that a line says it has: one of LEVELS, or empty."""
    if len(text) > _LONGEST:
        return ""
    text = plain(text).strip()
    if text[:1] == "{":
        record = _json(text)
        return record.level if record is not None else ""
    return _at_head(text) or _in_pairs(text)


def record_of(text: str) -> Record | None:
    """The parts of a JSON line (an object that has a message or a level); None for any other line."""
    if len(text) > _LONGEST:
        return None
    text = plain(text).strip()
    return _json(text) if text[:1] == "{" and text[-1:] == "}" else None


def at_least(level: str) -> frozenset[str]:
    """This level and those above. Raises KeyError for a word that is no level."""
    return frozenset(LEVELS[LEVELS.index(_BY_WORD[level.lower()]) :])


class LevelFilter:
    """Which lines to show. A line without a level belongs to the one before it, as a traceback does.

    devloop's own lines always pass.
    """

    def __init__(self, least: str) -> None:
        self._wanted = at_least(least)
        self._open: dict[tuple[str, str], bool] = {}

    def passes(self, service: str, stream: str, text: str) -> bool:
        """Whether this line, which comes after those that were asked for before, is shown."""
        if stream == "devloop":
            return True
        level = level_of(text)
        if level:
            self._open[service, stream] = level in self._wanted
        return self._open.get((service, stream), False)


# Lines of text: what may stand before a level is walked over, token by token; the first word that is none of it ends.

_UPPER = (
    "TRACE|DEBUG|INFO|NOTICE|WARNING|WARN|ERROR|FATAL|CRITICAL|SEVERE|PANIC|DPANIC|VERBOSE|FINEST|FINER|FINE"
    "|TRC|DBG|INF|WRN|ERR|FTL|PNC|VRB|CRIT|ALERT|EMERG|DEBU|ERRO|FATA|LOG"
)
_LOWER = "trace|debug|info|notice|warning|warn|error|fatal|critical|panic|trce|dbug|fail|crit|verbose|silly"
_KLOG = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ ")
_REDIS = re.compile(r"\d+:[MSCX] \d\d [A-Z][a-z]{2} \d{4} [\d:.]+ ([.*#-]) ")
_REDIS_LEVELS = {".": "debug", "-": "debug", "*": "info", "#": "warning"}
_NPM = re.compile(r"npm (ERR!|error|WARN|warn|notice)(?= )")
_AT_FIRST = re.compile(rf"({_LOWER}|{_LOWER.title()})(?:\[\w+\])?:(?=\s|$)")
_LEVEL = re.compile(rf"({_UPPER})(?=[\s:|\],/\[!-]|$)")
_BRACKETED = re.compile(r"[\[<(]([^\[\]<>()]{0,100})[\]>)]")
_BEFORE = re.compile(
    r"[|:-]+"  # dividers
    r"|\d[\d:.,/T+-]*(?:Z|[AP]M|ms|s)?(?=[\s|\]\[:-]|$)|[+-]\d\d:?\d\d(?=\s)"  # a time, a date, a process, a zone
    r"|(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun|Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec|AM|PM|UTC|GMT|CES?T)(?=[\s,:]),?"
    r"|[DIWEFAU],(?= )"  # Ruby's
)
_DOTTED = re.compile(r"[\w$@-]+(?:[.:/][\w$@<>*-]+)+")
_NAME = re.compile(r"[\w.$-]+(?= [|-] )")
_WORD = re.compile(r"[\w.$-]+(?=\s)")
_MILLISECONDS = re.compile(r"\d\d:\d\d:\d\d,\d{3}$")
_TOKENS = 12
"""So many may stand before a level."""


def _at_head(text: str) -> str:
    if found := _KLOG.match(text):
        return _LETTERS[found[1]]
    if found := _REDIS.match(text):
        return _REDIS_LEVELS[found[1]]
    if found := _NPM.match(text) or _AT_FIRST.match(text):
        return _BY_WORD[found[1].rstrip("!").lower()]
    at, asked = 0, False
    for _ in range(_TOKENS):
        at += len(text) - at - len(text[at:].lstrip()) if text[at : at + 1].isspace() else 0
        if found := _LEVEL.match(text, at):
            return _BY_WORD[found[1].lower()]
        if found := _BRACKETED.match(text, at):
            if level := _in_brackets(found[1].strip()):
                return level
        elif found := _BEFORE.match(text, at):
            # Python's way to write a time is followed by the logger's name.
            asked = asked or bool(_MILLISECONDS.search(found[0]))
        elif found := _DOTTED.match(text, at):
            name, _, last = found[0].rpartition(".")  # PHP's: channel.LEVEL
            if name and last in _UPPERS and text[found.end() :][:1] == ":":
                return _BY_WORD[last.lower()]
        elif not (found := _NAME.match(text, at)):
            if not asked or not (found := _WORD.match(text, at)):
                return ""
            asked = False
        at = found.end()
    return ""


_UPPERS = frozenset(_UPPER.split("|"))


def _in_brackets(text: str) -> str:
    if text.lower() in _BY_WORD:
        return _BY_WORD[text.lower()]
    words = re.split(r"[\s:/|,]+", text)
    for index, word in enumerate(words):
        if word in _UPPERS and all(any(map(str.isdigit, before)) for before in words[:index]):
            return _BY_WORD[word.lower()]
    last = words[-1].lower()
    return _BY_WORD[last] if ":" in text and " " not in text and last in _BY_WORD and len(words) == 2 else ""


# logfmt: pairs from the line's beginning on.

_PAIR = re.compile(r'([A-Za-z_][\w.@/-]*)=("(?:[^"\\]|\\.)*"|[^\s"]*)(?=\s|$)\s*')
_LEVEL_KEYS = ("level", "lvl", "severity", "log.level", "levelname", "loglevel", "log_level")


def _pairs(text: str) -> dict[str, str]:
    """The pairs at the beginning of a line; none if it is not all pairs."""
    found: dict[str, str] = {}
    at = 0
    while match := _PAIR.match(text, at):
        found.setdefault(match[1], match[2])
        at = match.end()
    return found if at == len(text) else {}


def _in_pairs(text: str) -> str:
    if not _PAIR.match(text):
        return ""
    pairs = _pairs(text)
    value = next((pairs[key] for key in _LEVEL_KEYS if key in pairs), "")
    return _BY_WORD.get(value.strip('"').lower(), "") if len(pairs) > 1 else ""


# JSON

_NUMBERS = {10: "trace", 20: "debug", 30: "info", 40: "warning", 50: "error", 60: "fatal"}
"""pino's and bunyan's."""
_PYTHON = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "fatal"}
_SYSLOG = ("fatal", "fatal", "fatal", "error", "warning", "info", "info", "debug")
"""RFC 5424, 6.2.1; GELF has these."""
_JSON_LEVELS = (
    "level", "severity", "lvl", "log.level", "levelname", "level_name", "loglevel", "log_level", "LogLevel", "Level",
    "LEVEL", "severityText", "severity_text", "SeverityText", "@l", "levelno", "severityNumber", "s",
)  # fmt: skip
_JSON_MESSAGES = (
    "message", "msg", "event", "Message", "MESSAGE", "short_message", "@m", "@mt", "body", "Body", "text", "log",
    "error", "err",
)  # fmt: skip
_JSON_TIMES = (
    "time", "timestamp", "ts", "@timestamp", "@t", "Timestamp", "t", "asctime", "datetime", "date", "instant",
    "timeMillis",
)  # fmt: skip


def _json(text: str) -> Record | None:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    inner = data.get("record")
    if isinstance(inner, dict) and isinstance(inner.get("level"), dict):  # loguru
        data = {**inner, "level": inner["level"].get("name")}
        data.pop("elapsed", None)
    fields = data.get("fields")
    if isinstance(fields, dict) and "message" in fields and "message" not in data:  # Rust's tracing
        data = {**{key: value for key, value in data.items() if key != "fields"}, **fields}
    if isinstance(data.get("log"), dict) and isinstance(data["log"].get("level"), str):  # ECS, nested
        data = {**data, "log.level": data["log"]["level"]}
    level_key = next((key for key in _JSON_LEVELS if key in data and _json_level(key, data)), "")
    message_key = next((key for key in _JSON_MESSAGES if isinstance(data.get(key), str)), "")
    if not level_key and not message_key:
        return None
    time_key = next((key for key in _JSON_TIMES if key in data), "")
    taken = {level_key, message_key, time_key}
    if isinstance(data.get("log"), dict):
        taken.add("log.level")
    rest = {key: _shown(value) for key, value in data.items() if key not in taken}
    level = _json_level(level_key, data) if level_key else ""
    if not level and "@t" in data and ("@m" in data or "@mt" in data):
        level = "info"  # Serilog's compact form leaves it out
    return Record(level, _clock(data.get(time_key)), str(data.get(message_key, "")), rest)


def _json_level(key: str, data: Mapping[str, Any]) -> str:
    value = data[key]
    if isinstance(value, str):
        if key == "s":  # MongoDB's
            return _LETTERS.get(value[:1], "") if "msg" in data and "c" in data else ""
        word = value.strip().lower()
        return _BY_WORD.get(word, "") or (
            _json_level(key, {**data, key: int(word)}) if word.isdecimal() and len(word) < 4 else ""
        )
    if isinstance(value, bool) or not isinstance(value, int):
        return ""
    if key == "severityNumber":  # OpenTelemetry: 1 to 24, four for each
        return LEVELS[(value - 1) // 4] if 1 <= value <= 24 else ""
    if key == "levelno":
        return _PYTHON.get(value, "")
    if "short_message" in data:
        return _SYSLOG[value] if 0 <= value < 8 else ""
    return _NUMBERS.get(value, "")


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _clock(value: object) -> str:
    """The time of day, as the line has it; a number is seconds, milliseconds, micro- or nanoseconds, shown here."""
    if isinstance(value, Mapping):
        # log4j's, MongoDB's, loguru's.
        value = next((value[key] for key in ("epochSecond", "$date", "repr") if key in value), "")
    if isinstance(value, str):
        found = re.search(r"\d\d:\d\d:\d\d(?:[.,]\d{1,3})?", value)
        return found[0].replace(",", ".") if found else ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    try:
        seconds = float(value)
        while seconds > 1e11 and math.isfinite(seconds):  # JSON has 1e999, which is infinite here
            seconds /= 1000
        return datetime.fromtimestamp(seconds).strftime("%H:%M:%S.%f")[:-3] if seconds > 1e8 else ""
    except (OverflowError, ValueError, OSError):
        return ""

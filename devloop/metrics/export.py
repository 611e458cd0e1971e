"""Loops for other programs: Chrome's trace viewer and Perfetto, OpenTelemetry collectors, spreadsheets.

Chrome: "Trace Event Format", JSON object form. https://ui.perfetto.dev opens it.
OTLP:   opentelemetry-proto's ExportTraceServiceRequest in its JSON encoding: trace and span ids are hex,
        64-bit integers are strings, enums numbers, keys lowerCamelCase. A collector takes it at /v1/traces.
CSV:    RFC 4180, a header line, times in milliseconds.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from devloop import __version__
from devloop.metrics.stats import phase_order, phase_times
from devloop.protocol import Loop, Outcome

_SPAN_KIND_INTERNAL = 1
_STATUS = {Outcome.OK: 1, Outcome.FAILED: 2}  # STATUS_CODE_OK, _ERROR; superseded is neither: unset


def chrome_trace(loops: Sequence[Loop], project: str) -> dict[str, Any]:
    """Services as threads, loops as slices, their phases as slices within, `served` as an instant.

    Times (`ts`, `dur`) are microseconds since the first loop, whose Unix time is in `otherData`: as absolute
    times they would not fit a double to the nanosecond. Loops of a service that overlap, as a superseded one
    and its successor may, get a thread each: slices of one thread must nest.
    """
    ordered = sorted(loops, key=lambda loop: (loop.started_at, loop.id))
    epoch = ordered[0].started_at if ordered else 0
    names = sorted({loop.service for loop in ordered})
    lanes: dict[str, list[int]] = {name: [] for name in names}  # service → where each of its threads ends
    placed = [(loop, _lane(lanes[loop.service], loop)) for loop in ordered]

    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "tid": 0, "name": "process_name", "args": {"name": f"devloop {project}"}}
    ]
    threads: dict[tuple[str, int], int] = {}
    for name in names:
        for lane in range(len(lanes[name])):
            tid = threads[name, lane] = len(threads) + 1
            title = name if lane == 0 else f"{name} ({lane + 1})"
            common = {"ph": "M", "pid": 1, "tid": tid}
            events.append({**common, "name": "thread_name", "args": {"name": title}})
            events.append({**common, "name": "thread_sort_index", "args": {"sort_index": tid}})
    for loop, lane in placed:
        place = {"ph": "X", "pid": 1, "tid": threads[loop.service, lane]}
        begin = loop.started_at - epoch
        args = {
            "id": loop.id,
            "cause": str(loop.cause),
            "outcome": str(loop.outcome),
            "files": _files(loop),
            "detail": loop.detail,
        }
        whole = _slice(begin, begin + loop.waited)
        events.append({**place, "name": _title(loop), "cat": "loop", **whole, "args": args})
        for phase, since, until in _phases(loop):
            events.append({**place, "name": phase, "cat": "phase", **_slice(begin + since, begin + until)})
        if "served" in loop.stamps:
            at = (begin + loop.stamps["served"]) / 1000
            events.append({**place, "ph": "i", "s": "t", "name": "served", "cat": "phase", "ts": at})
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"started_at_unix_ns": str(epoch)}}


def _lane(ends: list[int], loop: Loop) -> int:
    """The first thread that is free when the loop begins; `ends` is brought up to date."""
    end = loop.started_at + loop.waited
    for lane, busy_until in enumerate(ends):
        if busy_until <= loop.started_at:
            ends[lane] = end
            return lane
    ends.append(end)
    return len(ends) - 1


def _slice(begin: int, end: int) -> dict[str, float]:
    return {"ts": begin / 1000, "dur": (end - begin) / 1000}


def _title(loop: Loop) -> str:
    if not loop.files:
        return str(loop.cause)
    more = f" and {len(loop.files) - 1} more" if len(loop.files) > 1 else ""
    return f"{loop.cause}: {_files(loop)[0]}{more}"


def _phases(loop: Loop) -> list[tuple[str, int, int]]:
    """The spans within the loop's time: all but `served`, which comes when somebody asks."""
    end_of_loop = loop.waited
    return [span for span in loop.spans() if span[2] <= end_of_loop and span[0] != "served"]


def _files(loop: Loop) -> list[str]:
    """Their names as proper Unicode: bytes that were no UTF-8 stand in a `str` as surrogates."""
    return [name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in loop.files]


def otlp(loops: Sequence[Loop], project: str) -> dict[str, Any]:
    """One trace a loop: a root span over its phases with `served` as an event, a resource a service.

    Ids come from the project, the service and the loop, so that a second export of the same loop gives the
    same trace.
    """
    by_service: dict[str, list[Loop]] = {}
    for loop in loops:
        by_service.setdefault(loop.service, []).append(loop)
    scope = {"name": "devloop", "version": __version__}
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes({"service.name": service, "service.namespace": project})},
                "scopeSpans": [{"scope": scope, "spans": [s for loop in own for s in _spans(loop, project)]}],
            }
            for service, own in sorted(by_service.items())
        ]
    }


def _spans(loop: Loop, project: str) -> list[dict[str, Any]]:
    seed = f"{project}\0{loop.service}\0{loop.id}\0{loop.started_at}"
    trace = _digest(seed, 16)
    root = _digest(f"{seed}\0root", 8)
    status: dict[str, Any] = {"code": _STATUS[loop.outcome]} if loop.outcome in _STATUS else {}
    if loop.detail and loop.outcome is Outcome.FAILED:
        status["message"] = loop.detail
    attributes: dict[str, str | int | list[str]] = {
        "devloop.loop.id": loop.id,
        "devloop.loop.cause": str(loop.cause),
        "devloop.loop.outcome": str(loop.outcome),
        "devloop.loop.files": _files(loop),
    }
    common = {"traceId": trace, "kind": _SPAN_KIND_INTERNAL}
    spans: list[dict[str, Any]] = [
        {
            **common,
            "spanId": root,
            "name": f"loop {loop.cause}",
            **_times(loop.started_at, loop.started_at + loop.waited),
            "attributes": _attributes(attributes),
            "events": [
                {"timeUnixNano": str(loop.started_at + at), "name": phase}
                for phase, at in loop.stamps.items()
                if phase == "served"
            ],
            "status": status,
        }
    ]
    for phase, begin, end in _phases(loop):
        spans.append(
            {
                **common,
                "spanId": _digest(f"{seed}\0{phase}", 8),
                "parentSpanId": root,
                "name": phase,
                **_times(loop.started_at + begin, loop.started_at + end),
            }
        )
    return spans


def _digest(text: str, size: int) -> str:
    return hashlib.sha256(text.encode()).digest()[:size].hex()


def _times(begin: int, end: int) -> dict[str, str]:
    return {"startTimeUnixNano": str(begin), "endTimeUnixNano": str(end)}


def _attributes(values: Mapping[str, str | int | list[str]]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: str | int | list[str]) -> dict[str, Any]:
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(each) for each in value]}}
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}


def csv_text(loops: Sequence[Loop]) -> str:
    """A line a loop, oldest first. `total_ms` goes to `ready`, PHASE_ms is what that phase took."""
    phases = sorted({phase for loop in loops for phase in phase_times(loop)}, key=phase_order)
    out = io.StringIO()
    writer = csv.writer(out)
    head = ["id", "service", "cause", "outcome", "started_at", "total_ms"]
    writer.writerow([*head, *(f"{phase}_ms" for phase in phases), "files", "detail"])
    for loop in sorted(loops, key=lambda loop: (loop.started_at, loop.id)):
        took = phase_times(loop)
        writer.writerow(
            [
                loop.id,
                loop.service,
                loop.cause,
                loop.outcome,
                _iso(loop.started_at),
                _ms(loop.waited),
                *(_ms(took[phase]) if phase in took else "" for phase in phases),
                " ".join(_files(loop)),
                loop.detail,
            ]
        )
    return out.getvalue()


def _ms(ns: int) -> str:
    return f"{ns / 1_000_000:.3f}"


def _iso(unix_ns: int) -> str:
    seconds, rest = divmod(unix_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1000:06}Z"


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":")) + "\n"


FORMATS: Mapping[str, Callable[[Sequence[Loop], str], str]] = {
    "chrome": lambda loops, project: _json(chrome_trace(loops, project)),
    "otlp": lambda loops, project: _json(otlp(loops, project)),
    "csv": lambda loops, _: csv_text(loops),
}
"""What `devloop export FORMAT` writes: format → text for these loops of this project."""

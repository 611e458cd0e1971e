from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from devloop.metrics.export import FORMATS, chrome_trace, csv_text, otlp
from devloop.protocol import Loop, Outcome

from .conftest import MS, NOW

Make = Callable[..., Loop]

# Field names and JSON types of opentelemetry-proto's trace.proto, resource.proto and common.proto as its JSON
# encoding has them (https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding).
OTLP: dict[str, dict[str, str]] = {
    "request": {"resourceSpans": "[ResourceSpans]"},
    "ResourceSpans": {"resource": "Resource", "scopeSpans": "[ScopeSpans]", "schemaUrl": "string"},
    "Resource": {"attributes": "[KeyValue]", "droppedAttributesCount": "number"},
    "ScopeSpans": {"scope": "Scope", "spans": "[Span]", "schemaUrl": "string"},
    "Scope": {"name": "string", "version": "string", "attributes": "[KeyValue]"},
    "Span": {
        "traceId": "hex32",
        "spanId": "hex16",
        "parentSpanId": "hex16",
        "traceState": "string",
        "flags": "number",
        "name": "string",
        "kind": "number",
        "startTimeUnixNano": "uint64",
        "endTimeUnixNano": "uint64",
        "attributes": "[KeyValue]",
        "events": "[Event]",
        "status": "Status",
    },
    "Event": {"timeUnixNano": "uint64", "name": "string", "attributes": "[KeyValue]"},
    "Status": {"code": "number", "message": "string"},
    "KeyValue": {"key": "string", "value": "AnyValue"},
    "AnyValue": {"stringValue": "string", "intValue": "uint64", "arrayValue": "ArrayValue"},
    "ArrayValue": {"values": "[AnyValue]"},
}


def check_otlp(kind: str, value: Any) -> None:
    if kind.startswith("["):
        assert isinstance(value, list)
        for each in value:
            check_otlp(kind.strip("[]"), each)
    elif kind == "string":
        assert isinstance(value, str)
    elif kind == "number":
        assert isinstance(value, int)
    elif kind == "uint64":
        assert isinstance(value, str)
        assert value.isdecimal()
    elif kind.startswith("hex"):
        assert re.fullmatch(rf"[0-9a-f]{{{kind[3:]}}}", value)
        assert set(value) != {"0"}
    else:
        assert set(value) <= set(OTLP[kind]), kind
        for key, each in value.items():
            check_otlp(OTLP[kind][key], each)


@pytest.fixture
def loops(loop: Make) -> list[Loop]:
    served = loop(100, id=1)
    served.stamps["served"] = 5_000 * MS
    return [
        served,
        loop(200, id=2, service="web", started_at=NOW, files=("a.py", "b.py")),
        loop(50, id=3, started_at=NOW + MS, outcome=Outcome.FAILED, detail="exit code 1"),
        loop(60, id=4, started_at=NOW + 20 * MS, outcome=Outcome.SUPERSEDED, files=("bad \udcff.py",)),
    ]


def test_otlp_has_the_fields_of_the_protocol_and_no_others(loops: list[Loop]) -> None:
    check_otlp("request", json.loads(FORMATS["otlp"](loops, "shop")))


def test_otlp_has_a_root_span_over_its_phases(loops: list[Loop]) -> None:
    data = otlp(loops[:1], "shop")
    (resource,) = data["resourceSpans"]
    attributes = {each["key"]: each["value"] for each in resource["resource"]["attributes"]}
    assert attributes["service.name"] == {"stringValue": "api"}
    root, *children = resource["scopeSpans"][0]["spans"]
    assert "parentSpanId" not in root
    assert [child["name"] for child in children] == ["detected", "stopped", "settled", "spawned", "ready"]
    assert {child["parentSpanId"] for child in children} == {root["spanId"]}
    assert {child["traceId"] for child in children} == {root["traceId"]}
    assert len({span["spanId"] for span in (root, *children)}) == 6
    assert int(root["endTimeUnixNano"]) - int(root["startTimeUnixNano"]) == 100 * MS
    assert root["startTimeUnixNano"] == children[0]["startTimeUnixNano"]
    assert root["endTimeUnixNano"] == children[-1]["endTimeUnixNano"]
    assert all(a["endTimeUnixNano"] == b["startTimeUnixNano"] for a, b in pairwise(children))
    assert [event["name"] for event in root["events"]] == ["served"]
    assert root["status"] == {"code": 1}


def test_otlp_tells_failures_and_is_the_same_each_time(loops: list[Loop]) -> None:
    data = otlp(loops, "shop")
    assert data == otlp(loops, "shop")
    roots = {
        span["name"] + span["startTimeUnixNano"]: span
        for resource in data["resourceSpans"]
        for span in resource["scopeSpans"][0]["spans"]
        if "parentSpanId" not in span
    }
    assert len({root["traceId"] for root in roots.values()}) == 4
    assert sorted(root["status"].get("code", 0) for root in roots.values()) == [0, 1, 1, 2]
    assert [r["status"]["message"] for r in roots.values() if "message" in r["status"]] == ["exit code 1"]


def test_chrome_names_services_as_threads_and_phases_lie_in_their_loop(loops: list[Loop]) -> None:
    data = json.loads(FORMATS["chrome"](loops, "shop"))
    events = data["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "i"}
    for event in events:
        assert {"ph", "pid", "tid", "name"} <= set(event)
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
    names = {event["args"]["name"]: event["tid"] for event in events if event["name"] == "thread_name"}
    assert set(names) == {"api", "api (2)", "web"}
    for whole in (event for event in events if event.get("cat") == "loop"):
        inside = [
            event
            for event in events
            if event.get("cat") == "phase"
            and event["ph"] == "X"
            and event["tid"] == whole["tid"]
            and whole["ts"] <= event["ts"] <= whole["ts"] + whole["dur"]
        ]
        assert len(inside) == 5
        assert max(e["ts"] + e["dur"] for e in inside) == pytest.approx(whole["ts"] + whole["dur"], abs=0.001)
    assert data["otherData"]["started_at_unix_ns"] == str(loops[0].started_at)


def test_chrome_slices_of_one_thread_never_cross(loop: Make) -> None:
    data = chrome_trace([loop(30, id=n, started_at=NOW + n * 7 * MS) for n in range(20)], "shop")
    by_thread: dict[int, list[tuple[float, float]]] = {}
    for event in data["traceEvents"]:
        if event.get("cat") == "loop":
            by_thread.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    assert len(by_thread) == 5
    for slices in by_thread.values():
        assert all(end <= begin for (_, end), (begin, _) in pairwise(sorted(slices)))


def test_chrome_of_nothing_is_valid() -> None:
    assert len(chrome_trace([], "shop")["traceEvents"]) == 1


def test_csv(loops: list[Loop]) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(loops))))
    assert [row["id"] for row in rows] == ["1", "2", "3", "4"]
    first = rows[0]
    assert first["started_at"] == "2026-11-18T10:06:40.000000Z"
    assert (first["total_ms"], first["detected_ms"], first["ready_ms"]) == ("100.000", "1.000", "96.000")
    assert first["served_ms"] == "4900.000"
    assert (rows[1]["files"], rows[1]["served_ms"]) == ("a.py b.py", "")
    assert rows[2]["detail"] == "exit code 1"


def test_every_format_is_plain_unicode(loops: list[Loop]) -> None:
    for write in FORMATS.values():
        write(loops, "shop").encode()

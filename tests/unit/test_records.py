"""Levels and JSON lines as loggers write them, and sentences that only look alike."""

from __future__ import annotations

import pytest

from devloop.protocol import LogLine
from devloop.records import LevelFilter, Record, at_least, level_of, record_of

LINES = [
    ("warning", "WARNING:root:low on space"),  # Python
    ("warning", "2024-01-02 03:04:05,678 - shop.api - WARNING - slow"),
    ("error", "2024-01-02 03:04:05,678 shop ERROR could not"),
    ("error", "2024-01-02 03:04:05,678 shop.api ERROR could not"),
    ("error", "2024-01-02 03:04:05,678 [MainThread] ERROR shop: could not"),
    ("warning", "[2024-01-02 03:04:05,678] WARNING in app: slow"),  # Flask
    ("info", "[2024-01-02 03:04:05 +0000] [123] [INFO] Starting gunicorn"),
    ("info", "INFO:     Started server process [1]"),  # uvicorn
    ("info", "\x1b[32mINFO\x1b[0m:     Started server process [1]"),
    ("info", "[2024-01-02 03:04:05,678: INFO/MainProcess] ready"),  # celery
    ("debug", "2024-01-02 03:04:05.678 | DEBUG    | shop:main:3 - hello"),  # loguru
    ("info", "2024-01-02 03:04:05 [info     ] hello     key=1"),  # structlog
    ("info", "03:04:05.678 [main] INFO  com.example.App - started"),  # logback
    ("warning", "2024-01-02T03:04:05.678Z  WARN 123 --- [main] c.e.App : slow"),  # Spring
    ("warning", "2024-01-02T03:04:05.678+01:00  WARN 123 --- [shop] [main] c.e.App : slow"),
    ("fatal", "SEVERE: no".replace("SEVERE", "FATAL")),
    ("error", "SEVERE: no"),  # java.util.logging
    ("info", "INFO  [main] 2024-01-02 03:04:05,678 Server.java:10 - up"),  # Cassandra
    ("info", "[2024-01-02T03:04:05,678][INFO ][o.e.n.Node] [x] started"),  # Elasticsearch
    ("error", "2024-01-02T03:04:05.678Z\tERROR\tshop/main.go:10\tno"),  # zap
    ("warning", "3:04AM WRN slow key=1"),  # zerolog
    ("info", "INFO[0003] listening    port=80"),  # logrus
    ("info", "2009/11/10 23:00:00 INFO hello n=1"),  # slog
    ("error", "E0102 03:04:05.678901    123 main.go:10] no"),  # klog
    ("info", "I0102 03:04:05.678901       1 main.go:10] yes"),
    ("warning", 'time="2024-01-02T03:04:05Z" level=warning msg="slow \\"x\\""'),  # logfmt
    ("info", "ts=2024 caller=main.go:10 level=info component=db"),
    ("error", "time=2024-01-02T03:04:05.678Z level=ERROR msg=no"),
    ("info", "info: Microsoft.Hosting.Lifetime[14]"),  # .NET
    ("error", "fail: Shop.Api[0]"),
    ("warning", "[03:04:05 WRN] slow"),  # Serilog
    ("info", "I, [2024-01-02T03:04:05.678901 #123]  INFO -- : hello"),  # Ruby
    ("warning", "03:04:05.678 [warning] slow"),  # Elixir
    ("info", "[2024-01-02T03:04:05Z INFO  shop::db] up"),  # env_logger
    ("info", "2024-01-02T03:04:05.678901Z  INFO shop::db: up"),  # tracing
    ("error", "2024/01/02 03:04:05 [error] 12#12: *1 no"),  # nginx
    ("error", "[Sat Jan 02 03:04:05.678 2024] [core:error] [pid 1] no"),  # Apache
    ("error", "2024-01-02 03:04:05.678 UTC [1] ERROR:  syntax"),  # PostgreSQL
    ("info", "2024-01-02 03:04:05.678 UTC [1] LOG:  ready"),
    ("warning", "2024-01-02T03:04:05.678901Z 0 [Warning] [MY-010068] [Server] CA"),  # MySQL
    ("info", "1:M 02 Jan 2024 03:04:05.678 * Ready"),  # Redis
    ("warning", "1:M 02 Jan 2024 03:04:05.678 # overcommit"),
    ("error", "[2024-01-02 03:04:05] local.ERROR: no"),  # Laravel
    ("info", "2024-01-02T03:04:05.678Z [INFO]  agent: up"),  # Consul
    ("info", "[2024-01-02 03:04:05.678][1][info][main] [source/server.cc:1] up"),  # Envoy
    ("error", "error[E0425]: cannot find value"),  # rustc
    ("warning", "warning: unused variable"),
    ("error", "npm ERR! code ENOENT"),
    ("info", "[INFO] BUILD SUCCESS"),  # Maven
    ("error", "Error: Cannot find module 'x'"),
]

SENTENCES = [
    "the ERROR page is shown",
    "2024-01-02 03:04:05 the ERROR page is shown",
    "2024-01-02 03:04:05 User pressed ERROR",
    "GET /error 200",
    'GET /?level=error HTTP/1.1" 200',
    "the user set level=error in the form",
    "errors: 0",
    "information desk",
    "INFORMED consent",
    "[user error] x",
    "level=error",
    "",
    "   ",
    "{not json",
    '{"a": 1}',
    '[{"level": "error"}]',
    "E01 failed",
]


@pytest.mark.parametrize(("level", "text"), LINES)
def test_levels_of_lines(level: str, text: str) -> None:
    assert level_of(text) == level


@pytest.mark.parametrize("text", SENTENCES)
def test_a_sentence_has_no_level(text: str) -> None:
    assert level_of(text) == ""


@pytest.mark.parametrize(
    ("text", "record"),
    [
        (
            '{"level":40,"time":"2024-01-02T03:04:05.678Z","pid":7,"hostname":"x","msg":"slow"}',  # pino
            Record("warning", "03:04:05.678", "slow", {"pid": "7", "hostname": "x"}),
        ),
        (
            '{"event": "hello", "level": "info", "timestamp": "2024-01-02T03:04:05", "user": {"id": 1}}',  # structlog
            Record("info", "03:04:05", "hello", {"user": '{"id":1}'}),
        ),
        (
            '{"level":"error","ts":"03:04:05","caller":"a.go:1","msg":"no"}',
            Record("error", "03:04:05", "no", {"caller": "a.go:1"}),
        ),
        ('{"@t":"2024-01-02T03:04:05.6Z","@mt":"hi"}', Record("info", "03:04:05.6", "hi", {})),  # Serilog
        (
            '{"timestamp":"","level":"WARN","fields":{"message":"hi","n":1},"target":"a"}',
            Record("warning", "", "hi", {"target": "a", "n": "1"}),
        ),
        (
            '{"text":"x","record":{"level":{"name":"ERROR"},"message":"no","time":{"repr":"2024 03:04:05.678"}}}',
            Record("error", "03:04:05.678", "no", {}),
        ),
        ('{"version":"1.1","short_message":"no","level":3}', Record("error", "", "no", {"version": "1.1"})),  # GELF
        (
            '{"t":{"$date":"2024-01-02T03:04:05.678Z"},"s":"W","c":"NETWORK","id":1,"msg":"x"}',
            Record("warning", "03:04:05.678", "x", {"c": "NETWORK", "id": "1"}),
        ),
        ('{"severityNumber":17,"body":"no"}', Record("error", "", "no", {})),  # OpenTelemetry
        ('{"severity":"NOTICE","message":"x"}', Record("info", "", "x", {})),
        ('{"msg":"only words"}', Record("", "", "only words", {})),
    ],
)
def test_json_lines(text: str, record: Record) -> None:
    assert record_of(text) == record
    assert level_of(text) == record.level


@pytest.mark.parametrize(
    "text", ['{"a":1}', "[1]", "{", '{"level": true}', "{" * 9000 + "}", '{"x":' * 9000 + "1" + "}" * 9000]
)
def test_other_json_is_shown_as_it_is(text: str) -> None:
    assert record_of(text) is None
    assert level_of(text) == ""


def test_a_traceback_belongs_to_the_line_before_it() -> None:
    it = LevelFilter("warn")
    lines = ["INFO: a", "  more of a", "ERROR: b", "Traceback", "  File x", "INFO: c", "plain"]
    assert [text for text in lines if it.passes("api", "out", text)] == ["ERROR: b", "Traceback", "  File x"]
    assert it.passes("api", "devloop", "exited with 1")
    assert not it.passes("web", "out", "plain")


def test_names_of_levels() -> None:
    assert at_least("WARN") == {"warning", "error", "fatal"}
    with pytest.raises(KeyError):
        at_least("loud")


def test_a_line_knows_its_level() -> None:
    line = LogLine("api", 0, "out", '{"level":50,"msg":"no"}')
    assert line.level == "error"
    assert LogLine("api", 0, "devloop", line.text).level == ""
    assert "level" not in line.to_json(), "the engine does not look for it"
    assert LogLine.from_json(line.to_json()) == line


@pytest.mark.parametrize(
    "text",
    [
        '{"msg":"x","time":1e999}',  # infinite, for Python
        '{"msg":"x","time":NaN}',
        '{"msg":"x","time":1' + "0" * 400 + "}",  # larger than any float
        '{"msg":"x","level":"' + "1" * 5000 + '"}',  # more digits than Python reads
    ],
)
def test_numbers_that_are_none_are_no_trouble(text: str) -> None:
    record = record_of(text)
    assert record is not None
    assert (record.level, record.time, record.message) == ("", "", "x")

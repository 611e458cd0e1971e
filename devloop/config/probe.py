"""A probe's table with the service's ports → a check and its rhythm."""

from __future__ import annotations

import re
from collections.abc import Mapping

from devloop.config.model import MS, SECOND, Check, ExecCheck, HttpCheck, LogCheck, Probe, TcpCheck
from devloop.config.problems import Findings, Place
from devloop.config.schema import LiveProbe, ReadyProbe, Timings
from devloop.config.words import dotted, listing, quoted, suggestion

HOST = "localhost"
"""Where a service is probed unless a URL says otherwise: some listen on 127.0.0.1 only, some on ::1 only."""

_PORT_AND_PATH = re.compile(r":(?P<port>[0-9]+)(?P<path>/.*)?")
_HOST_AND_PORT = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:/\s]+)):(?P<port>[0-9]+)")


def probe(
    table: LiveProbe,
    timing: Probe,
    ports: Mapping[str, int] | None,
    place: Place,
    findings: Findings,
    *,
    complete: bool,
) -> Probe:
    """The probe with `timing`'s rhythm and the table's check; `timing`'s own check if the table's is wrong.

    `ports` is None if they are wrong themselves: names of ports are not looked at then. Not `complete`: keys
    of the table were left out because they are wrong, and the check may have been one.
    """
    names = ("http", "tcp", "exec", "log") if isinstance(table, ReadyProbe) else ("http", "tcp", "exec")
    given = [name for name in names if getattr(table, name) is not None]
    label = dotted(place.path)
    if len(given) != 1:
        if given:
            what = f"{label}: has {listing(given, 'and')}; a probe has one check"
            findings.add(place.key(given[1]), what, "use exec for a check that is made of several")
        elif complete:
            findings.add(
                place,
                f"{label}: expected one of {listing(names)}",
                f'for example {place.path[-1]} = {{ http = "/" }}',
            )
        return timing
    if table.port is not None and table.http is None:
        findings.add(
            place.at("port"),
            f"{label}.port: says which port `http` is for; there is no http",
            'write tcp = "NAME"',
        )
    check: Check | None = None
    if table.http is not None:
        check = _http(table.http, table.port, ports, place, findings)
    elif table.tcp is not None:
        check = _tcp(table.tcp, ports, place, findings)
    elif table.exec is not None:
        check = ExecCheck(table.exec)
    elif isinstance(table, ReadyProbe) and table.log is not None:
        check = LogCheck(table.log)
    if check is None:
        return timing
    return Probe(check, timing.period, timing.timeout, timing.grace, timing.failures)


def rhythm(check: Check, *tables: Timings | None, live: bool = False) -> Probe:
    """A probe with the timings of the first table that has them, else the built-in ones."""

    def first(name: str, default: int) -> int:
        return next((v for t in tables if t is not None and (v := getattr(t, name)) is not None), default)

    return Probe(
        check,
        period=first("period", 2 * SECOND if live else 250 * MS),
        timeout=first("timeout", SECOND),
        grace=first("grace", 0 if live else 30 * SECOND),
        failures=first("failures", 3),
    )


def _http(
    text: str, port: str | None, ports: Mapping[str, int] | None, place: Place, findings: Findings
) -> HttpCheck | None:
    at, label = place.at("http"), f"{dotted(place.path)}.http"
    if port is not None and not text.startswith("/"):
        findings.add(
            place.at("port"),
            f"{dotted(place.path)}.port: {quoted(text)} names a port itself",
            "leave out one",
        )
        return None
    if text.startswith("/"):
        if port is not None:
            number = _port(port, ports, place.at("port"), findings)
            return None if number is None else HttpCheck(HOST, number, text)
        if ports is None:
            return None
        if not ports:
            hint = f'give it ports = {{ http = 8080 }}, or write ":8080{text}"'
            findings.add(at, f"{label}: {quoted(text)} needs a port, and the service has none", hint)
            return None
        return HttpCheck(HOST, next(iter(ports.values())), text)
    if match := _PORT_AND_PATH.fullmatch(text):
        number = _number(match["port"], at, label, findings)
        return None if number is None else HttpCheck(HOST, number, str(match["path"] or "/"))
    if "://" in text:
        return _url(text, at, label, findings)
    expected = 'a path such as "/healthz", ":8080/healthz" or "http://localhost:8080/healthz"'
    hint = f'did you mean "/{text}"?' if re.fullmatch(r"[\w./-]+", text) else ""
    findings.add(at, f"{label}: expected {expected}, not {quoted(text)}", hint)
    return None


def _url(text: str, at: Place, label: str, findings: Findings) -> HttpCheck | None:
    from urllib.parse import urlsplit

    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError as error:
        findings.add(at, f"{label}: not a URL: {str(error).lower()}")
        return None
    if url.scheme != "http":
        hint = "for another protocol use tcp, or exec with a client of your choice"
        findings.add(at, f"{label}: expected a URL with http://, not {quoted(text)}", hint)
        return None
    if not host or port == 0:
        expected = "a host and a port, as in http://localhost:8080/"
        findings.add(at, f"{label}: expected {expected}, not {quoted(text)}")
        return None
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    return HttpCheck(host, 80 if port is None else port, path)


def _tcp(text: str, ports: Mapping[str, int] | None, place: Place, findings: Findings) -> TcpCheck | None:
    at, label = place.at("tcp"), f"{dotted(place.path)}.tcp"
    if match := _HOST_AND_PORT.fullmatch(text):
        number = _number(match["port"], at, label, findings)
        return None if number is None else TcpCheck(str(match["v6"] or match["host"]), number)
    number = _port(text.removeprefix(":") if text[1:].isdigit() else text, ports, at, findings)
    return None if number is None else TcpCheck(HOST, number)


def _port(name: str, ports: Mapping[str, int] | None, at: Place, findings: Findings) -> int | None:
    """The number of a port: the service's own by its name, or any by its number."""
    if ports is not None and name in ports:
        return ports[name]
    if name.isdecimal() and name.isascii():
        return _number(name, at, dotted(at.path), findings)
    if ports is not None:
        findings.add(
            at,
            f"{dotted(at.path)}: the service has no port {quoted(name)}",
            suggestion(name, ports, kind="ports"),
        )
    return None


def _number(text: str, at: Place, label: str, findings: Findings) -> int | None:
    if len(text) <= 9 and 1 <= int(text) <= 65535:
        return int(text)
    findings.add(at, f"{label}: expected a port from 1 to 65535, not {text}")
    return None

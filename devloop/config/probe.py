"""A probe's table with the service's ports → a check and its rhythm."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from devloop.config.model import MS, SECOND, Check, ExecCheck, GrpcCheck, HttpCheck, LogCheck, Probe, TcpCheck, Tls
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
    path: Callable[[str], Path],
) -> Probe:
    """The probe with `timing`'s rhythm and the table's check; `timing`'s own check if the table's is wrong.

    `ports` is None if they are wrong themselves: names of ports are not looked at then. Not `complete`: keys
    of the table were left out because they are wrong, and the check may have been one. `path` makes a path of
    the file absolute.
    """
    names = ("http", "grpc", "tcp", "exec", *(("log",) if isinstance(table, ReadyProbe) else ()))
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
    tls = _tls(table, path, place, findings)
    check: Check | None = None
    if table.http is not None:
        check = _http(table, ports, place, findings, tls)
    elif table.grpc is not None:
        check = _grpc(table.grpc, ports, place, findings, tls)
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


def _tls(table: LiveProbe, path: Callable[[str], Path], place: Place, findings: Findings) -> Tls | None:
    """How it speaks TLS, if it does."""
    for key in ("tls", "ca"):
        if getattr(table, key) is not None and table.http is None and table.grpc is None:
            findings.add(place.at(key), f"{dotted(place.path)}.{key}: is for http and grpc")
            return None
    secure = (table.http or "").lower().startswith("https://")
    if table.tls is not None and "://" in (table.http or "") and table.tls is not secure:
        scheme = "https" if table.tls else "http"
        findings.add(place.at("tls"), f"{dotted(place.path)}.tls: the URL says otherwise", f"write {scheme}://… there")
        return None
    if not (secure or table.tls):
        if table.ca is not None:
            hint = "write https:// there" if "://" in (table.http or "") else "add tls = true"
            findings.add(place.at("ca"), f"{dotted(place.path)}.ca: there is no TLS to check a certificate of", hint)
        return None
    if table.ca is None:
        return Tls()
    ca = path(table.ca)
    if not ca.is_file():
        findings.add(place.at("ca"), f"{dotted(place.path)}.ca: there is no file {ca}")
    return Tls(ca)


def _http(
    table: LiveProbe, ports: Mapping[str, int] | None, place: Place, findings: Findings, tls: Tls | None
) -> HttpCheck | None:
    text, port = table.http or "", table.port
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
            return None if number is None else HttpCheck(HOST, number, text, tls)
        number = _first(ports, text, at, findings, example="http = 8080", instead=f":8080{text}")
        return None if number is None else HttpCheck(HOST, number, text, tls)
    if match := _PORT_AND_PATH.fullmatch(text):
        number = _number(match["port"], at, label, findings)
        return None if number is None else HttpCheck(HOST, number, str(match["path"] or "/"), tls)
    if "://" in text:
        return _url(text, at, label, findings, tls)
    expected = 'a path such as "/healthz", ":8080/healthz" or "http://localhost:8080/healthz"'
    hint = f'did you mean "/{text}"?' if re.fullmatch(r"[\w./-]+", text) else ""
    findings.add(at, f"{label}: expected {expected}, not {quoted(text)}", hint)
    return None


def _url(text: str, at: Place, label: str, findings: Findings, tls: Tls | None) -> HttpCheck | None:
    from urllib.parse import urlsplit

    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError as error:
        findings.add(at, f"{label}: not a URL: {str(error).lower()}")
        return None
    if url.scheme not in ("http", "https"):
        hint = "for another protocol use grpc or tcp, or exec with a client of your choice"
        findings.add(at, f"{label}: expected a URL with http:// or https://, not {quoted(text)}", hint)
        return None
    if not host or port == 0:
        expected = "a host and a port, as in http://localhost:8080/"
        findings.add(at, f"{label}: expected {expected}, not {quoted(text)}")
        return None
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    return HttpCheck(host, (443 if tls else 80) if port is None else port, path, tls)


def _grpc(
    text: str, ports: Mapping[str, int] | None, place: Place, findings: Findings, tls: Tls | None
) -> GrpcCheck | None:
    at, label = place.at("grpc"), f"{dotted(place.path)}.grpc"
    where, _, service = text.partition("/")
    if match := _HOST_AND_PORT.fullmatch(where):
        number = _number(match["port"], at, label, findings)
        return None if number is None else GrpcCheck(str(match["v6"] or match["host"]), number, service, tls)
    if not where:
        number = _first(ports, text, at, findings, example="grpc = 50051", instead=f"50051{text}")
        return None if number is None else GrpcCheck(HOST, number, service, tls)
    number = _port(where.removeprefix(":") if where[1:].isdigit() else where, ports, at, findings)
    return None if number is None else GrpcCheck(HOST, number, service, tls)


def _tcp(text: str, ports: Mapping[str, int] | None, place: Place, findings: Findings) -> TcpCheck | None:
    at, label = place.at("tcp"), f"{dotted(place.path)}.tcp"
    if match := _HOST_AND_PORT.fullmatch(text):
        number = _number(match["port"], at, label, findings)
        return None if number is None else TcpCheck(str(match["v6"] or match["host"]), number)
    number = _port(text.removeprefix(":") if text[1:].isdigit() else text, ports, at, findings)
    return None if number is None else TcpCheck(HOST, number)


def _first(
    ports: Mapping[str, int] | None, text: str, at: Place, findings: Findings, *, example: str, instead: str
) -> int | None:
    """The service's first port, which a check means that names none."""
    if ports is None:
        return None
    if not ports:
        hint = f'give it ports = {{ {example} }}, or write "{instead}"'
        findings.add(at, f"{dotted(at.path)}: {quoted(text)} needs a port, and the service has none", hint)
    return next(iter(ports.values()), None)


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

"""What a Service's port speaks, by what its manifest says. Pure.

Where `appProtocol` says it, that holds (KEP-1422): the names that Kubernetes has reserved (`kubernetes.io/h2c`,
`kubernetes.io/ws`, `kubernetes.io/wss`), those of IANA, and those of Istio and Linkerd. A value that nobody here knows
says nothing, and the first bytes of each connection do. Then comes the port's name, as Istio reads it
(`grpc-orders`); and before both, Linkerd's annotation for what is not to be looked into.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Protocol = Literal["http", "http2", "https", "tls", "tcp", "detect"]
"""`https`: TLS with HTTP inside, of whichever version. `tls`: TLS, and nothing says what is inside."""
ENCRYPTED: tuple[Protocol, ...] = ("https", "tls")

OPAQUE = "config.linkerd.io/opaque-ports"
"""Linkerd: ports and ranges of them, of the Service."""
_HTTP = ("http", "http1", "http/1.0", "http/1.1", "ws", "websocket", "grpc-web", "http-web")
_HTTP2 = ("http2", "http/2", "h2c", "grpc")
_HTTPS = ("https", "wss", "h2", "grpcs", "grpc-tls", "http2-tls", "https2")
_TCP = (
    *("tcp", "opaque", "redis", "mysql", "mariadb", "mongo", "mongodb", "postgres", "postgresql", "cassandra", "kafka"),
    *("amqp", "amqps", "mqtt", "nats", "smtp", "smtps", "imap", "imaps", "pop3", "ldap", "ldaps", "ftp", "ssh", "dns"),
    *("memcached", "memcache", "thrift", "dubbo", "zookeeper", "rediss", "kafkas", "mqtts", "sip", "stomp", "udp"),
)
_KNOWN: Mapping[str, Protocol] = {
    **dict.fromkeys(_HTTP, "http"),
    **dict.fromkeys(_HTTP2, "http2"),
    **dict.fromkeys(_HTTPS, "https"),
    **dict.fromkeys(("tls", "ssl"), "tls"),
    **dict.fromkeys(_TCP, "tcp"),
}


def protocol_of(port: Mapping[str, Any], annotations: Mapping[str, str] | None = None) -> Protocol:
    """What a port of a Service speaks; `detect`: nothing says it. `annotations`: the Service's."""
    if _opaque(port, (annotations or {}).get(OPAQUE, "")):
        return "tcp"
    said = str(port.get("appProtocol") or "").lower()
    if said:
        # kubernetes.io/h2c, linkerd.io/tcp, and whatever else stands before the slash of a name with a domain.
        domain, slash, name = said.rpartition("/")
        return _KNOWN.get(said) or (_KNOWN.get(name) if slash and "." in domain else None) or "detect"
    name = str(port.get("name") or "").lower()
    parts = name.split("-")
    for count in (2, 1):  # grpc-web-shop, http-admin
        if found := _KNOWN.get("-".join(parts[:count])):
            return found
    return "detect"


def _opaque(port: Mapping[str, Any], ranges: str) -> bool:
    number, name = port.get("port", 0), port.get("name")
    for each in filter(None, (part.strip() for part in ranges.split(","))):
        first, _, last = each.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            if int(first) <= number <= int(last or first):
                return True
        elif each == name:
            return True
    return False

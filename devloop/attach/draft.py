"""From what devloop.toml asks for to what stands in the cluster: checked against the Service that there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from devloop.agent import objects
from devloop.agent.objects import Document
from devloop.agent.plan import protocol_of
from devloop.agent.spec import Spec

from .attachment import identifier, timestamp
from .claims import Claims
from .seam import AttachError, Wanted


async def drafted(claims: Claims, wanted: Wanted, user: str, host: str, instance: str) -> Spec:
    """What is wanted, with the Service's port numbers. AttachError if it can't be."""
    if wanted.kind == "replace" and not wanted.workload:
        raise AttachError("no workload is named", where=claims.api.where)
    if wanted.kind != "replace" and not wanted.service:
        raise AttachError("no Service is named", where=claims.api.where)
    ports: dict[int, int] = {}
    if wanted.service:
        service = await claims.service(wanted.service)
        if service is None:
            raise AttachError("there is no such Service", where=f"Service {wanted.service}")
        ports = fitting(objects.owners(service), wanted)
    return Spec(
        id=identifier(user, host, instance, wanted),
        user=user,
        host=host,
        kind=wanted.kind,
        since=timestamp(),
        service=wanted.service,
        ports=ports,
        routes=wanted.routes,
        fail=wanted.fail,
        hold=wanted.hold,
        workload=wanted.workload if wanted.kind == "replace" else "",
    )


def fitting(service: Document, wanted: Wanted) -> dict[int, int]:
    """The ports, if the Service and what they speak allow what is wanted. AttachError. Pure."""
    where = f"Service {wanted.service}"
    why, by_pods = objects.unsupported(service)
    if why:
        hint = "Attaching to pods one by one (an ephemeral container with NET_ADMIN) is not built yet."
        raise AttachError(f"its traffic can't be taken: {why}", where=where, hint=hint if by_pods else None)
    ports = ports_of(service, wanted.ports)
    if not ports:
        raise AttachError("no port of it is asked for", where=where)
    plain = [
        port.get("name") or port["port"]
        for port in service["spec"]["ports"]
        if port["port"] in ports and protocol_of(port) == "tcp"
    ]
    if plain and any(route.conditional for route in wanted.routes):
        raise AttachError(
            f"port {plain[0]} is plain TCP, and has neither headers nor paths",
            where=where,
            hint="Take all of it or a share, or say what it speaks: appProtocol: http.",
        )
    if plain and wanted.kind == "wiretap":
        raise AttachError(f"port {plain[0]} is plain TCP, which can't be copied", where=where)
    return ports


def ports_of(service: Document, wanted: Mapping[int | str, int]) -> dict[int, int]:
    """A Service's port numbers to the local ports, from names or numbers. AttachError."""
    name = service["metadata"]["name"]
    known: dict[Any, int] = {}
    for each in service["spec"].get("ports", []):
        known[each["port"]] = each["port"]
        if each.get("name"):
            known[each["name"]] = each["port"]
    out = {}
    for port, local in wanted.items():
        if port not in known:
            has = ", ".join(str(each) for each in known)
            raise AttachError(f"it has no port {port}; it has {has}", where=f"Service {name}")
        out[known[port]] = local
    return out

"""From what devloop.toml asks for to what stands in the cluster: checked against the Service that there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from devloop.agent import objects
from devloop.agent.objects import Document
from devloop.agent.protocols import protocol_of
from devloop.agent.spec import ALL, Spec, Way

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
    datagrams: dict[int, int] = {}
    way: Way = "service"
    if wanted.service:
        service = await claims.service(wanted.service)
        if service is None:
            raise AttachError("there is no such Service", where=f"Service {wanted.service}")
        ports, datagrams, way = fitting(objects.owners(service), wanted)
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
        way=way,
        datagrams=datagrams,
        local=wanted.tls.local,
    )


def fitting(service: Document, wanted: Wanted) -> tuple[dict[int, int], dict[int, int], Way]:
    """The ports, those of UDP, and the way, if the Service and what they speak allow what is wanted. AttachError."""
    where = f"Service {wanted.service}"
    way = way_of(service, wanted, where)
    ports, datagrams = ports_of(service, wanted.ports)
    if not ports and not datagrams:
        raise AttachError("no port of it is asked for", where=where)
    if datagrams:
        _whole(next(iter(datagrams)), wanted, where)
    annotations = service["metadata"].get("annotations")
    speaks = {
        port.get("name") or port["port"]: protocol_of(port, annotations)
        for port in service["spec"]["ports"]
        if port["port"] in ports and port.get("protocol", "TCP") == "TCP"
    }
    plain = [port for port, protocol in speaks.items() if protocol == "tcp"]
    http = [port for port, protocol in speaks.items() if protocol in ("http", "http2")]
    if http and any(route.sni for route in wanted.routes):
        raise AttachError(
            f"port {http[0]} speaks plain HTTP, and the name of a server (sni) is known where TLS is spoken",
            where=where,
            hint='The header has it, too: `headers = { host = "…" }`.',
        )
    if plain and any(route.conditional for route in wanted.routes):
        raise AttachError(
            f"port {plain[0]} is plain TCP, and has neither headers nor paths",
            where=where,
            hint="Take all of it or a share, or say what it speaks: appProtocol: http.",
        )
    if plain and wanted.kind == "wiretap":
        raise AttachError(f"port {plain[0]} is plain TCP, which can't be copied", where=where)
    return ports, datagrams, way


def _whole(port: int, wanted: Wanted, where: str) -> None:
    """Datagrams are taken as a whole. AttachError."""
    if wanted.kind == "wiretap":
        raise AttachError(f"port {port} is UDP, which can't be copied", where=where)
    if wanted.routes != (ALL,):
        raise AttachError(
            f"port {port} is UDP: a datagram has neither headers nor a path, and is no request that could be shared",
            where=where,
            hint='Take all of it: routes = "all" (`devloop attach --all`); or leave it out: `ports` (`--port`) says '
            "which are taken.",
        )


def way_of(service: Document, wanted: Wanted, where: str) -> Way:
    """Where its traffic is taken: at its address, or in its pods. AttachError if neither can be."""
    why, by_pods = objects.unsupported(service)
    if not why and wanted.way != "pods":
        return "service"
    if why and not by_pods:
        raise AttachError(f"its traffic can't be taken: {why}", where=where)
    if wanted.kind == "replace":
        what = f"its traffic can't be taken: {why}" if why else "its traffic can't be taken in its pods"
        raise AttachError(
            f"{what}; and while its workload is replaced, it has no pods in which it could be",
            where=where,
            hint="`intercept` takes it in the pods; or `replace` the workload without this Service.",
        )
    if wanted.way != "pods":
        raise AttachError(
            f"its traffic can't be taken at its address: {why}",
            where=where,
            hint='`way = "pods"` (`devloop attach --way pods`) takes it in each of its pods, by an ephemeral container '
            "with NET_ADMIN, which stays in the pod's spec until the pod is replaced.",
        )
    return "pods"


def ports_of(service: Document, wanted: Mapping[int | str, int]) -> tuple[dict[int, int], dict[int, int]]:
    """A Service's port numbers to the local ports, from names or numbers: TCP's, and UDP's. AttachError."""
    where = f"Service {service['metadata']['name']}"
    known: dict[Any, tuple[int, str]] = {}
    for each in service["spec"].get("ports", []):
        found = (each["port"], each.get("protocol", "TCP"))
        if each.get("name"):
            known[each["name"]] = found
        known[f"{each['port']}/{found[1].lower()}"] = found
        if found[1] == "TCP" or each["port"] not in known:  # a number alone is TCP's, where both have it
            known[each["port"]] = found
    out: dict[str, dict[int, int]] = {"TCP": {}, "UDP": {}}
    for port, local in wanted.items():
        if port not in known:
            has = ", ".join(
                str(word)
                for each in service["spec"].get("ports", [])
                for word in (each["port"], each.get("name"))
                if word is not None
            )
            raise AttachError(f"it has no port {port}; it has {has}", where=where)
        number, protocol = known[port]
        if protocol not in out:
            raise AttachError(f"port {port} is {protocol}, and TCP and UDP alone can be taken", where=where)
        out[protocol][number] = local
    return out["TCP"], out["UDP"]

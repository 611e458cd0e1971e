"""Ports that speak TLS: whether it is ended at the agent, with which Secret, and what is said where it can't be.

It is ended where somebody has to look inside: a route by headers, a path or a method, a copy, a local service that
speaks plain HTTP. Then clients have to see the original's own certificate, and the original has to be asked as they
would have asked it. So the agent looks at what the original says of itself (`devloop/agent/hello.py`), and the
certificate is that of a Secret which the developer may read, and which is the one that the original shows. Where that
can't be, the attachment is refused with the reason: a connection that is taken whole, or by the name of its server,
needs nothing of this.

What a Secret says is kept in memory, here and at the agent, and followed while the attachment lasts.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from devloop.agent import certificates, objects
from devloop.agent.certificates import CertificateError, Termination
from devloop.agent.hello import Hello
from devloop.agent.objects import Document
from devloop.agent.protocols import ENCRYPTED, protocol_of
from devloop.agent.spec import Spec
from devloop.agent.tasks import background
from devloop.errors import RemoteError
from devloop.failures import contained
from devloop.remote.kubernetes.api import Api, ApiError

from . import pods
from .attachment import Attachment
from .local_tls import Identity
from .seam import AttachError
from .session import Session, SessionLostError

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
"""Between two looks at a Secret that can't be watched."""
USUAL = ("443", "https", "tls", "ssl")
"""What the number or the name of a port that speaks TLS ends with, as a rule, where nothing else says it."""
INSTEAD = (
    'Take connections by the name of the server they ask for (`routes = [{ sni = "…" }]`, `--sni`), or all '
    '(`routes = "all"`): they pass as they are.'
)


@dataclass(frozen=True, slots=True)
class Found:
    """A Secret with a certificate. `ca`: its `ca.crt`."""

    name: str
    certificate: str
    key: str
    ca: str
    """Of these, `repr` shows the name alone."""

    def __repr__(self) -> str:
        return f"Found({self.name!r})"


@dataclass(frozen=True, slots=True)
class Ended:
    """How TLS is ended for one attachment."""

    tls: Mapping[int, Termination | None]
    """By the Service's port; None: it speaks TLS, and passes as it is."""
    secrets: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    said: Mapping[int, Hello] | None = None
    shown: Mapping[int, str] = field(default_factory=dict)
    """By port, the Secret with the certificate that clients see."""


class Encryption:
    """One namespace's."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._base = f"/api/v1/namespaces/{api.namespace}"

    async def prepare(self, found: Attachment, session: Session, service: Document) -> Mapping[int, Termination | None]:
        """Which of its ports speak TLS, and with what it is ended. AttachError, RemoteError, SessionLostError."""
        owned = objects.owners(service)
        before = found.ended
        if before is not None and all(before.tls.values()):
            try:
                ended = await self._again(found, before)
            except RemoteError as problem:  # what was read before still holds; `watching` tells of it
                log.info("the certificates of %s are not read anew: %s", found.spec.service, type(problem).__name__)
                ended = before
        else:
            ended = await self._prepared(found, session, owned)
        self._take(found, ended)
        return ended.tls

    def _take(self, found: Attachment, ended: Ended) -> None:
        found.ended = ended
        speaks = found.spec.ports if found.spec.local == "tls" else {}
        found.end.ports = {here: _identity(ended.tls[port]) for port, here in speaks.items() if port in ended.tls}

    async def _prepared(self, found: Attachment, session: Session, owned: Document) -> Ended:
        spec, wanted = found.spec, found.wanted.tls
        where = f"Service {spec.service}"
        declared, perhaps = _ports(owned, spec, named=bool(wanted.secret))
        routes = spec.routes
        inside = any(each.looks_inside for each in routes) or wanted.local == "plain" or spec.kind == "wiretap"
        if not declared and not (perhaps and (inside or any(each.sni for each in routes))):
            return Ended({})
        if not inside and not (perhaps and any(each.sni for each in routes)):
            return Ended(dict.fromkeys(declared))
        if inside and declared and not wanted.inside:
            raise AttachError(
                f"port {_called(owned, declared[0])} speaks TLS, and `tls = false` says that it is not to be ended",
                where=where,
                hint=INSTEAD,
            )
        behind = await self._pods(owned)
        said = await self._hellos(found, session, owned, (*declared, *perhaps), behind)
        for port in declared:
            if not said[port].reached:
                raise RemoteError(
                    f"no pod of the original answers the agent at port {_called(owned, port)}", where=where
                )
            if not said[port].tls:
                raise AttachError(
                    f"port {_called(owned, port)} is said to speak TLS (its appProtocol or name), and does not",
                    where=where,
                    hint="`appProtocol: http` in the Service says what it speaks.",
                )
        encrypted = [*declared, *(port for port in perhaps if said[port].tls)]
        if not inside or not encrypted:
            return Ended(dict.fromkeys(encrypted))
        if not wanted.inside:
            return Ended(dict.fromkeys(encrypted))
        made: dict[int, Termination | None] = {}
        secrets: set[str] = set()
        notes: list[str] = []
        shown: dict[int, str] = {}
        for port in encrypted:
            name = _called(owned, port)
            made[port], shown[port], more = await self._ending(found, name, _http(owned, port), said[port], behind)
            secrets |= {shown[port], *more}
            notes += _notes(name, said[port], found)
        return Ended(made, tuple(sorted(secrets)), tuple(notes), said, shown)

    async def _hellos(
        self, found: Attachment, session: Session, owned: Document, ports: Iterable[int], behind: list[Document]
    ) -> dict[int, Hello]:
        spec = found.spec
        places: dict[int, list[tuple[str, int]]] = {port: [] for port in ports}
        if spec.way == "pods":
            for pod in pods.chosen(owned, behind, places, spec.service):
                for port, own in pod.ports.items():
                    places[port].append((pod.addresses[0], own))
        server = next((each.sni for each in spec.routes if each.sni and not each.sni.startswith("*")), "")
        server = server or f"{spec.service}.{self._api.namespace}.svc"
        return await session.hello(spec, places, server)

    async def _ending(
        self, found: Attachment, port: str, http: bool, said: Hello, behind: list[Document]
    ) -> tuple[Termination, str, set[str]]:
        """With what it is ended, the Secret of its certificate, and the others that were read."""
        wanted, where = found.wanted.tls, f"Service {found.spec.service}"
        if not said.alpn and not http:
            raise AttachError(
                f"port {port} speaks TLS, and nothing says that HTTP is inside", where=where,
                hint=f"`appProtocol: https` in the Service says it. {INSTEAD}",
            )  # fmt: skip
        chosen = await self._chosen(found, port, said, behind)
        used: set[str] = set()
        authority = client = ""
        key = ""
        if said.client != "none":
            if said.client == "optional":
                raise AttachError(
                    f"port {port} asks clients for certificates and does without: once TLS is ended before it, the "
                    "original can't tell who has shown one",
                    where=where,
                    hint=INSTEAD,
                )
            if not wanted.client:
                raise AttachError(
                    f"port {port} wants a certificate of its clients, and requests that go on to the original need one",
                    where=where,
                    hint="`client` of `attach.tls` names a Secret with one that the original takes; it sees that "
                    f"instead of each client's. {INSTEAD}",
                )
            authority = chosen.ca
            if wanted.client_ca:
                used.add(wanted.client_ca)
                authority = (await self._data(wanted.client_ca, where)).get("ca.crt", "")
            if not authority:
                raise AttachError(
                    f"the Secret {wanted.client_ca or chosen.name} has no ca.crt, by which the certificates of clients "
                    f"at port {port} could be checked",
                    where=where,
                    hint=f"`client_ca` of `attach.tls` names the Secret that has it. {INSTEAD}",
                )
            _check_authority(authority, said, wanted.client_ca or chosen.name, port, where)
            shown = await self._read(wanted.client, where)
            used.add(shown.name)
            client, key = shown.certificate, shown.key
        pins = tuple(dict.fromkeys((certificates.pin(chosen.certificate), *sorted(said.pins)))) if said.pins else ()
        ended = Termination(chosen.certificate, chosen.key, said.alpn, authority, client, key, pins)
        return ended, chosen.name, used

    # --- Secrets ----------------------------------------------------------------------------------------------------

    async def _chosen(self, found: Attachment, port: str, said: Hello, behind: list[Document]) -> Found:
        """The certificate's Secret: the one that is named, or that of the pods' which the original shows."""
        where = f"Service {found.spec.service}"
        if found.wanted.tls.secret:
            one = await self._read(found.wanted.tls.secret, where)
            if said.pins and certificates.pin(one.certificate) not in said.pins:
                raise AttachError(
                    f"the certificate of the Secret {one.name} is not the one that the original shows at port {port}",
                    where=where,
                    hint="Its pods may not have taken up a rotated one yet; or another Secret has it.",
                )
            return one
        mounted = sorted(set(_mounted(behind)))
        why: list[str] = []
        for name in mounted:
            try:
                one = await self._read(name, where)
            except AttachError as problem:
                if not problem.what.endswith(NOT_ONE):
                    why.append(problem.what)
                continue
            if not said.pins or certificates.pin(one.certificate) in said.pins:
                return one
            why.append(f"the original does not show that of {name}")
        if not why:
            why = [f"its pods mount {', '.join(mounted)}, and no kubernetes.io/tls Secret" if mounted else
                   "its pods mount no Secret"]  # fmt: skip
        raise AttachError(
            f"port {port} speaks TLS, so its requests can be seen with its certificate alone: {'; '.join(why)}",
            where=where,
            hint=f'`tls = "SECRET"` of `attach` names the Secret. {INSTEAD}',
        )

    async def _read(self, name: str, where: str) -> Found:
        data = await self._data(name, where)
        if not {"tls.crt", "tls.key"} <= data.keys():
            raise AttachError(f"the Secret {name} {NOT_ONE}", where=where)
        one = Found(name, data["tls.crt"], data["tls.key"], data.get("ca.crt", ""))
        try:
            certificates.check(one.certificate, one.key)
        except CertificateError as problem:
            raise AttachError(f"the Secret {name}: {problem}", where=where) from None
        return one

    async def _data(self, name: str, where: str) -> dict[str, str]:
        try:
            found = await self._api.find(f"{self._base}/secrets/{name}")
        except ApiError as problem:
            if problem.status != 403:
                raise
            what = f"the Secret {name} may not be read (the Role devloop-ingest: get secrets)"
            raise AttachError(what, where=where, hint=INSTEAD) from problem
        if found is None:
            raise AttachError(f"there is no Secret {name}", where=where)
        out = {}
        for key, value in (found.get("data") or {}).items():
            try:
                out[key] = base64.b64decode(value).decode()
            except ValueError:
                continue  # it is no text, so it is none of these
        return out

    async def _pods(self, owned: Document) -> list[Document]:
        query = ",".join(f"{key}={value}" for key, value in (owned["spec"].get("selector") or {}).items())
        items = (await self._api.get(f"{self._base}/pods", labelSelector=query)).get("items") or []
        return [each for each in items if pods.runs(each)]

    # --- Rotation -----------------------------------------------------------------------------------------------------

    async def _again(self, found: Attachment, before: Ended) -> Ended:
        """The same Secrets, as they are now."""
        where, wanted = f"Service {found.spec.service}", found.wanted.tls
        pairs = {*before.shown.values(), wanted.client}
        read = {name: await self._read(name, where) for name in before.secrets if name in pairs}
        authority = (await self._data(wanted.client_ca, where)).get("ca.crt", "") if wanted.client_ca else ""
        made: dict[int, Termination | None] = {}
        for port, old in before.tls.items():
            assert old is not None
            one = read[before.shown[port]]
            shown = read.get(wanted.client) if old.client_certificate else None
            new = Termination(
                one.certificate,
                one.key,
                old.alpn,
                (authority or one.ca or old.client_ca) if old.client_ca else "",
                shown.certificate if shown is not None else "",
                shown.key if shown is not None else "",
                (certificates.pin(one.certificate),) if old.pins else (),
            )
            made[port] = new.after(old)
        return Ended(made, before.secrets, before.notes, before.said, before.shown)

    async def watching(self, found: Attachment, session: Any) -> None:
        """Follow its Secrets for as long as it is held. `session` gives the one that there is, or None."""
        while not found.over:
            ended = found.ended
            if ended is None or not ended.secrets:
                return
            try:
                await self._changed(ended.secrets)
                before, current = found.ended, session()
                if before is None or current is None or found.over:
                    continue  # who attaches it to the next agent reads it anew
                ended = await self._again(found, before)
                if ended.tls != before.tls:
                    await current.renew(found.spec, {key: each for key, each in ended.tls.items() if each is not None})
                    self._take(found, ended)
                found.troubled("")
            except SessionLostError:
                await asyncio.sleep(1)
            except AttachError as problem:
                found.troubled(f"what has become of its certificate can't be used: {problem.what}")
                await asyncio.sleep(LOOK_SECONDS)
            except (RemoteError, OSError, TimeoutError) as problem:
                log.info("the certificates of %s can't be looked at: %s", found.spec.service, type(problem).__name__)
                await asyncio.sleep(LOOK_SECONDS)
            except Exception as problem:  # a fault of ours: it is told, and the Secrets are watched on
                contained(problem, f"the certificates of {found.spec.service} can't be followed")
                await asyncio.sleep(LOOK_SECONDS)

    async def _changed(self, names: Iterable[str]) -> None:
        """Until one of these may have changed: by a watch where that is allowed, else after a while."""

        async def one(name: str) -> None:
            try:
                first = True
                async for _ in self._api.watch(f"{self._base}/secrets", fieldSelector=f"metadata.name={name}"):
                    if not first:
                        return
                    first = False
            except ApiError:
                await asyncio.sleep(LOOK_SECONDS)

        tasks = [background(one(each), name=f"watch of the Secret {each}") for each in names]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


NOT_ONE = "has no tls.crt and tls.key"


def _ports(owned: Document, spec: Spec, *, named: bool) -> tuple[list[int], list[int]]:
    """Ports of an attachment that say they speak TLS, and those that say nothing and may. `named`: a Secret is."""
    declared, perhaps = [], []
    for port in owned["spec"].get("ports") or []:
        if port["port"] not in spec.ports or port.get("protocol", "TCP") != "TCP":
            continue
        speaks = protocol_of(port, owned["metadata"].get("annotations"))
        if speaks in ENCRYPTED:
            declared.append(port["port"])
        elif speaks == "detect":
            said = (str(each) for each in (port["port"], port.get("targetPort", ""), port.get("name", "")))
            if named or any(each.lower().endswith(USUAL) for each in said):
                perhaps.append(port["port"])
    return declared, perhaps


def _http(owned: Document, number: int) -> bool:
    return any(
        protocol_of(port, owned["metadata"].get("annotations")) == "https"
        for port in owned["spec"].get("ports") or []
        if port["port"] == number and port.get("protocol", "TCP") == "TCP"
    )


def _called(owned: Document, number: int) -> str:
    """A port, for people."""
    for port in owned["spec"].get("ports") or []:
        if port["port"] == number and port.get("name"):
            return f"{port['name']} ({number})"
    return str(number)


def _mounted(behind: Iterable[Document]) -> Iterator[str]:
    """Secrets that pods mount."""
    for pod in behind:
        for volume in pod["spec"].get("volumes") or []:
            if name := (volume.get("secret") or {}).get("secretName"):
                yield str(name)
            for source in (volume.get("projected") or {}).get("sources") or []:
                if name := (source.get("secret") or {}).get("name"):
                    yield str(name)


def _notes(port: str, said: Hello, found: Attachment) -> Iterator[str]:
    if said.client != "none":
        yield (
            f"port {port}: the original and the local service see the client certificate of the Secret "
            f"{found.wanted.tls.client}; who has asked is in the header x-forwarded-client-cert"
        )


def _identity(one: Termination | None) -> Identity:
    """Who a port's local service is told that it is asked by: each port has a certificate of its own."""
    if one is None:
        return Identity()
    return Identity(next(iter(_servers(one.certificate)), ""), one.client_certificate, one.client_key)


def _servers(certificate: str) -> tuple[str, ...]:
    try:
        return tuple(each for each in certificates.names(certificate) if not each.startswith("*"))
    except CertificateError:
        return ()


def _check_authority(authority: str, said: Hello, name: str, port: str, where: str) -> None:
    """Clients' certificates are checked as the original would, as far as it says whose it takes."""
    from cryptography.x509 import load_pem_x509_certificates

    try:
        subjects = {
            base64.b64encode(each.subject.public_bytes()).decode()
            for each in load_pem_x509_certificates(authority.encode())
        }
    except ValueError:
        raise AttachError(f"the ca.crt of the Secret {name} is no certificate in PEM", where=where) from None
    if said.authorities and subjects != said.authorities:
        raise AttachError(
            f"the original takes clients of other authorities at port {port} than the ca.crt of the Secret {name} has",
            where=where,
            hint=f"`client_ca` of `attach.tls` names the Secret with the right ones. {INSTEAD}",
        )

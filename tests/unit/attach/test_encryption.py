"""Which ports speak TLS, with which Secret it is ended, and what is said where it can't be."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest

from devloop.agent.certificates import CertificateError, Termination, check, memory_folder, pin
from devloop.agent.hello import Hello
from devloop.agent.overlap import overlap
from devloop.agent.spec import ALL, Header, Match, Route, Spec, SpecError
from devloop.attach.attachment import Attachment
from devloop.attach.draft import fitting
from devloop.attach.encryption import Encryption as Ending
from devloop.attach.seam import AttachError, Wanted
from devloop.config.model import Encryption
from devloop.remote.kubernetes.api import ApiError
from tests.certificates import Authority, Pair

MINE = Route((Header("x-user", Match("exact", "ada")),))
CA = Authority()
WEB, OTHER = CA.sign("web", "web.space.svc"), CA.sign("other")


def secret(pair: Pair, **more: str) -> dict[str, Any]:
    data = {"tls.crt": pair.certificate, "tls.key": pair.key, **more}
    return {"data": {key: base64.b64encode(text.encode()).decode() for key, text in data.items()}}


class Api:
    """Secrets and pods."""

    namespace, where = "space", "here"

    def __init__(self, *mounted: str, **secrets: dict[str, Any] | None) -> None:
        self.secrets = secrets
        volumes: list[dict[str, Any]] = [{"secret": {"secretName": each}} for each in mounted]
        self._pod = {"metadata": {"name": "web-1"}, "spec": {"volumes": volumes}, "status": {"phase": "Running"}}

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        assert path == "/api/v1/namespaces/space/pods" and query == {"labelSelector": "app=web"}
        return {"items": [self._pod]}

    async def find(self, path: str) -> dict[str, Any] | None:
        name = path.rpartition("/")[2]
        if self.secrets.get(name, {}) is None:
            raise ApiError(403, "Forbidden", f"secrets {name} is forbidden", where="here")
        return self.secrets.get(name)


class Says:
    """The agent, which has looked at the original."""

    def __init__(self, said: Hello) -> None:
        self.said = said
        self.asked: list[int] = []

    async def hello(self, spec: Spec, ports: Any, server: str) -> dict[int, Hello]:
        self.asked += ports
        return dict.fromkeys(ports, self.said)


class Local:
    running = True
    deaf: dict[int, str] = {}  # noqa: RUF012 (nobody writes it)


SHOWS = Hello(True, True, ("h2", "http/1.1"), "none", frozenset(), frozenset({pin(WEB.certificate)}))


async def prepared(
    api: Any, said: Hello = SHOWS, *routes: Route, name: str = "https", port: int = 443, **wanted: Any
) -> tuple[Any, Attachment]:
    service = {
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": port, "name": name}]},
    }
    asked = Wanted("intercept", "web", {port: 1}, routes or (MINE,), tls=Encryption(**wanted))
    ports, _, way = fitting(service, asked)
    spec = Spec("i", "ada", "h", "intercept", "0", "web", ports, asked.routes, way=way, local=asked.tls.local)
    found = Attachment(spec, asked, Local(), lambda _: None)  # type: ignore[arg-type]
    agent: Any = Says(said)
    return (await Ending(api).prepare(found, agent, service))[port], found


async def test_the_secret_is_the_one_that_the_pods_mount_and_show() -> None:
    api = Api("a-other", "b-opaque", "web", **{"a-other": secret(OTHER), "b-opaque": {"data": {}}, "web": secret(WEB)})
    ended, found = await prepared(api)
    assert isinstance(ended, Termination)
    assert (ended.certificate, ended.alpn) == (WEB.certificate, ("h2", "http/1.1"))
    assert ended.pins == (pin(WEB.certificate),)
    assert list(found.end.ports) == [1]
    assert found.ended is not None and found.ended.secrets == ("web",)
    assert WEB.key.splitlines()[1] not in repr(found.ended)


async def test_each_port_keeps_to_the_secret_that_it_has_been_ended_with() -> None:
    api = Api("web", "z-admin", **{"web": secret(WEB), "z-admin": secret(OTHER, **{"ca.crt": CA.certificate})})
    ports = [{"port": 443, "name": "https"}, {"port": 8443, "name": "https-admin"}]
    service = {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": ports}}
    client = Encryption(client="web", client_ca="z-admin")
    asked = Wanted("intercept", "web", {443: 1, 8443: 2}, (MINE,), tls=client)
    spec = Spec("i", "ada", "h", "intercept", "0", "web", {443: 1, 8443: 2}, (MINE,))
    found = Attachment(spec, asked, Local(), lambda _: None)  # type: ignore[arg-type]
    other = replace(SHOWS, pins=frozenset({pin(OTHER.certificate)}), client="required")

    class Two(Says):
        async def hello(self, spec: Spec, ports: Any, server: str) -> dict[int, Hello]:
            return {443: SHOWS, 8443: other}

    agent: Any = Two(SHOWS)
    ending = Ending(api)  # type: ignore[arg-type]
    first = await ending.prepare(found, agent, service)
    rotated = CA.sign("other")
    api.secrets["z-admin"] = secret(rotated, **{"ca.crt": CA.certificate})
    again = await ending.prepare(found, agent, service)
    assert again[443] == first[443], "another port's certificate, or a client's, is none of its own"
    admin = again[8443]
    assert admin is not None and admin.certificate == rotated.certificate and admin.client_certificate
    assert admin.pins == (pin(rotated.certificate), pin(OTHER.certificate))


@pytest.mark.parametrize("routes", [(ALL,), (Route(share=10),), (Route(sni="web.example"),)])
async def test_what_is_taken_whole_needs_no_certificate(routes: tuple[Route, ...]) -> None:
    ended, found = await prepared(Api(), SHOWS, *routes)
    assert ended is None and found.ended is not None and not found.ended.secrets
    assert list(found.end.ports) == [1]  # who else has something of it may end TLS


@pytest.mark.parametrize(
    ("api", "said", "wanted", "what", "hint"),
    [
        (Api(), SHOWS, {}, "its pods mount no Secret", "sni"),
        (Api("web", web=None), SHOWS, {}, "the Secret web may not be read", 'routes = "all"'),
        (Api("web", web=secret(OTHER)), SHOWS, {}, "the original does not show that of web", "names the Secret"),
        (Api(), SHOWS, {"secret": "web"}, "there is no Secret web", ""),
        (Api(web=secret(OTHER)), SHOWS, {"secret": "web"}, "is not the one that the original shows", "rotated"),
        (Api(web={"data": {}}), SHOWS, {"secret": "web"}, "has no tls.crt and tls.key", ""),
        (Api(web=secret(Pair(WEB.certificate, OTHER.key))), SHOWS, {"secret": "web"}, "does not belong to", ""),
        (Api(), SHOWS, {"inside": False}, "`tls = false` says", "sni"),
        (Api(), Hello(reached=True), {}, "is said to speak TLS", "appProtocol"),
        (Api(), Hello(True, True, client="optional"), {"secret": "web"}, "there is no Secret web", ""),
    ],
)
async def test_what_is_said_where_it_cannot_be(
    api: Any, said: Hello, wanted: dict[str, Any], what: str, hint: str
) -> None:
    with pytest.raises(AttachError) as told:
        await prepared(api, said, **wanted)
    assert what in told.value.what and hint in (told.value.hint or "")
    for text in (WEB.key, OTHER.key):
        assert text.splitlines()[1] not in str(told.value)


async def test_client_certificates_take_a_secret_to_show() -> None:
    clients = Authority("clients")
    mine = clients.sign("devloop")
    api = Api("web", web=secret(WEB, **{"ca.crt": clients.certificate}), mine=secret(mine), bare=secret(WEB))
    wants = Hello(True, True, ("h2",), "required", frozenset(), frozenset({pin(WEB.certificate)}))
    with pytest.raises(AttachError, match="wants a certificate of its clients"):
        await prepared(api, wants)
    with pytest.raises(AttachError, match=r"has no ca\.crt"):
        await prepared(api, wants, secret="bare", client="mine")
    ended, found = await prepared(api, wants, client="mine")
    assert (ended.client_ca, ended.client_certificate) == (clients.certificate, mine.certificate)
    found.become(found.state.phase, "x")
    assert "x-forwarded-client-cert" in found.state.notes[0]
    others = Hello(True, True, ("h2",), "required", frozenset({"b3RoZXI="}), wants.pins)
    with pytest.raises(AttachError, match="other authorities"):
        await prepared(api, others, client="mine")
    optional = Hello(True, True, ("h2",), "optional", frozenset(), wants.pins)
    with pytest.raises(AttachError, match="does without"):
        await prepared(api, optional, client="mine")


async def test_a_port_that_says_nothing_is_looked_at_if_it_may_speak_tls() -> None:
    api = Api("web", web=secret(WEB))
    with pytest.raises(AttachError, match="nothing says that HTTP is inside"):
        await prepared(api, Hello(True, True, (), "none", frozenset(), SHOWS.pins), name="", port=8443)
    ended, _ = await prepared(api, name="", port=8443)
    assert isinstance(ended, Termination)
    with pytest.raises(KeyError):
        await prepared(api, name="", port=8080)  # nothing was looked at
    with pytest.raises(KeyError):
        await prepared(api, Hello(reached=True), name="", port=8443)  # it speaks something else


def test_a_name_of_a_server_is_known_where_tls_is_spoken() -> None:
    service = {"metadata": {"name": "web"}, "spec": {"selector": {"a": "b"}, "ports": [{"port": 80, "name": "http"}]}}
    with pytest.raises(AttachError, match="speaks plain HTTP"):
        fitting(service, Wanted("intercept", "web", {80: 1}, (Route(sni="a.b"),)))
    with pytest.raises(SpecError):
        Route(sni="a.b", method="GET")
    with pytest.raises(SpecError):
        Route(sni="*")
    assert not overlap(Route(sni="a.b"), Route(sni="c.b")) and overlap(Route(sni="a.b"), Route(sni="*.b"))
    assert not overlap(Route(sni="a.b"), MINE) and overlap(Route(sni="a.b"), ALL)


def test_certificates_that_are_none() -> None:
    with pytest.raises(CertificateError, match=r"no certificate in PEM"):
        check("x", WEB.key)
    with pytest.raises(CertificateError, match=r"no private key in PEM"):
        check(WEB.certificate, "x")
    one, two = Termination("c", "k", pins=("a",)), Termination("c", "k", pins=("b",))
    assert two.after(one).pins == ("b", "a") and one.after(None) is one
    assert memory_folder("tmpfs /dev/shm tmpfs rw 0 0\n") is not None
    assert memory_folder("/dev/sda1 /dev/shm ext4 rw 0 0\n") is None


async def test_each_ports_local_service_is_asked_for_by_its_own_certificates_name() -> None:
    admin = CA.sign("admin", "admin.space.svc")
    api = Api("web", "z-admin", **{"web": secret(WEB), "z-admin": secret(admin)})
    ports = [{"port": 443, "name": "https"}, {"port": 8443, "name": "https-admin"}]
    service = {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": ports}}
    asked = Wanted("intercept", "web", {443: 1, 8443: 2}, (MINE,))
    spec = Spec("i", "ada", "h", "intercept", "0", "web", {443: 1, 8443: 2}, (MINE,))
    found = Attachment(spec, asked, Local(), lambda _: None)  # type: ignore[arg-type]
    other = replace(SHOWS, pins=frozenset({pin(admin.certificate)}))

    class Two(Says):
        async def hello(self, spec: Spec, ports: Any, server: str) -> dict[int, Hello]:
            return {443: SHOWS, 8443: other}

    await Ending(api).prepare(found, Two(SHOWS), service)  # type: ignore[arg-type]
    assert {port: each.server for port, each in found.end.ports.items()} == {1: "web.space.svc", 2: "admin.space.svc"}

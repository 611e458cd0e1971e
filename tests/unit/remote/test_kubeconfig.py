"""Kubeconfigs as kubectl reads them; the rules are client-go's."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from devloop.remote.kubernetes.kubeconfig import Credentials, Kubeconfig, _credential, choose, files
from devloop.remote.link import PermanentError


def write(path: Path, **content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **content}))
    return path


def entry(name: str, part: str, **values: Any) -> dict[str, Any]:
    return {"name": name, part: values}


def test_where_it_is_looked_for(tmp_path: Path) -> None:
    assert files(environ={"KUBECONFIG": "/a:/b:"}) == [Path("/a"), Path("/b")]
    assert files(environ={}) == [Path("~/.kube/config").expanduser()]
    assert files(tmp_path / "own", {"KUBECONFIG": "/a"}) == [tmp_path / "own"]


def test_the_first_file_that_says_something_wins_and_paths_are_its_own(tmp_path: Path) -> None:
    first = write(
        tmp_path / "one" / "config",
        **{"current-context": "dev"},
        clusters=[entry("c", "cluster", server="https://first", **{"certificate-authority": "ca.crt"})],
    )
    second = write(
        tmp_path / "two" / "config",
        **{"current-context": "other"},
        clusters=[entry("c", "cluster", server="https://second")],
        users=[entry("u", "user", **{"client-certificate": "u.crt", "client-key": "/abs/u.key"})],
        contexts=[
            entry("dev", "context", cluster="c", user="u", namespace="shop"),
            entry("other", "context", cluster="c", user="u"),
        ],
    )
    chosen = choose([first, tmp_path / "absent", second])
    assert (chosen.context, chosen.namespace) == ("dev", "shop")
    assert chosen.cluster["server"] == "https://first"
    assert chosen.cluster["certificate-authority"] == str(tmp_path / "one" / "ca.crt")
    assert chosen.user["client-certificate"] == str(tmp_path / "two" / "u.crt")
    assert chosen.user["client-key"] == "/abs/u.key"
    assert choose([first, second], "other").namespace == "default"
    assert choose([first, second], "other", "mine").namespace == "mine"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "no current-context"),
        ({"current-context": "x"}, 'no context "x"'),
        ({"current-context": "x", "contexts": [entry("x", "context", cluster="c")]}, 'the cluster "c"'),
        (
            {
                "current-context": "x",
                "contexts": [entry("x", "context", cluster="c", user="u")],
                "clusters": [entry("c", "cluster", server="https://s")],
            },
            'the user "u"',
        ),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    with pytest.raises(PermanentError, match=said):
        choose([write(tmp_path / "config", **content)])


def test_a_file_that_is_none_and_a_file_that_is_broken_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="there is no kubeconfig"):
        choose([tmp_path / "absent"])
    broken = tmp_path / "broken"
    broken.write_text("a: [")
    with pytest.raises(PermanentError, match="can't be read"):
        choose([broken])


def made(tmp_path: Path, cluster: dict[str, Any] | None = None, **user: Any) -> Kubeconfig:
    path = write(
        tmp_path / "config",
        **{"current-context": "x"},
        contexts=[entry("x", "context", cluster="c", user="u")],
        clusters=[entry("c", "cluster", server="https://server:6443", **(cluster or {}))],
        users=[entry("u", "user", **user)],
    )
    return Kubeconfig(path)


async def test_what_kubernetes_aio_makes_of_it(tmp_path: Path) -> None:
    settings = await made(
        tmp_path, {"proxy-url": "http://proxy:3128", "tls-server-name": "kube"}, token="t0ken"
    ).configuration()
    assert settings.host == "https://server:6443"
    assert settings.api_key["BearerToken"] == "Bearer t0ken"
    assert (settings.proxy, settings.tls_server_name) == ("http://proxy:3128", "kube")


async def test_a_token_file_is_read_anew(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("first")
    config = made(tmp_path, tokenFile="token")
    assert (await config.configuration()).api_key["BearerToken"] == "Bearer first"
    assert not config.stale()
    config._read -= 100
    assert config.stale()
    (tmp_path / "token").write_text("second")
    assert (await config.configuration()).api_key["BearerToken"] == "Bearer second"


async def test_a_socks_proxy_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="socks5") as refused:
        await made(tmp_path, {"proxy-url": "socks5://user:secret@localhost"}).configuration()
    assert "secret" not in str(refused.value)
    assert refused.value.hint


def test_a_plugins_answer_is_read_and_never_quoted() -> None:
    version = "client.authentication.k8s.io/v1"

    def answer(**status: str) -> bytes:
        return json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": status}).encode()

    found = _credential(answer(token="t", expirationTimestamp="2030-01-01T00:00:00Z"), version, "x")
    assert found.user == {"token": "t"}
    assert found.expires == 1893456000
    assert "'t'" not in repr(found)
    pair = _credential(answer(clientCertificateData="CERT", clientKeyData="KEY"), version, "x").user
    assert base64.b64decode(pair["client-key-data"]) == b"KEY"
    for wrong in (b"s3cret", answer(), answer(clientCertificateData="s3cret"), b'{"status": {"token": "s3cret"}}'):
        with pytest.raises(PermanentError) as refused:
            _credential(wrong, version, "x")
        assert "s3cret" not in str(refused.value)


def test_credentials_are_renewed_before_they_expire() -> None:
    now = time.time()
    assert Credentials({}, None).fresh(now)
    assert Credentials({}, now + 60).fresh(now)
    assert not Credentials({}, now + 5).fresh(now)


@pytest.mark.parametrize(
    ("where", "values", "words"),
    [
        ("users", {"client-certificate-data": "eA==", "client-key-data": "eA=="}, "client-certificate and client-key"),
        ("clusters", {"certificate-authority-data": "eA=="}, "certificate-authority"),
    ],
)
async def test_certificates_that_are_none_are_named(tmp_path: Path, where: str, values: Any, words: str) -> None:
    more = {"users": {}, "clusters": {}} | {where: values}
    config = write(
        tmp_path / "config",
        **{"current-context": "dev"},
        clusters=[entry("c", "cluster", server="https://c.invalid", **more["clusters"])],
        users=[entry("u", "user", **more["users"])],
        contexts=[entry("dev", "context", cluster="c", user="u")],
    )
    with pytest.raises(PermanentError) as raised:
        await Kubeconfig(config).configuration()
    assert words in raised.value.what
    assert raised.value.where == 'context "dev"'


def test_a_key_in_the_kubeconfig_gets_into_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed would leave it behind."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    key, certificate = ec.generate_private_key(ec.SECP256R1()), x509.CertificateBuilder()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ada")])
    now = datetime.now(UTC)
    certificate = certificate.subject_name(name).issuer_name(name).public_key(key.public_key())
    certificate = certificate.not_valid_before(now).not_valid_after(now + timedelta(1)).serial_number(1)
    signed = certificate.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    values = {"client-certificate-data": signed, "client-key-data": private}
    config = write(
        tmp_path / "config",
        **{"current-context": "dev"},
        clusters=[
            entry(
                "c", "cluster", server="https://c", **{"certificate-authority-data": base64.b64encode(signed).decode()}
            )
        ],
        users=[entry("u", "user", **{each: base64.b64encode(data).decode() for each, data in values.items()})],
        contexts=[entry("dev", "context", cluster="c", user="u")],
    )
    kubeconfig = Kubeconfig(config)
    settings = asyncio.run(kubeconfig.configuration())
    assert Path(settings.cert_file).read_bytes() == signed
    assert Path(settings.key_file).read_bytes() == private
    assert Path(settings.ssl_ca_cert).read_bytes() == signed
    assert list(temporary.iterdir()) == []
    again = asyncio.run(kubeconfig.configuration())
    assert (again.cert_file, again.key_file) == (settings.cert_file, settings.key_file), "no new connection for it"

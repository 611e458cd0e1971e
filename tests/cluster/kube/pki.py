"""The cluster's certificates and kubeconfigs, made anew for each cluster and gone with it."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .settings import NODE, Settings

LIFETIME = datetime.timedelta(days=30)


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as every Go program reads it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file that nobody else may read, not even for a moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode)
    path.chmod(mode)
    path.write_bytes(data)


def new_key() -> ec.EllipticCurvePrivateKey:
    """P-256: made in a millisecond, where RSA takes a tenth of a second for each of our ten."""
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True, slots=True)
class Authority:
    """The certificate authority that every part of the cluster trusts."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls) -> Authority:
        key = new_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "devloop test cluster")])
        builder = unsigned(name, name, key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """The authority of a running cluster, from its files."""
        certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls(certificate, key)

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str, group: str | None = None, hosts: Sequence[str] = ()) -> tuple[bytes, bytes]:
        """A certificate and its key, in PEM: `name` is the Kubernetes user, `group` one of its groups.

        Kubernetes reads the user from the common name and groups from the organizations
        (its authentication documentation, "X509 client certificates").
        """
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        if group:
            attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
        key = new_key()
        builder = unsigned(x509.Name(attributes), self.certificate.subject, key.public_key())
        usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if hosts:
            usage.append(ExtendedKeyUsageOID.SERVER_AUTH)
            builder = builder.add_extension(
                x509.SubjectAlternativeName([general_name(each) for each in hosts]), critical=False
            )
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
        )
        certificate = builder.sign(self.key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM), pem(key)


def unsigned(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    """What every certificate of ours starts from."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
    )


def general_name(host: str) -> x509.GeneralName:
    """A host as a subject alternative name: an address if it is one."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def kubeconfig(server: str, authority: bytes, user: str, certificate: bytes, key: bytes) -> dict[str, Any]:
    """A kubeconfig with everything inside, so that it works wherever it is copied to."""
    return kubeconfig_for(
        {"server": server, "certificate-authority-data": encoded(authority)},
        user,
        {"client-certificate-data": encoded(certificate), "client-key-data": encoded(key)},
    )


def kubeconfig_for(
    cluster: dict[str, Any], user: str, credentials: dict[str, Any], namespace: str = "default"
) -> dict[str, Any]:
    """A kubeconfig of one context, from the bodies of its `cluster` and its `user`."""
    context = {"cluster": "devloop-test", "user": user, "namespace": namespace}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "devloop-test",
        "clusters": [{"name": "devloop-test", "cluster": cluster}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": "devloop-test", "context": context}],
    }


def encoded(data: bytes) -> str:
    """Base64, as a kubeconfig's `-data` fields want it."""
    return base64.b64encode(data).decode()


def create(settings: Settings) -> Authority:
    """Write every certificate, key and kubeconfig of a new cluster to `state/etc`."""
    folder = settings.state / "etc"
    authority = Authority.create()
    write(folder / "ca.crt", authority.certificate_pem, 0o644)
    write(folder / "ca.key", pem(authority.key))
    signer = new_key()
    write(folder / "service-accounts.key", pem(signer))
    write(
        folder / "service-accounts.pub",
        signer.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    )
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
    services = [each.kubernetes for each in settings.families]
    addresses = [*settings.node_ips, settings.link_ips[1], *services, "127.0.0.1", "::1"]
    for file, user, group, hosts in (
        ("apiserver", "kube-apiserver", None, [*names, "kubernetes.default.svc.cluster.local", *addresses]),
        ("admin", "admin", "system:masters", []),
        ("controllers", "system:kube-controller-manager", None, []),
        ("scheduler", "system:kube-scheduler", None, []),
        ("proxy", "system:kube-proxy", None, []),
        ("kubelet", f"system:node:{NODE}", "system:nodes", [*settings.node_ips, NODE]),
        # What the API server shows to the kubelet.
        ("kubelet-client", "kube-apiserver-kubelet-client", "system:masters", []),
    ):
        certificate, key = authority.issue(user, group, hosts)
        write(folder / f"{file}.crt", certificate)
        write(folder / f"{file}.key", key)
        config = kubeconfig(settings.server, authority.certificate_pem, user, certificate, key)
        write(folder / f"{file}.conf", json.dumps(config, indent=2).encode())
    return authority

"""Certificates for tests: an authority, and what it signs. All PEM."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: str
    key: str

    def files(self, folder: Path, name: str) -> tuple[str, str]:
        """Both as files."""
        found = folder / f"{name}.crt", folder / f"{name}.key"
        for path, text in zip(found, (self.certificate, self.key), strict=True):
            path.write_text(text)
        return str(found[0]), str(found[1])


class Authority:
    """One that signs."""

    def __init__(self, name: str = "authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._signed = self._builder(self._name, self._key, ca=True).sign(self._key, hashes.SHA256())
        self.certificate = self._signed.public_bytes(Encoding.PEM).decode()

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool = False
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )

    def sign(self, name: str, *servers: str) -> Pair:
        """One for a server of these names, or a client."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(subject, key)
        if servers:
            names = x509.SubjectAlternativeName([x509.DNSName(each) for each in servers])
            builder = builder.add_extension(names, critical=False)
        made = builder.sign(self._key, hashes.SHA256())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Pair(made.public_bytes(Encoding.PEM).decode(), private.decode())


def server_context(folder: Path, pair: Pair, *alpn: str, client_ca: str = "", wanted: bool = True) -> ssl.SSLContext:
    """A server's. With `client_ca`, it asks for its clients' certificates, and does without none if they are wanted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair.files(folder, "server"))
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if client_ca:
        context.load_verify_locations(cadata=client_ca)
        context.verify_mode = ssl.CERT_REQUIRED if wanted else ssl.CERT_OPTIONAL
    return context


def client_context(folder: Path, ca: str, *alpn: str, pair: Pair | None = None) -> ssl.SSLContext:
    """A client's that trusts the authority."""
    context = ssl.create_default_context(cadata=ca)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if pair is not None:
        context.load_cert_chain(*pair.files(folder, "client"))
    return context

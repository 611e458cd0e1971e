"""With what TLS is ended at the agent, and made anew. Pure, but for `memory_folder`; shared with the engine.

An engine whose developer may read a Secret sends what is in it, by SSH. It is kept in this process, for as long as
something listens with it, and handed to Envoy by files in memory that are deleted as soon as Envoy has read them. It is
never written to a disk, and its text is in no message and no log: `repr` leaves it out.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

Document = dict[str, Any]
PINS = 16
"""So many of the original's keys are known at a time: the latest ones."""


class CertificateError(ValueError):
    """This is no certificate with its key; the text says why, and has nothing of them."""


@dataclass(frozen=True, slots=True)
class Termination:
    """One port's."""

    certificate: str = field(repr=False)
    """With its chain, PEM."""
    key: str = field(repr=False)
    alpn: tuple[str, ...] = ()
    """What the original takes (RFC 7301), of `h2` and `http/1.1`; empty: it asks for none, and speaks HTTP/1.1."""
    client_ca: str = field(default="", repr=False)
    """PEM. If there is one, clients have to show a certificate that it has signed."""
    client_certificate: str = field(default="", repr=False)
    """What is shown to the original, and its key."""
    client_key: str = field(default="", repr=False)
    pins: tuple[str, ...] = ()
    """Keys by which the original is known (`pin`); empty: it is not checked."""

    @property
    def http2(self) -> bool:
        """The original speaks HTTP/2."""
        return "h2" in self.alpn

    @property
    def http1(self) -> bool:
        """The original speaks HTTP/1.1."""
        return self.alpn != ("h2",)

    def document(self) -> Document:
        """As JSON has it, for the agent."""
        return {
            "certificate": self.certificate,
            "key": self.key,
            "alpn": list(self.alpn),
            "client_ca": self.client_ca,
            "client_certificate": self.client_certificate,
            "client_key": self.client_key,
            "pins": list(self.pins),
        }

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Termination:
        """From an engine. CertificateError."""
        try:
            made = cls(
                str(document["certificate"]),
                str(document["key"]),
                tuple(each for each in ("h2", "http/1.1") if each in document["alpn"]),
                str(document.get("client_ca", "")),
                str(document.get("client_certificate", "")),
                str(document.get("client_key", "")),
                tuple(map(str, document.get("pins", ()))),
            )
        except (KeyError, TypeError, AttributeError) as problem:
            raise CertificateError(f"this is no certificate: {type(problem).__name__}") from None
        check(made.certificate, made.key)
        if made.client_certificate:
            check(made.client_certificate, made.client_key)
        return made

    def after(self, before: Termination | None) -> Termination:
        """This one, where the other was: while pods take up a rotated certificate, they are known by either key."""
        if before is None or not self.pins or not before.pins:
            return self
        return replace(self, pins=tuple(dict.fromkeys((*self.pins, *before.pins)))[:PINS])


def check(certificate: str, key: str) -> None:
    """CertificateError: the two are not a certificate and its key, or Envoy does not take keys of that kind."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    try:
        private = load_pem_private_key(key.encode(), None)
    except (ValueError, TypeError):  # not its text: it may quote the key
        raise CertificateError("its tls.key is no private key in PEM without a password") from None
    if not isinstance(private, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise CertificateError("its tls.key is neither RSA nor an elliptic curve's, and Envoy takes no other kind")
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*form) != _leaf(certificate).public_key().public_bytes(*form):
        raise CertificateError("its tls.key does not belong to its tls.crt")


def _leaf(certificate: str) -> Any:
    from cryptography.x509 import load_pem_x509_certificates

    try:
        return load_pem_x509_certificates(certificate.encode())[0]
    except ValueError:
        raise CertificateError("its tls.crt is no certificate in PEM") from None


def names(certificate: str) -> tuple[str, ...]:
    """The names of servers that a certificate is for. CertificateError."""
    from cryptography.x509 import DNSName, ExtensionNotFound, SubjectAlternativeName

    try:
        found = _leaf(certificate).extensions.get_extension_for_class(SubjectAlternativeName)
    except ExtensionNotFound:
        return ()
    return tuple(found.value.get_values_for_type(DNSName))


def pin(certificate: str | bytes) -> str:
    """What Envoy knows a certificate's key by (`verify_certificate_spki`): PEM, or DER. CertificateError."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from cryptography.x509 import load_der_x509_certificate

    if isinstance(certificate, bytes):
        try:
            leaf: Any = load_der_x509_certificate(certificate)
        except ValueError:
            raise CertificateError("this is no certificate") from None
    else:
        leaf = _leaf(certificate)
    key = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(key).digest()).decode()


def memory_folder(mounts: str | None = None) -> Path | None:
    """Where files are in memory alone, or None. `mounts`: /proc/self/mounts' text."""
    text = Path("/proc/self/mounts").read_text() if mounts is None else mounts
    kinds = {parts[1]: parts[2] for line in text.splitlines() if len(parts := line.split()) > 2}
    return Path("/dev/shm") if kinds.get("/dev/shm") in ("tmpfs", "ramfs") else None

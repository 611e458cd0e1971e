"""What Envoy needs to end TLS at a port and to make it anew, as parts of its configuration. Pure: see `envoy.py`.

Keys and certificates are secrets of Envoy's, each in a file of its own (SDS), so that a rotated one is taken up without
a change of any listener or cluster: no connection ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .plan import PortPlan, ServicePlan

Document = dict[str, Any]
_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
_RAW = "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
_MATCH = "envoy.transport_socket_match"


class Files:
    """The secrets of one port; `memory` is the folder of their files."""

    def __init__(self, plan: ServicePlan, port: PortPlan, memory: str) -> None:
        self._tls = port.tls
        self._base = f"{plan.name}-{port.number}{plan.at}"
        self._memory = memory

    def documents(self) -> Iterator[tuple[str, Document]]:
        """Each secret and its name."""
        tls = self._tls
        if tls is None:
            return
        yield self._named("server", {"tls_certificate": _pair(tls.certificate, tls.key)})
        if tls.client_ca:
            yield self._named("clients", {"validation_context": {"trusted_ca": {"inline_string": tls.client_ca}}})
        if tls.client_certificate:
            yield self._named("client", {"tls_certificate": _pair(tls.client_certificate, tls.client_key)})
        if tls.pins:
            yield self._named("original", {"validation_context": {"verify_certificate_spki": list(tls.pins)}})

    def _named(self, which: str, document: Document) -> tuple[str, Document]:
        name = f"{self._base}-{which}"
        return name, {"name": name, **document}

    def _sds(self, which: str) -> Document:
        name = f"{self._base}-{which}"
        path = {"path": f"{self._memory}/sds/{name}.json"}
        return {"name": name, "sds_config": {"resource_api_version": "V3", "path_config_source": path}}

    def downstream(self, *alpn: str) -> Document:
        """For a listener's chain."""
        assert self._tls is not None
        common: Document = {"tls_certificate_sds_secret_configs": [self._sds("server")]}
        if alpn:
            common["alpn_protocols"] = list(alpn)
        config: Document = {"common_tls_context": common}
        if self._tls.client_ca:
            common["validation_context_sds_secret_config"] = self._sds("clients")
            config["require_client_certificate"] = True
        return _socket("DownstreamTlsContext", config)

    def upstream(self) -> Document:
        """For a cluster with the original's pods in it: what is added to it. Nothing where there is no TLS."""
        if self._tls is None:
            return {}
        common: Document = {}
        if self._tls.client_certificate:
            common["tls_certificate_sds_secret_configs"] = [self._sds("client")]
        if self._tls.pins:
            common["validation_context_sds_secret_config"] = self._sds("original")
        raw = {"name": "envoy.transport_sockets.raw_buffer", "typed_config": {"@type": _RAW}}
        # The way to a developer is by a unix socket and SSH. TLS with the local service is made at its end.
        return {
            "transport_socket": _socket("UpstreamTlsContext", {"common_tls_context": common}),
            "transport_socket_matches": [{"name": "plain", "match": {"plain": True}, "transport_socket": raw}],
        }

    @property
    def plain(self) -> Document:
        """For an endpoint that speaks no TLS."""
        return {"metadata": {"filter_metadata": {_MATCH: {"plain": True}}}} if self._tls is not None else {}


def _pair(certificate: str, key: str) -> Document:
    return {"certificate_chain": {"inline_string": certificate}, "private_key": {"inline_string": key}}


def _socket(kind: str, config: Document) -> Document:
    return {"name": "envoy.transport_sockets.tls", "typed_config": {"@type": f"{_TLS}.{kind}", **config}}

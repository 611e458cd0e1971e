"""Envoy's configuration, as files, from what is attached. Pure: a `ServicePlan` goes in, documents come out.

For each port of a Service whose selector leads to the agent there is

- a listener, which looks at the first bytes where the protocol is not known (`detect`);
- a cluster `original`, the pods that the Service had; Envoy balances between them itself;
- for each developer who has some of it, a cluster `local`: their unix socket first, the original pods as what is
  tried next. A request whose connection was never made, or was lost before it was answered, goes there;
- a table of routes for HTTP/1 and one for HTTP/2. They differ in what may be tried again: on HTTP/1 the relay
  answers (502) when a request was given to the local service and must not be repeated, so that whatever ends
  without an answer may be; on HTTP/2 only what was refused, or is idempotent (RFC 9110, 9.2.2).

Where a Service's traffic goes by way of its pods, each pod has a plan of its own, in which the original is that pod.

Routes and endpoints change without a listener's change, so no connection is drained when a developer comes or goes.
When the last one has left, the listener stays until its last connection has ended (`leaving.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from . import encryption, routes, untouched
from .plan import (
    Local,
    PortPlan,
    ServicePlan,
    grpc_name,
    local_name,
    original_name,
    reaching,
    sni_name,
    socket_path,
    table_name,
    taking,
)
from .protocols import ENCRYPTED
from .records import HTTP, LINE, TCP
from .routes import TYPE, typed
from .runner import HEAP_BYTES
from .spec import WHOLE, Spec

Document = dict[str, Any]

HELLO_SECONDS = 60.0
"""The same of a client of TLS, which always speaks first."""
DETECT_SECONDS = 0.5
"""How long the first bytes of a connection are waited for; in protocols where the server speaks first, none come."""
ORIGINAL_IDLE = "1s"
"""Shorter than servers keep idle connections: else a request may meet a connection that is just being closed."""
LOCAL_IDLE = "60s"
RUNTIME = {
    "overload.premature_reset_total_stream_count": 1_000_000_000,
    "http.max_requests_per_io_cycle": 64,
}
"""The first: Envoy ends a connection on which 500 calls were cancelled, most of them early: a guard against strangers.
Here it cuts gRPC clients whose calls have short deadlines, with all else that is under way on their connection. So the
second stands in: whoever sends calls and cancels them as fast as they can keeps nobody else waiting (CVE-2023-44487).
"""
HEADERS, HEADERS_KB = 1000, 1024
"""Of answers: more than any server gives. Envoy's own limits are 100 and 80 KiB."""
REQUEST_KB = 128
"""The head of a request. Common servers take 8 to 64 KiB; until it is whole, it is memory of the agent's that any
stranger can fill."""
HEAD_SECONDS = 10
"""So long may a head take from its first byte to its last."""
DRAIN_SECONDS = 0.5
"""HTTP/2: from the GOAWAY that tells of another one to that one, after which calls are refused. Many round trips."""
CONNECTIONS = 8192
"""Clients of all Services together, at most."""
PRESSURE = "pressure"
"""The file by which Envoy is told to end connections at rest: 0, or 1."""
REST = "0.3s"
"""So long is a connection at rest before it is ended then."""
STREAM_WINDOW, CONNECTION_WINDOW, STREAMS = 1 << 20, 8 << 20, 1024
"""HTTP/2: what one call, and all calls of a connection, may send ahead of who reads it."""


# --- Bootstrap ----------------------------------------------------------------------------------------------------


def bootstrap(folder: str) -> Document:
    """What Envoy is started with: everything else comes from files in `folder`."""
    return {
        "node": {"id": "devloop-agent", "cluster": "devloop"},
        "admin": {"address": {"pipe": {"path": f"{folder}/admin.sock", "mode": 0o600}}},
        "dynamic_resources": {
            "lds_config": _from_file(f"{folder}/lds.json"),
            "cds_config": _from_file(f"{folder}/cds.json"),
        },
        "layered_runtime": {"layers": [{"name": "static", "static_layer": RUNTIME}]},
        "overload_manager": _overload(folder),
    }


def _overload(folder: str) -> Document:
    """What Envoy gives up when it has much memory, the least important first: timeouts, then calls that hold much.

    And what it gives up when it is told to: connections at rest (`PRESSURE`).
    """

    def when(name: str, pressure: float, **config: Any) -> Document:
        return {"name": f"envoy.overload_actions.{name}", "triggers": [_at(pressure)], **config}

    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            {
                "name": _HEAP,
                "typed_config": typed(
                    "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=HEAP_BYTES
                ),
            },
            {
                "name": _TOLD,
                "typed_config": typed(
                    "envoy.extensions.resource_monitors.injected_resource.v3.InjectedResourceConfig",
                    filename=f"{folder}/{PRESSURE}",
                ),
            },
            {
                "name": "envoy.resource_monitors.global_downstream_max_connections",
                "typed_config": typed(
                    "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=CONNECTIONS,
                ),
            },
        ],
        "actions": [
            when("shrink_heap", 0.8),
            when("disable_http_keepalive", 0.9),
            {"name": "envoy.overload_actions.reset_high_memory_stream", "triggers": [_between(0.85, 0.95)]},
            when("stop_accepting_connections", 0.97),
            {
                "name": "envoy.overload_actions.reduce_timeouts",
                "triggers": [{"name": _TOLD, "threshold": {"value": 0.5}}],
                "typed_config": typed(
                    "envoy.config.overload.v3.ScaleTimersOverloadActionConfig",
                    timer_scale_factors=[{"timer": "HTTP_DOWNSTREAM_CONNECTION_IDLE", "min_timeout": REST}],
                ),
            },
        ],
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": 20},
    }


_HEAP = "envoy.resource_monitors.fixed_heap"
_TOLD = "envoy.resource_monitors.injected_resource"


def _at(pressure: float) -> Document:
    return {"name": _HEAP, "threshold": {"value": pressure}}


def _between(low: float, high: float) -> Document:
    return {"name": _HEAP, "scaled": {"scaling_threshold": low, "saturation_threshold": high}}


def _from_file(path: str) -> Document:
    return {"resource_api_version": "V3", "path_config_source": {"path": path}}


# --- The files ----------------------------------------------------------------------------------------------------


def files(plans: Iterable[ServicePlan], folder: str, *, address: str = "0.0.0.0", memory: str = "") -> dict[str, str]:
    """File name (relative to `folder`) to content, for all that is attached. The same plans give the same text.

    Those below `sds/` hold keys, and belong below `memory`, where nothing is on a disk.
    """
    listeners: list[Document] = []
    clusters: list[Document] = []
    out: dict[str, str] = {}
    for plan in sorted(plans, key=lambda each: each.key):
        for port in plan.ports:
            secrets = encryption.Files(plan, port, memory)
            if plan.listening:
                listeners.append(_only(plan.clients, _listener(plan, port, folder, address, secrets)))
            for name, secret in secrets.documents():
                out[f"sds/{name}.json"] = _response("envoy.extensions.transport_sockets.tls.v3.Secret", [secret])
            for assignment, cluster in _clusters(plan, port, folder, secrets):
                name = cluster["name"]
                clusters.append(cluster)
                out[f"eds/{name}.json"] = _response("envoy.config.endpoint.v3.ClusterLoadAssignment", [assignment])
            if _has_http(port):
                for version in (1, 2) if port.tls is None or port.tls.http2 else (1,):
                    table = routes.table(plan, port, version)
                    out[f"rds/{table['name']}.json"] = _response("envoy.config.route.v3.RouteConfiguration", [table])
    out["cds.json"] = _response("envoy.config.cluster.v3.Cluster", clusters)
    out["lds.json"] = _response("envoy.config.listener.v3.Listener", listeners)
    return out


def merged(old: str, new: str) -> str:
    """cds.json with the clusters of both, so that no route ever leads to one that has gone."""
    kind = "envoy.config.cluster.v3.Cluster"
    named = {each["name"]: each for text in (old, new) for each in json.loads(text)["resources"]}
    resources = [{key: value for key, value in each.items() if key != "@type"} for each in named.values()]
    return _response(kind, sorted(resources, key=lambda each: str(each["name"])))


def version(text: str) -> str:
    """The version of a file's content, which Envoy shows when it has taken it."""
    return str(json.loads(text)["version_info"])


def _response(kind: str, resources: list[Document]) -> str:
    typed = [{"@type": f"{TYPE}{kind}", **each} for each in resources]
    text = json.dumps(typed, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return json.dumps({"version_info": digest, "resources": typed}, sort_keys=True)


# --- Listeners ----------------------------------------------------------------------------------------------------


def _has_http(port: PortPlan) -> bool:
    """What HTTP says at this port can be seen."""
    return port.protocol != "tcp" and (port.protocol not in ENCRYPTED or port.tls is not None)


def _has_connections(port: PortPlan) -> bool:
    """Connections come to this port of which nothing more is seen."""
    return port.protocol in ("tcp", "detect", *ENCRYPTED)


def _inspector(name: str, kind: str) -> Document:
    return {
        "name": f"envoy.filters.listener.{name}",
        "typed_config": typed(f"envoy.extensions.filters.listener.{name}.v3.{kind}"),
    }


def _listener(plan: ServicePlan, port: PortPlan, folder: str, address: str, secrets: encryption.Files) -> Document:
    out: Document = {
        "name": f"{plan.name}-{port.number}{plan.at}",
        "stat_prefix": str(port.listener),
        "address": {
            "socket_address": {"address": address, "port_value": port.listener, "ipv4_compat": address == "::"}
        },
    }
    tcp = {"filters": [_tcp_proxy(plan, port)]}
    if port.protocol == "tcp":
        return out | {"filter_chains": [tcp]}
    encrypted = port.protocol in ENCRYPTED
    http = [] if encrypted else [_inspector("http_inspector", "HttpInspector")]
    tls = [_inspector("tls_inspector", "TlsInspector")] if encrypted or port.protocol == "detect" else []
    out["listener_filters"] = tls + http
    out["listener_filters_timeout"] = f"{HELLO_SECONDS if encrypted else DETECT_SECONDS:g}s"
    out["continue_on_listener_filters_timeout"] = True
    if encrypted:
        return (
            out
            | {"filter_chains": [*_by_name(plan, port), *_inside(plan, port, folder, secrets)]}
            | ({"default_filter_chain": tcp})
        )
    # `raw_buffer`: what TLS offers to speak inside (ALPN) looks the same.
    plain: Document = {"transport_protocol": "raw_buffer"}
    out["filter_chains"] = [
        {
            "filter_chain_match": {**plain, "application_protocols": ["http/1.0", "http/1.1"]},
            "filters": [_http(plan, port, folder, 1, "HTTP1")],
        },
        {
            "filter_chain_match": {**plain, "application_protocols": ["h2c"]},
            "filters": [_http(plan, port, folder, 2, "HTTP2")],
        },
    ]
    if port.protocol == "detect":
        out["default_filter_chain"] = tcp
    else:
        # A client that connects long before it asks; and a first line that the inspector doesn't know.
        codec = ("HTTP2", 2) if port.protocol == "http2" else ("AUTO", 1)
        out["default_filter_chain"] = {"filters": [_http(plan, port, folder, codec[1], codec[0])]}
    return out


def _only(clients: Sequence[str], listener: Document) -> Document:
    """The listener, for connections from these addresses alone; others fit none of its chains, and are closed.

    Envoy takes the default chain for what fits no other, so what it is for is said: whatever is no TLS, and TLS.
    """
    if not clients:
        return listener
    default = listener.pop("default_filter_chain", None)
    chains = list(listener["filter_chains"])
    if default is not None:
        known = [each.get("filter_chain_match") for each in chains]
        matches: list[Document] = [{"transport_protocol": each} for each in ("raw_buffer", "tls")]
        chains += [{**default, "filter_chain_match": each} for each in matches if each not in known]
    own = [{"address_prefix": each, "prefix_len": 128 if ":" in each else 32} for each in clients]
    listener["filter_chains"] = [
        {**each, "filter_chain_match": {**each.get("filter_chain_match", {}), "source_prefix_ranges": own}}
        for each in chains
    ]
    return listener


def _by_name(plan: ServicePlan, port: PortPlan) -> list[Document]:
    """Connections of TLS that somebody takes by the name of the server; they pass as they are."""
    found, seen = [], set[str]()
    for local in taking(plan, port, "intercept", "replace"):
        mine = [route.sni for route in local.spec.routes if route.sni and route.sni not in seen]
        seen.update(mine)
        if mine:
            match = {"transport_protocol": "tls", "server_names": mine}
            proxy = _tcp_proxy(plan, port, sni_name(plan, port, local.spec))
            found.append({"name": f"sni-{local.spec.id}", "filter_chain_match": match, "filters": [proxy]})
    return found


def _inside(plan: ServicePlan, port: PortPlan, folder: str, secrets: encryption.Files) -> list[Document]:
    """Where TLS is ended, to see the requests. Each version of HTTP has a chain, since its table is another."""
    if port.tls is None:
        return []
    chains = []
    if port.tls.http2:
        match = {"transport_protocol": "tls", "application_protocols": ["h2"]}
        http = _http(plan, port, folder, 2, "HTTP2")
        chains.append(("h2", match, http, secrets.downstream("h2")))
    http1 = ["http/1.1"] if "http/1.1" in port.tls.alpn else []
    http = _http(plan, port, folder, 1, "AUTO")
    chains.append(("http/1.1", {"transport_protocol": "tls"}, http, secrets.downstream(*http1)))
    return [
        {"name": name, "filter_chain_match": match, "filters": [filters], "transport_socket": socket}
        for name, match, filters, socket in chains
    ]


def _http(plan: ServicePlan, port: PortPlan, folder: str, version: int, codec: str) -> Document:
    """A connection manager that changes nothing of a request: as if it was not there."""
    table = table_name(plan, port, version)
    config = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=f"{plan.name}-{port.number}{plan.at}",
        codec_type=codec,
        rds={"route_config_name": table, "config_source": _from_file(f"{folder}/rds/{table}.json")},
        http_filters=[routes.leave_filter(), *untouched.filters(), _ROUTER],
        upgrade_configs=[
            {
                "upgrade_type": "websocket",
                "filters": [routes.leave_filter(), *untouched.upgrade_filters(), _ROUTER],
            }
        ],
        early_header_mutation_extensions=[untouched.early()],
        access_log=[_log(plan, port, HTTP)],
        generate_request_id=False,
        preserve_external_request_id=True,
        skip_xff_append=True,
        # By default Envoy takes away what a mesh's proxies have said of the client.
        forward_client_cert_details="ALWAYS_FORWARD_ONLY",
        # Else Envoy says "100 Continue" by itself, and a service can't refuse a body before it is sent.
        proxy_100_continue=True,
        server_header_transformation="PASS_THROUGH",
        normalize_path=False,
        merge_slashes=False,
        stream_idle_timeout="0s",
        request_timeout="0s",
        max_request_headers_kb=REQUEST_KB,
        request_headers_timeout=f"{HEAD_SECONDS}s",
        http_protocol_options={
            "accept_http_10": True,
            "default_host_for_http_10": plan.name,
            "header_key_format": _PRESERVE_CASE,
            "enable_trailers": True,
        },
        http2_protocol_options={
            "allow_connect": True,
            "max_concurrent_streams": STREAMS,
            "initial_stream_window_size": STREAM_WINDOW,
            "initial_connection_window_size": CONNECTION_WINDOW,
        },
        common_http_protocol_options={"idle_timeout": "3600s", "max_headers_count": HEADERS},
        delayed_close_timeout="0.1s",
        drain_timeout=f"{DRAIN_SECONDS}s",
    )
    if port.tls is not None and port.tls.client_ca:
        # Who has asked is said to the local service and the original alike; a client can't say it of itself.
        details = {"subject": True, "cert": True, "chain": True, "dns": True, "uri": True}
        config |= {"forward_client_cert_details": "SANITIZE_SET", "set_current_client_cert_details": details}
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": config}


_ROUTER: Document = {
    "name": "envoy.filters.http.router",
    "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", suppress_envoy_headers=True),
}
_PRESERVE_CASE = {
    "stateful_formatter": {
        "name": "preserve_case",
        "typed_config": typed(
            "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig",
            forward_reason_phrase=True,
        ),
    }
}


def _tcp_name(plan: ServicePlan, port: PortPlan) -> str:
    return f"tcp-{plan.name}-{port.number}{plan.at}"


def _tcp_proxy(plan: ServicePlan, port: PortPlan, cluster: str = "") -> Document:
    config = typed(
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix=f"{plan.name}-{port.number}{plan.at}",
        cluster=cluster or _tcp_name(plan, port),
        idle_timeout="0s",
        max_connect_attempts=3,
        access_log=[_log(plan, port, TCP)],
    )
    if plan.sticky:
        config["hash_policy"] = [{"source_ip": {}}]
    return {"name": "envoy.filters.network.tcp_proxy", "typed_config": config}


def _log(plan: ServicePlan, port: PortPlan, what: str) -> Document:
    fields = LINE.format(service=plan.name, port=port.number, what=what)
    return {
        "name": "envoy.access_loggers.stdout",
        "typed_config": typed(
            "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            log_format={"text_format_source": {"inline_string": fields}},
        ),
    }


# --- Clusters -----------------------------------------------------------------------------------------------------


def _clusters(
    plan: ServicePlan, port: PortPlan, folder: str, secrets: encryption.Files
) -> Iterator[tuple[Document, Document]]:
    pods = [_endpoint(address, number, port.also.get(address)) for address, number in port.endpoints]
    balance = "RING_HASH" if plan.sticky else "LEAST_REQUEST"
    connections = "RING_HASH" if plan.sticky else "ROUND_ROBIN"
    upstream = secrets.upstream()
    if _has_http(port):
        name = original_name(plan, port)
        yield _assignment(name, [pods]), _cluster(name, folder, balance, _options(ORIGINAL_IDLE, port)) | upstream
        for spec in reaching(plan, port):
            pipe = [_pipe(socket_path(folder, spec.id, port.number, plan.at)) | secrets.plain]
            # A copy must never be answered by the original: that would be the same request twice.
            open_ = spec.fail == "open" and spec.kind != "wiretap" and pods
            levels = [pipe, pods] if open_ else [pipe]
            for name, speaks in _locals(plan, port, spec):
                options = _options(LOCAL_IDLE, port, speaks)
                yield _assignment(name, levels), _cluster(name, folder, balance, options) | upstream
    if _has_connections(port):
        name = _tcp_name(plan, port)
        yield _assignment(name, _tcp_endpoints(plan, port, folder, pods)), _cluster(name, folder, connections)
    if port.protocol in ENCRYPTED:
        for local in taking(plan, port, "intercept", "replace"):
            if any(route.sni for route in local.spec.routes):
                name = sni_name(plan, port, local.spec)
                pipe = [_pipe(socket_path(folder, local.spec.id, port.number, plan.at))]
                level = pods if not local.up and local.spec.fail == "open" else pipe
                yield _assignment(name, [level]), _cluster(name, folder, connections)


def _locals(plan: ServicePlan, port: PortPlan, spec: Spec) -> list[tuple[str, int | None]]:
    """The clusters of one attachment, and which HTTP each speaks; None: as the client.

    Who speaks HTTP/2 in TLS does so since both ends could, by ALPN. In plain text there is no such choice, and servers
    that people run on their machines speak HTTP/1.1, but for gRPC's. So that is what they are asked in.
    """
    name = local_name(plan, port, spec)
    if port.tls is None:
        return [(name, None)]
    if not port.tls.http1:
        return [(name, 2)]
    return [(name, 1), (grpc_name(plan, port, spec), 2)] if port.tls.http2 else [(name, 1)]


def _tcp_endpoints(plan: ServicePlan, port: PortPlan, folder: str, pods: list[Document]) -> list[list[Document]]:
    """Who answers connections of which no request is seen: whole ones first, or weights for shares."""
    takers = [
        (local, route.share)
        for local in taking(plan, port, "intercept", "replace")
        for route in local.spec.routes
        if not route.conditional and (local.up or local.spec.fail == "closed")
        # One that speaks no TLS has no use for it.
        if port.protocol not in ENCRYPTED or local.spec.local == "tls"
    ]

    def pipe(local: Local) -> Document:
        return _pipe(socket_path(folder, local.spec.id, port.number, plan.at))

    for local, share in takers:
        if share == WHOLE:
            return [[pipe(local)], pods] if local.spec.fail == "open" and pods else [[pipe(local)]]
    rest = WHOLE - sum(share for _, share in takers)
    count = max(len(pods), 1)
    weighted = [{**pipe(local), "load_balancing_weight": max(1, round(share * 100 * count))} for local, share in takers]
    weight = round(rest * 100)
    return [weighted + [{**each, "load_balancing_weight": weight} for each in pods if weight]]


def _cluster(name: str, folder: str, balance: str, options: Document | None = None) -> Document:
    most = 1_000_000  # no limit of our own: the defaults (1024, and 3 retries) fail requests under load
    out: Document = {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": _from_file(f"{folder}/eds/{name}.json")},
        "lb_policy": balance,
        "connect_timeout": "2s",
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "circuit_breakers": {
            "thresholds": [
                {
                    "priority": "DEFAULT",
                    "max_connections": most,
                    "max_pending_requests": most,
                    "max_requests": most,
                    "max_retries": most,
                }
            ]
        },
    }
    if options is not None:
        out["typed_extension_protocol_options"] = {_OPTIONS: options}
    return out


_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def _options(idle: str, port: PortPlan, speaks: int | None = None) -> Document:
    """A cluster's HTTP: of that version, or of the client's."""
    http1: Document = {"http_protocol_options": {"header_key_format": _PRESERVE_CASE, "enable_trailers": True}}
    http2: Document = {"http2_protocol_options": {"allow_connect": True}}
    how = {
        None: {"use_downstream_protocol_config": http1 | http2},
        1: {"explicit_http_config": http1},
        2: {"explicit_http_config": http2},
    }[speaks]
    if port.tls is not None:
        how = how | {"upstream_http_protocol_options": {"auto_sni": True}}
    return typed(
        _OPTIONS,
        common_http_protocol_options={
            "idle_timeout": idle,
            "max_headers_count": HEADERS,
            "max_response_headers_kb": HEADERS_KB,
        },
        http_filters=untouched.upstream_filters(),
        **how,
    )


def _assignment(name: str, priorities: list[list[Document]]) -> Document:
    return {
        "cluster_name": name,
        "endpoints": [
            {"priority": number, "lb_endpoints": endpoints}
            for number, endpoints in enumerate(each for each in priorities if each)
        ],
    }


def _endpoint(address: str, port: int, also: str | None = None) -> Document:
    """`also`: Envoy connects there if it is refused at the first, or gets no answer for 0.3 s (RFC 8305)."""
    out = {"address": {"socket_address": {"address": address, "port_value": port}}}
    if also is None:
        return {"endpoint": out}
    other = {"address": {"socket_address": {"address": also, "port_value": port}}}
    return {"endpoint": {**out, "additional_addresses": [other]}}


def _pipe(path: str) -> Document:
    return {"endpoint": {"address": {"pipe": {"path": path}}}}

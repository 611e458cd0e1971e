"""Envoy's tables of routes. Pure: see `envoy.py`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .plan import Local, PortPlan, ServicePlan, grpc_name, local_name, original_name, table_name, taking
from .spec import WHOLE, Header, Match, Route

Document = dict[str, Any]

TYPE = "type.googleapis.com/"
IDEMPOTENT = "GET|HEAD|OPTIONS|TRACE|PUT|DELETE"
LEAVE = "leave"
"""The filter that asks a client to connect anew when it has been answered. It is off unless a table switches it on."""
_LEAVE = "function envoy_on_request(handle) handle:streamInfo():drainConnectionUponCompletion() end"


def typed(kind: str, **fields: Any) -> Document:
    """A message of one of Envoy's types."""
    return {"@type": f"{TYPE}{kind}", **fields}


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the halves of a table."""

    version: int
    """Of the HTTP that local services are asked in."""
    grpc: bool | None = None
    """For gRPC calls alone; None: whatever comes."""


def variants(port: PortPlan, version: int) -> list[Variant]:
    """A table is for one version of HTTP; where TLS is ended, gRPC calls alone go to local services in HTTP/2."""
    if port.tls is None or not port.tls.http1:
        return [Variant(version)]
    return [Variant(2, grpc=True), Variant(1)] if version == 2 else [Variant(1)]


def table(plan: ServicePlan, port: PortPlan, version: int) -> Document:
    """What leads where, for one version of HTTP."""
    out: Document = {
        "name": table_name(plan, port, version),
        "virtual_hosts": [
            {
                "name": "all",
                "domains": ["*"],
                "routes": [each for variant in variants(port, version) for each in _routes(plan, port, variant)],
            }
        ],
    }
    if plan.leaving:
        script = typed(f"{_LUA}.LuaPerRoute", source_code={"inline_string": _LEAVE})
        out["typed_per_filter_config"] = {LEAVE: typed("envoy.config.route.v3.FilterConfig", config=script)}
    return out


def _routes(plan: ServicePlan, port: PortPlan, variant: Variant) -> list[Document]:
    """Whole routes first, then shares, then what is copied, then the rest: to the original pods."""
    takers = [(local, route) for local in taking(plan, port, "intercept", "replace") for route in local.spec.routes]
    takers = [(local, route) for local, route in takers if not route.sni]  # another of the listener's chains
    takers.sort(key=lambda pair: pair[1].share < WHOLE)  # stable: first come, first served
    taps = [(local, route) for local in taking(plan, port, "wiretap") if local.up for route in local.spec.routes]
    routes: list[Document] = []
    laid: dict[str, float] = {}
    for local, route in takers:
        taken = 0.0
        if route.share < WHOLE:
            # One draw decides for a whole request: shares of the same requests lie side by side in it. Also one that
            # is down keeps its place: else the next one's would move.
            place = str(route.headers) + str(route.path) + route.method
            taken = laid[place] = laid.get(place, 0.0) + route.share
        if not local.up and local.spec.fail == "open":
            if taken:
                original = {"cluster": original_name(plan, port)}
                routes += _both(original, route, "original", plan, variant, share=taken, local=False)
            continue
        name = _name(plan, port, local, variant)
        if local.up:
            action: Document = {"cluster": name}
            routes += _both(action, route, local.spec.id, plan, variant, share=taken, local=True)
        else:
            match = _condition(route, taken, variant)
            routes.append(
                {
                    "name": local.spec.id,
                    "match": match,
                    "direct_response": {
                        "status": 503,
                        "body": {"inline_string": f"{local.spec.who} holds this, and is not there (fail = closed)\n"},
                    },
                }
            )
    everywhere = [_mirror(local, route, plan, port, variant) for local, route in taps if not route.conditional]
    seen: set[str] = set()
    for _, route in taps:
        place = str(route.headers) + str(route.path) + route.method
        if not route.conditional or place in seen:
            continue
        seen.add(place)
        same = [
            _mirror(tap, each, plan, port, variant)
            for tap, each in taps
            if str(each.headers) + str(each.path) + each.method == place
        ]
        copied = {"cluster": original_name(plan, port), "request_mirror_policies": everywhere + same}
        routes += _both(copied, route, "original", plan, variant, share=0, local=False)
    rest: Document = {"cluster": original_name(plan, port)}
    if everywhere:
        rest["request_mirror_policies"] = everywhere
    routes += _both(rest, Route(), "original", plan, variant, share=0, local=False)
    return routes


def _name(plan: ServicePlan, port: PortPlan, local: Local, variant: Variant) -> str:
    return (grpc_name if variant.grpc else local_name)(plan, port, local.spec)


_LUA = "envoy.extensions.filters.http.lua.v3"


def leave_filter() -> Document:
    """For a listener's filters. `connection: close` on HTTP/1.1; a GOAWAY, and soon another one, on HTTP/2.

    A listener that Envoy removes does the same, but it ends what is still connected after a time, and takes nobody who
    comes late.
    """
    return {"name": LEAVE, "typed_config": typed(f"{_LUA}.Lua"), "disabled": True}


def _mirror(local: Local, route: Route, plan: ServicePlan, port: PortPlan, variant: Variant) -> Document:
    out: Document = {"cluster": _name(plan, port, local, variant), "disable_shadow_host_suffix_append": True}
    if route.share < WHOLE:
        out["runtime_fraction"] = _fraction(route.share)
    return out


def _both(
    action: Document, route: Route, name: str, plan: ServicePlan, variant: Variant, *, share: float, local: bool
) -> list[Document]:
    """The route for methods that may be repeated, and for those that may not."""
    action = {"timeout": "0s", **action}
    if plan.sticky:
        action["hash_policy"] = [{"connection_properties": {"source_ip": True}}]
    condition = _condition(route, share, variant)
    safe = "reset,connect-failure,refused-stream"
    strict = safe if local and variant.version == 1 else "reset-before-request,connect-failure,refused-stream"

    def policy(on: str) -> Document:
        out: Document = {
            "retry_on": on,
            "num_retries": 3,
            "retry_back_off": {"base_interval": "0.005s"},
            # A pod that has just ended refuses at once, and so looks like the one with the least to do.
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": typed("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"),
                }
            ],
            "host_selection_retry_max_attempts": 5,
        }
        if local:
            out["retry_priority"] = {
                "name": "envoy.retry_priorities.previous_priorities",
                "typed_config": typed(
                    "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
                    update_frequency=1,
                ),
            }
        return out

    if strict == safe:
        return [{"name": name, "match": condition, "route": {**action, "retry_policy": policy(safe)}}]
    methods = {"name": ":method", "string_match": {"safe_regex": {"regex": IDEMPOTENT}}}
    repeatable = {**condition, "headers": [*condition.get("headers", []), methods]}
    return [
        {"name": name, "match": repeatable, "route": {**action, "retry_policy": policy(safe)}},
        {"name": name, "match": condition, "route": {**action, "retry_policy": policy(strict)}},
    ]


def _condition(route: Route, share: float, variant: Variant) -> Document:
    out: Document = {"safe_regex": {"regex": ".*"}}
    if route.path is not None:
        key = {"exact": "path", "prefix": "prefix", "regex": "safe_regex"}[route.path.how]
        out = {key: {"regex": route.path.value} if key == "safe_regex" else route.path.value}
    headers = [_header(each) for each in route.headers]
    if route.method:
        headers.append({"name": ":method", "string_match": {"exact": route.method}})
    if variant.grpc:
        headers.append({"name": "content-type", "string_match": {"prefix": "application/grpc"}})
    if headers:
        out["headers"] = headers
    if share:
        out["runtime_fraction"] = _fraction(share)
    return out


def _fraction(share: float) -> Document:
    return {"default_value": {"numerator": round(share * 10_000), "denominator": "MILLION"}}


def _header(header: Header) -> Document:
    match: Match = header.match
    if header.entry:
        entry = f"{re.escape(header.entry)}[ \\t]*=[ \\t]*{re.escape(match.value)}"
        # W3C Baggage, 3.3.1: entries are parted by commas, an entry's properties follow after a semicolon.
        text: Document = {"safe_regex": {"regex": f"(.*,)?[ \\t]*{entry}[ \\t]*([;,].*)?"}}
    elif match.how == "regex":
        text = {"safe_regex": {"regex": match.value}}
    else:
        text = {match.how: match.value}
    return {"name": header.name, "string_match": text}

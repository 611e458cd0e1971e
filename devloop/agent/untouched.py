"""What keeps Envoy from changing what HTTP requests and answers say. Pure: parts of its configuration (`envoy.py`).

- Envoy adds `x-forwarded-proto` to a request that has none. What the client has said of it is noted before, and put
  back after: the same, or nothing.
- A WebSocket that is refused with a status below 400 loses its body: Envoy's router waits for 101, or for an error, and
  takes anything else for an answer without a body. It looks at the request's `upgrade` for that. So that has another
  value while the router sees it, and its own again on its way to the upstream.
"""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]

PROTO, UPGRADE = "x-devloop-proto", "x-devloop-upgrade"
"""Where a request keeps what it has said, inside Envoy. Nobody outside sees them."""
_TYPE = "type.googleapis.com/envoy.extensions"
_WAITS = "devloop"


def early() -> Document:
    """For a connection manager: the first thing that is done to a request."""
    kind = f"{_TYPE}.http.early_header_mutation.header_mutation.v3.HeaderMutation"
    mutations = [{"remove": PROTO}, {"remove": UPGRADE}, _put(PROTO, "x-forwarded-proto")]
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {"@type": kind, "mutations": mutations},
    }


def filters() -> list[Document]:
    """For each of a connection manager's requests."""
    return [_filter("proto", [{"remove": "x-forwarded-proto"}, _put("x-forwarded-proto", PROTO), {"remove": PROTO}])]


def upgrade_filters() -> list[Document]:
    """The same for WebSockets."""
    wait = {"append": {"header": {"key": "upgrade", "value": _WAITS}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}
    return [*filters(), _filter("upgrade", [_put(UPGRADE, "upgrade"), wait])]


def upstream_filters() -> list[Document]:
    """For each cluster: a request as it goes out."""
    codec = f"{_TYPE}.filters.http.upstream_codec.v3.UpstreamCodec"
    return [
        _filter("upgrade", [_put("upgrade", UPGRADE, "OVERWRITE_IF_EXISTS"), {"remove": UPGRADE}]),
        {"name": "envoy.filters.http.upstream_codec", "typed_config": {"@type": codec}},
    ]


def _put(name: str, source: str, action: str = "OVERWRITE_IF_EXISTS_OR_ADD") -> Document:
    """One header's value in another; nothing where there is none."""
    return {"append": {"header": {"key": name, "value": f"%REQ({source})%"}, "append_action": action}}


def _filter(name: str, mutations: list[Document]) -> Document:
    kind = f"{_TYPE}.filters.http.header_mutation.v3.HeaderMutation"
    return {
        "name": f"devloop.{name}",
        "typed_config": {"@type": kind, "mutations": {"request_mutations": mutations}},
    }

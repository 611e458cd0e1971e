"""What `devloop status` says of ports on localhost that lead to the remote."""

from __future__ import annotations

from dataclasses import replace

from devloop.commands.inspect import remote_ports
from devloop.protocol import RemoteStatus

REMOTE = RemoteStatus("kubernetes", "agent", "dev/shop", "connected", 0, network="ports")


def test_what_is_open_and_what_is_closed_is_said() -> None:
    assert list(remote_ports(None)) == list(remote_ports(REMOTE)) == []
    found = list(remote_ports(replace(REMOTE, forwarded={"db.shop:5432": 15432}, closed=("api.shop", "cache.shop"))))
    assert found[0] == "Open on localhost: db.shop:5432 at 15432"
    assert "api.shop, cache.shop" in found[1] and "forward" in found[1]
    assert RemoteStatus.from_json(replace(REMOTE, forwarded={"a": 1}, closed=("b",)).to_json()).forwarded == {"a": 1}

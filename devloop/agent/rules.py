"""What a door tells the kernel of its pod, as nft's text. Pure: numbers and addresses go in, text comes out.

A door has one table of its own, with two chains before the routing:

- `catch` hands inbound TCP of the intercepted ports to the door's socket. It is TPROXY: the packet stays as it is, so
  nothing has to be translated back, connections from before go on, and a port that nobody listens on any more lets the
  packet pass. A door that dies takes its rules out of force by that alone. Datagrams likewise; `say` gives the door's
  answers the port that was asked. Nothing of it is tracked: the next datagram of any client goes by the rules as they
  are then, and sockets of the original's that are connected to a client keep that one.
- `back` leads the door's port to the original one: it is how the agent gets to *this* pod past the door.

Both hold only for ports in a set whose elements end after `LIFE_SECONDS`; a door says them anew each second. So a door
that hangs is out of the way too, and what is left of it is a table that does nothing.

A kernel without TPROXY for nftables takes `redirect` for both: then only the sets' time lets traffic pass a dead door.
Datagrams can't be taken there: a translation is remembered for as long as a client goes on, whatever the rules say.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping

LIFE_SECONDS = 3


def checked(table: str) -> str:
    """A table's name. ValueError: it is none of ours."""
    if not re.fullmatch(r"devloop_[a-z0-9]{1,16}", table):
        raise ValueError(f"{table!r} is no table of a door's")
    return table


def rules(
    table: str,
    places: Mapping[int, int],
    passed: Iterable[str],
    *,
    transparent: bool,
    datagrams: Mapping[int, int] | None = None,
) -> str:
    """The table with its chains as they should be, in one transaction; elements are `alive`'s.

    `places`: the original's port to the door's. `passed`: addresses of clients that are let through to the original
    (the kubelet's). What comes over the loopback is from within the pod, the door's own connections among it.
    `datagrams`: as `places`, of UDP; with `transparent` alone.
    """
    name = checked(table)
    udp = sorted((_port(port), _port(place)) for port, place in (datagrams or {}).items()) if transparent else []
    lines = [f"add table inet {name}"]
    for each in ("live", "open", "datagrams"):
        timeout = f"{{ type inet_service; flags timeout; timeout {LIFE_SECONDS}s; }}"
        lines.append(f"add set inet {name} {each} {timeout}")
    lines += [
        f"add chain inet {name} catch {{ type filter hook prerouting priority mangle; policy accept; }}",
        f"add chain inet {name} back {{ type nat hook prerouting priority dstnat; policy accept; }}",
        f"flush chain inet {name} catch",
        f"flush chain inet {name} back",
    ]
    numbers = sorted((_port(port), _port(place)) for port, place in places.items())
    inside = ['iifname "lo" return']
    by_address = [f"{'ip6' if each.version == 6 else 'ip'} saddr {each} return" for each in _addresses(passed)]
    back = inside + [f"tcp dport {place} tcp dport @open redirect to :{port}" for port, place in numbers]
    how = "tproxy" if transparent else "redirect"
    catch = [f"tcp dport {port} tcp dport @live {how} to :{place}" for port, place in numbers]
    catch += [f"udp dport {port} udp dport @datagrams tproxy to :{place} accept" for port, place in udp]
    if udp:
        lines += [
            f"add chain inet {name} say {{ type filter hook output priority raw; policy accept; }}",
            f"flush chain inet {name} say",
            *(f"add rule inet {name} say udp sport {place} udp sport set {port}" for port, place in udp),
        ]
    if transparent:
        catch = inside + by_address + catch
    else:
        back, catch = back + by_address + catch, []
    lines += [f"add rule inet {name} catch {each}" for each in catch]
    lines += [f"add rule inet {name} back {each}" for each in back]
    return "\n".join(lines) + "\n"


def alive(table: str, caught: Iterable[int], places: Iterable[int], datagrams: Iterable[int] = ()) -> str:
    """For `LIFE_SECONDS` from now, catch these ports, lead these of the door's to the original; catch these of UDP."""
    name = checked(table)
    lines = []
    for each, ports in (("live", caught), ("open", places), ("datagrams", datagrams)):
        lines.append(f"flush set inet {name} {each}")
        if numbers := sorted({_port(port) for port in ports}):
            lines.append(f"add element inet {name} {each} {{ {', '.join(map(str, numbers))} }}")
    return "\n".join(lines) + "\n"


def gone(table: str) -> str:
    """Without the table, whether it is there or not."""
    name = checked(table)
    return f"add table inet {name}\ndelete table inet {name}\n"


def _port(number: int) -> int:
    if not 0 < int(number) < 65536:
        raise ValueError(f"{number} is no port")
    return int(number)


def _addresses(texts: Iterable[str]) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    found = {ipaddress.ip_address(each) for each in texts}
    return sorted(found, key=lambda each: (each.version, int(each)))

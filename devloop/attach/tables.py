"""The commands that print a pod's tables of connections, and what each has carried, with whatever its image has."""

from __future__ import annotations

from collections.abc import Collection

from devloop.agent import sockets

TIMEOUT_SECONDS = 5
"""For the counting: the tables alone are worth having."""
COUNTED_BYTES = 1 << 20
"""Of what is printed of packets; the rest, of more than a thousand connections, is not known."""

_PACKETS = f"""
import socket, struct, sys
want = set(map(int, sys.argv[1:]))
s = socket.socket(16, 2, 4)
s.settimeout({TIMEOUT_SECONDS})
print("{sockets.CLOCK}", open("/proc/uptime").read().split()[0])
for f, n in ((2, 4), (10, 16)):
    q = struct.pack("=BBBxI", f, 6, 2, 2) + bytes(40) + struct.pack("=II", 0xffffffff, 0xffffffff)
    s.send(struct.pack("=IHHII", 16 + len(q), 20, 0x301, 1, 0) + q)
    more = True
    while more:
        d = s.recv(1 << 17)
        while more and len(d) >= 16:
            size, kind = struct.unpack_from("=IH", d)
            more = kind not in (2, 3) and size >= 16
            m, d = d[16:size], d[(size + 3) & ~3:]
            if not more or len(m) < 72:
                continue
            p, q = struct.unpack_from(">HH", m, 4)
            a, b = (socket.inet_ntop(f, m[o:o + n]) for o in (8, 24))
            at = 72
            while p in want and at + 4 <= len(m):
                size, kind = struct.unpack_from("=HH", m, at)
                if kind == 2 and size >= 164:
                    i, o = struct.unpack_from("=II", m, at + 156)
                    print("0 0 [%s]:%d [%s]:%d sk:%x" % (a, p, b, q, struct.unpack_from("=Q", m, 44)[0]))
                    print("\\t data_segs_out:%d data_segs_in:%d" % (o, i))
                at += max(4, (size + 3) & ~3)
"""
"""NETLINK_SOCK_DIAG with INET_DIAG_INFO, which takes no right: see `devloop.agent.diag`. For the Python that a pod has,
which may be an old one."""
_TABLES = f"""
import os
for f in {sockets.TABLES!r}:
    if os.path.exists(f): print(open(f).read(), flush=True)
"""


def ways(ports: Collection[int]) -> tuple[tuple[str, ...], ...]:
    """Commands for `sockets.read`, of which an image may have one: those that count packets first, where that costs the
    others nothing. They count those of connections to these ports."""
    numbers = [str(each) for each in sorted(ports)]
    names = " ".join(sockets.TABLES)
    here = " or ".join(f"sport = :{each}" for each in numbers)
    shell = f"""
if command -v cat >/dev/null; then cat {names}
else for f in {names}; do while IFS= read -r l; do echo "$l"; done <$f; done; fi
t=; command -v timeout >/dev/null && t='timeout {TIMEOUT_SECONDS}'
{{ read -r up _ </proc/uptime && echo {sockets.CLOCK} $up
$t ss -tineH state established '( {here} )' || $t python3 -c "$0" "$@"; }} 2>/dev/null | head -c {COUNTED_BYTES}
"""
    return (
        ("sh", "-c", shell, _PACKETS, *numbers),
        ("cat", *sockets.TABLES),
        ("/bin/busybox", "cat", *sockets.TABLES),
        ("/busybox/busybox", "cat", *sockets.TABLES),
        ("python3", "-c", _TABLES + _PACKETS, *numbers),
        (
            "node",
            "-e",
            f"for (const f of {list(sockets.TABLES)!r}) try {{ console.log(require('fs').readFileSync(f, 'utf8')) }} "
            "catch {}",
        ),
    )

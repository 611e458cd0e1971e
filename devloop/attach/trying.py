"""Trying out from within a pod whether it can connect somewhere, with whatever its image has for that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

Run = Callable[[str, str, Sequence[str]], Awaitable[bytes]]
"""See `earlier.Run`."""
TRY_SECONDS = 2
"""How long a connection may take. A policy drops packets, so it shows by silence."""
Target = tuple[str, int]

_PYTHON = f"""
import socket, sys, time
for one in sys.argv[1:]:
    host, port = one.rsplit(" ", 1)
    try:
        socket.create_connection((host, int(port)), {TRY_SECONDS}).close()
        print("reached")
    except ConnectionRefusedError:
        print("reached")
    except OSError:
        print("silent")
"""
_NODE = f"""
const net = require('net');
const one = (t) => new Promise((done) => {{
  const [host, port] = t.split(' ');
  const c = net.connect({{host, port: +port}});
  const end = (w) => {{ c.destroy(); done(w); }};
  c.setTimeout({TRY_SECONDS}000, () => end('silent'));
  c.on('connect', () => end('reached'));
  c.on('error', (e) => end(e.code === 'ECONNREFUSED' ? 'reached' : 'silent'));
}});
(async () => {{ for (const t of process.argv.slice(1)) console.log(await one(t)); }})();
"""
_BASH = f"""
command -v timeout >/dev/null || exit 0
for t in "$@"; do
  timeout {TRY_SECONDS} bash -c ': </dev/tcp/'"${{t% *}}/${{t#* }}" 2>/dev/null && echo reached || echo silent
done
"""
_NC = f"""
command -v nc >/dev/null || exit 0
for t in "$@"; do
  nc -z -w {TRY_SECONDS} ${{t% *}} ${{t#* }} </dev/null >/dev/null 2>&1 && echo reached || echo silent
done
"""
_WAYS: tuple[tuple[str, ...], ...] = (
    ("python3", "-c", _PYTHON),
    ("node", "-e", _NODE, "--"),
    ("bash", "-c", _BASH, "bash"),
    ("sh", "-c", _NC, "sh"),
)
"""No tool is in every image."""


async def tried(run: Run, pod: str, container: str, targets: Sequence[Target]) -> tuple[bool, ...] | None:
    """Which of these a pod reaches: a refusal is an answer too. None: its image has no tool for it.

    RemoteError, with the reason, if no command may be run there.
    """
    texts = [f"{host} {port}" for host, port in targets]
    for way in _WAYS:
        lines = (await run(pod, container, (*way, *texts))).decode(errors="replace").split()
        if len(lines) == len(targets) and set(lines) <= {"reached", "silent"}:
            return tuple(each == "reached" for each in lines)
    return None

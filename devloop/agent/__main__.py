"""`python -m devloop.agent`: the agent's process, PID 1 of its container.

Configured by the environment, which the pod's manifest sets:

    DEVLOOP_AGENT_PORT   where the SSH server listens, on the pod's loopback (2222)
    DEVLOOP_AGENT_DIRECT where it listens at the pod's own address while somebody has asked for it (2223); 0: never
    DEVLOOP_AGENT_KEYS   the folder of the host key, in the pod's memory (/run/devloop-agent)
    DEVLOOP_AGENT_POD_UID the pod's uid, by which clients tell this pod's host key from another's
    HOSTNAME             the pod's name, as every container has it
    DEVLOOP_AGENT_LINGER how many seconds without a client until the agent removes itself; 0, the default:
                         it stays, as an administrator's does
    DEVLOOP_AGENT_READY  a file that exists while the server takes connections; the startup probe's
    DEVLOOP_AGENT_ALLOW  addresses and networks that developers' connections may lead to although the agent denies
                         them (`destinations.py`): "169.254.169.254, fd00:ec2::/32"
    DEVLOOP_AGENT_STATE  a folder for Envoy's configuration and sockets (/tmp/devloop)
    DEVLOOP_AGENT_ENVOY  the socket of who runs Envoy in a container of its own (`runner.py`); without, the agent does
    ENVOY                Envoy's program, set by the image; without it nothing can be attached
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from pathlib import Path

from .destinations import VARIABLE as ALLOW
from .destinations import Destinations
from .hostkey import HostKeyError, Publisher, host_key
from .loops import new_event_loop
from .presence import cluster_api
from .server import AgentError, serve
from .tasks import background


async def run() -> None:
    """Serve until SIGTERM or SIGINT; the connections that are open then are closed in order."""
    port, direct = _port("DEVLOOP_AGENT_PORT", "2222", 1), _port("DEVLOOP_AGENT_DIRECT", "2223", 0)
    keys = Path(os.environ.get("DEVLOOP_AGENT_KEYS", "/run/devloop-agent"))
    ready = Path(os.environ.get("DEVLOOP_AGENT_READY", "/tmp/ready"))
    linger = os.environ.get("DEVLOOP_AGENT_LINGER", "0")
    if not linger.isdecimal():
        raise AgentError(f"DEVLOOP_AGENT_LINGER is {linger!r}, and it is a number of seconds")
    try:
        resolv_conf = await asyncio.to_thread(Path("/etc/resolv.conf").read_text)
    except OSError:
        resolv_conf = ""  # then there is no resolver to be reached
    allowed = os.environ.get(ALLOW, "")
    try:
        destinations = Destinations.of(allowed, resolv_conf)
    except ValueError as problem:
        raise AgentError(f"{ALLOW} is {allowed!r}, and it is addresses and networks: {problem}") from problem
    stopped = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stopped.set)
    # A container that was killed leaves its files in the pod's emptyDir.
    await asyncio.to_thread(ready.unlink, missing_ok=True)
    state = Path(os.environ.get("DEVLOOP_AGENT_STATE", "/tmp/devloop"))
    try:
        envoy = os.environ.get("ENVOY", "")
        socket = os.environ.get("DEVLOOP_AGENT_ENVOY", "")
        runner = Path(socket) if socket else None
        async with serve(
            keys,
            port,
            int(linger),
            direct=direct or None,
            state=state,
            envoy=envoy,
            destinations=destinations,
            runner=runner,
        ):
            # Whoever knows the host key finds that the agent listens.
            publisher = await _published(keys, stopped)
            if publisher is None:
                return
            await asyncio.to_thread(ready.touch)
            keeping = background(publisher.keep(), name="host key")
            await stopped.wait()
            keeping.cancel()
    finally:
        # Last of all: a pod that says that it is not ready gets no traffic, and it has to lead that elsewhere first.
        ready.unlink(missing_ok=True)  # noqa: ASYNC240 (a tmpfs, and nothing else runs any more)


async def _published(keys: Path, stopped: asyncio.Event) -> Publisher | None:
    """Have the host key published; None if the agent is to end before it is. AgentError if it may not."""
    api, uid = cluster_api(), os.environ.get("DEVLOOP_AGENT_POD_UID", "")
    if api is None or not uid:
        raise AgentError("the pod has no service account, or DEVLOOP_AGENT_POD_UID is not set")
    publisher = Publisher(api, await asyncio.to_thread(host_key, keys), os.environ.get("HOSTNAME", ""), uid)
    try:
        return publisher if await publisher.publish(stopped) else None
    except HostKeyError as problem:
        raise AgentError(str(problem)) from problem


def _port(variable: str, default: str, first: int) -> int:
    said = os.environ.get(variable, default)
    if not said.isdecimal() or not first <= int(said) < 65536:
        raise AgentError(f"{variable} is {said!r}, and a port is a number from {first} to 65535")
    return int(said)


def main() -> int:
    """The exit code is 0 after a signal and 1 when the agent can't start."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    # asyncssh tells of every channel at INFO: a line for each connection of the developer's services.
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    gc.freeze()  # what was imported stays: a collection that goes through it holds up every connection
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(run())
    except AgentError as problem:
        print(f"devloop agent: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

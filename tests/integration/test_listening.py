"""The ports that clients are shown are those that localhost has."""

from __future__ import annotations

import sys

import pytest

from devloop.commands.inspect import status_table
from devloop.protocol import ServiceStatus, Snapshot, State
from tests.integration.conftest import Project
from tests.ports import free_port

pytestmark = pytest.mark.slow

SERVER = """\
import os, socket, sys, time
print("started", flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
time.sleep(600)
"""


async def test_a_declared_port_is_shown_once_it_is_listened_on(project: Project) -> None:
    first, second = free_port(), free_port()
    project.write("server.py", SERVER)
    project.config(
        f"""\
        [services.api]
        command = ["{sys.executable}", "server.py", "{first}"]
        ports = {{ http = {first}, debug = {second} }}
        ready = {{ log = "started" }}
        watch = []
        """
    )

    async def asked() -> ServiceStatus:
        return Snapshot.from_json(await project.client.call("status")).services[0]

    async with project.up():
        await project.until_state("api", State.READY)
        assert (await asked()).published == {}
        assert str(first) not in status_table([await asked()])
        project.write("go", "")
        await project.until_line("api", "listening")
        assert (await asked()).published == {"http": first}
        table = status_table([await asked()])
        assert f"http:{first}" in table and str(second) not in table
        # Without being asked: the TUI is told.
        await project.until(lambda: project.services["api"].published == {"http": first})
        await project.client.call("stop", services=["api"])
        await project.until_state("api", State.STOPPED)
        assert (await asked()).published == {} and (await asked()).ports == {"http": first, "debug": second}

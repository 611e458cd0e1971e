"""What the agent's environment may say, and what it is told when that is nonsense."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("DEVLOOP_AGENT_PORT", "ssh", "is 'ssh', and a port is a number from 1 to 65535"),
        ("DEVLOOP_AGENT_PORT", "0", "is '0', and a port is a number from 1 to 65535"),
        ("DEVLOOP_AGENT_DIRECT", "off", "is 'off', and a port is a number from 0 to 65535"),
        ("DEVLOOP_AGENT_DIRECT", "65536", "is '65536', and a port is a number from 0 to 65535"),
        ("DEVLOOP_AGENT_LINGER", "60s", "is '60s', and it is a number of seconds"),
        (
            "DEVLOOP_AGENT_ALLOW",
            "10.0.0.1/8",
            "is '10.0.0.1/8', and it is addresses and networks: 10.0.0.1/8 has host bits set",
        ),
    ],
)
def test_nonsense_is_told_with_the_variable_and_the_agent_does_not_start(variable: str, value: str, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "devloop.agent"],
        env={**os.environ, variable: value},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (1, f"devloop agent: {variable} {told}\n")

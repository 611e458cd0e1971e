"""What the links of this machine lead to."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .openssh import sshd

__all__ = ["sshd"]


@pytest.fixture
async def target_ports() -> AsyncIterator[tuple[int, ...]]:
    """The services of target.py in a process of their own; their ports on the loopback."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("target.py")),
        "0",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    yield tuple(map(int, (await process.stdout.readline()).split()))
    process.kill()
    await process.wait()
    # The pipe's transport ends with the process.
    await process.stdout.read()

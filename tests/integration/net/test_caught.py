"""Datagrams that a door catches in a pod, by the kernel's own rules: whoever attaches, leaves, or is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs

from .caught import SCENES

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize("scene", sorted(SCENES))
def test_datagrams_of_a_pod(namespaces: None, scene: str) -> None:
    for name in ("ip", "nft", "setpriv", "unshare", "nsenter"):
        needs.program(name)
    # Killed with what it has started, however it ends.
    command = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
    ran = subprocess.run(
        (*command, sys.executable, "-m", "tests.integration.net.caught", scene),
        cwd=REPOSITORY,
        env={**os.environ, "PATH": os.pathsep.join((os.environ["PATH"], *needs.ADMINISTRATORS))},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr

"""The command line at the cluster: devloop in a process and a folder of its own, as one user of a kubeconfig."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .conftest import Target


@dataclass(frozen=True)
class Ran:
    """A command's end."""

    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


@dataclass(frozen=True)
class Cli:
    """Runs devloop in `folder`, where there may be a devloop.toml; `kubeconfig` is what kubectl would find."""

    folder: Path
    kubeconfig: Path

    async def __call__(self, *args: str, code: int = 0, **environ: str) -> Ran:
        self.folder.mkdir(parents=True, exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "devloop.cli", *args),
            cwd=self.folder,
            env={
                **os.environ,
                "KUBECONFIG": str(self.kubeconfig),
                "XDG_STATE_HOME": str(self.folder / "state"),
                **environ,
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        stdout, stderr = (each.decode() for each in await process.communicate())
        assert process.returncode == code, f"{process.returncode}\n{stdout}\n{stderr}"
        assert "Traceback" not in stderr
        return Ran(stdout, stderr)


def kubectl(cluster: Target, *args: str, text: str) -> str:
    """The real kubectl, as the administrator, with `text` on its standard input."""
    if cluster.own is not None:
        return cluster.own.kubectl(*args, input=text)
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("there is no kubectl for the cluster that DEVLOOP_TEST_KUBECONFIG names")
    command = [program, "--kubeconfig", str(cluster.admin), *args]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout

"""Imports beside everything else."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from devloop.remote.imports import imported
from tests import needs

PLAIN = "import looks"
OURS = "import asyncio; from devloop.remote.imports import imported; asyncio.run(imported('looks'))"


async def test_modules_are_there_afterwards_and_libraries_are_looked_for_as_before() -> None:
    before = dict(vars(ctypes.util))
    await imported("wave")
    assert "wave" in sys.modules
    with pytest.raises(ModuleNotFoundError, match="nothing_like_it"):
        await imported("nothing_like_it")
    assert vars(ctypes.util) == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere libraries are looked for without a compiler")
def test_no_compiler_is_run_to_look_for_a_library(tmp_path: Path) -> None:
    for name in ("gcc", "cc", "ld"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
        program.chmod(0o755)
    (tmp_path / "looks.py").write_text(
        "from ctypes.util import find_library\nassert find_library('c') and not find_library('nothing-like-it')\n"
    )
    paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path)}

    def runs_a_compiler(program: str) -> bool:
        (tmp_path / "ran").unlink(missing_ok=True)
        subprocess.run([sys.executable, "-c", program], env={**os.environ, **paths}, check=True, timeout=60)
        return (tmp_path / "ran").exists()

    needs.program("gcc")  # without one there is nothing to run, and nothing to be told from
    assert runs_a_compiler(PLAIN)
    assert not runs_a_compiler(OURS)

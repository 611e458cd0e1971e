"""`devloop doctor` for a remote that is a host, at a real OpenSSH server; completion in real shells."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .openssh import Sshd

pytestmark = pytest.mark.slow


async def doctor(folder: Path, home: Path, code: int, text: str = '[remote]\nhost = "bastion"\n') -> Any:
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240
    (folder / "devloop.toml").write_text(f'[project]\nnetwork = "ports"\n[services.web]\ncommand = "true"\n{text}')
    environ = {**os.environ, "HOME": str(home)}
    agreed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "devloop.cli", "trust"), cwd=folder, env=environ, stdout=asyncio.subprocess.DEVNULL
    )
    assert await agreed.wait() == 0
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "devloop.cli", "doctor", "--json"),
        cwd=folder,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    assert process.returncode == code, stdout + stderr
    return {each["what"]: each for each in json.loads(stdout)}


async def test_a_host_that_lets_us_in_and_forwards(sshd: Sshd, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    shutil.copy(sshd.write_config(), home / ".ssh" / "config")
    found = (await doctor(tmp_path / "project", home, 0))["host"]
    assert (found["level"], "127.0.0.1" in found["text"]) == ("ok", True)
    # The key may come in, and no more.
    keys = tmp_path / "authorized_keys"
    keys.write_text(f"no-port-forwarding {keys.read_text()}")
    found = (await doctor(tmp_path / "project", home, 3))["host"]
    assert "forwards no connections" in found["text"]
    keys.write_text("")
    assert "lets no key of yours in" in (await doctor(tmp_path / "project", home, 3))["host"]["text"]
    shutil.copy(sshd.write_config(known_hosts=""), home / ".ssh" / "config")
    found = (await doctor(tmp_path / "project", home, 3))["host"]
    assert "host key" in found["text"] and "ssh bastion" in found["hint"]
    text = '[remote]\nhost = "nobody.invalid"\n'
    assert "can't be reached" in (await doctor(tmp_path / "project", home, 3, text))["host"]["text"]


async def test_a_sandbox_needs_nothing_and_mounts_need_sshfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project" / "k8s").mkdir(parents=True)
    sandbox = '[remote]\nkind = "sandbox"\nmanifests = "k8s"\n'
    found = await doctor(tmp_path / "project", tmp_path, 0, sandbox)
    assert "needs nothing" in found["remote"]["text"]
    assert "as the project says" in found["network"]["text"]
    assert "volumes" not in found
    monkeypatch.setenv("PATH", str(tmp_path))  # no sshfs there
    found = await doctor(tmp_path / "project", tmp_path, 1, f'volumes = {{ data = "mount" }}\n{sandbox}')
    assert "sshfs" in found["volumes"]["text"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_completion_knows_the_new_commands_and_asks_for_services(shell: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "devloop.cli", "completion", shell]
    script = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for each in ("uninstall", "kubeconfig", "devloop names"):
        assert each in script
    if shell != "tcsh" and shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=script, text=True).returncode == 0


def test_bash_completes_a_service(tmp_path: Path) -> None:
    (tmp_path / "devloop.toml").write_text('[services.store]\ncommand = "true"\n[services.web]\ncommand = "true"\n')
    program = tmp_path / "devloop"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m devloop.cli "$@"\n')
    program.chmod(0o755)
    script = subprocess.run([program, "completion", "bash"], capture_output=True, text=True, check=True).stdout
    ask = f"{script}\nCOMP_WORDS=(devloop logs st); COMP_CWORD=2; _shtab_devloop; echo ${{COMPREPLY[@]}}"
    path = f"{tmp_path}:{os.environ['PATH']}"
    # `bash` alone: its completion works without the package bash-completion.
    done = subprocess.run(
        ["bash", "-c", ask], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["store"], done.stderr

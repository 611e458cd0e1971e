"""Files that a project names, or that lie in its folder, may be anything."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from devloop.cli import main
from devloop.config.model import Tls
from devloop.errors import DevloopError
from devloop.local.git import Repository
from devloop.local.probe_http import CheckFailed, context
from devloop.local.process import _interpreter
from devloop.local.watch.ignore import _read
from devloop.paths import read_file
from devloop.remote.kubernetes.kubeconfig import choose
from devloop.sandbox.manifests import _documents
from devloop.scaffold.dockerfile import read_stage
from devloop.scaffold.yaml_text import read_text


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Path]:
    """A named pipe that nobody writes to: whoever waits for it is ended."""
    made = tmp_path / "pipe"
    os.mkfifo(made)

    def waited(number: int, frame: object) -> None:
        raise AssertionError("it was waited for")

    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(20)
    yield made
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_what_is_no_file_is_told_and_not_waited_for(pipe: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="named pipe"):
        read_file(pipe, 10)
    with pytest.raises(OSError, match="a device"):
        read_file(Path("/dev/zero"), 10)
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path, 10)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "sock"))
        with pytest.raises(OSError, match=r"[Nn]o such device|socket"):
            read_file(tmp_path / "sock", 10)
    assert read_file(Path(os.devnull), 10) == b""


def test_a_file_has_a_bound(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 10)
    assert read_file(file, 10) == b"x" * 10
    assert read_file(file, 4, whole=False) == b"xxxx"
    with pytest.raises(OSError, match="larger"):
        read_file(file, 9)
    with file.open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(OSError, match="larger than 8 MiB"):
        read_file(file, 8 << 20)


@pytest.mark.parametrize("name", ["env_file", "include", "own"])
def test_check_does_not_wait_for_a_pipe(
    pipe: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    text = '[services.api]\ncommand = "true"\n'
    if name == "own":
        (tmp_path / "config" / "devloop").mkdir(parents=True)
        pipe.rename(tmp_path / "config" / "devloop" / "config.toml")
    else:
        text = f'{text}env_file = "pipe"\n' if name == "env_file" else f'include = "pipe"\n{text}'
    (tmp_path / "devloop.toml").write_text(text)
    code = main(["check"])
    told = capsys.readouterr().err
    if name == "own":
        assert code in (0, 2)
    else:
        assert code == 2 and "pipe" in told


def test_nobody_else_waits_for_one(pipe: Path, tmp_path: Path) -> None:
    for read in (
        lambda: read_stage(pipe),
        lambda: _read(str(pipe)),
        lambda: _interpreter(str(pipe)),
        lambda: Repository(tmp_path),
    ):
        assert not isinstance(read(), bytes)
    with pytest.raises(DevloopError, match="named pipe"):
        read_text(pipe, "compose.yaml")
    with pytest.raises(DevloopError, match="named pipe"):
        list(_documents(pipe))
    with pytest.raises(CheckFailed, match="named pipe"):
        context(Tls(ca=pipe))


@pytest.mark.parametrize("key", ["tokenFile", "client-key", "client-certificate", "certificate-authority"])
def test_what_a_kubeconfig_names_is_a_file(pipe: Path, tmp_path: Path, key: str) -> None:
    where = "cluster" if key == "certificate-authority" else "user"
    more = {"cluster": "", "user": "", where: f", {key}: {pipe}"}
    file = tmp_path / "kube.yaml"
    file.write_text(
        "current-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n"
        f"clusters: [{{name: c, cluster: {{server: 'https://a'{more['cluster']}}}}}]\n"
        f"users: [{{name: u, user: {{username: u{more['user']}}}}}]\n"
    )
    with pytest.raises(DevloopError, match="named pipe"):
        choose([file])


def test_a_kubeconfig_of_aliases_takes_no_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    file = tmp_path / "kube.yaml"
    file.write_text(
        "\n".join(lines) + "\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n"
        "clusters: [{name: c, cluster: {server: 'https://a'}}]\nusers: [{name: u, user: {exec: *a11}}]\n"
    )
    with pytest.raises(DevloopError, match="no kubeconfig"):
        choose([file])

"""Whose a place is decides whether it is used."""

from __future__ import annotations

import os
import shlex
import socket
from pathlib import Path

import pytest

from devloop import places
from devloop.cli import main
from devloop.config.find import ForeignError, find
from devloop.control import client
from devloop.errors import DevloopError, EngineError
from devloop.places import Looks, mine, peer, private_folder, runtime_folder

CONFIG = '[services.api]\ncommand = "sleep 1"\n'


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> int:
    """All that is made in this test belongs to somebody else: this process is of another user from now on."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of the user"))
    for module in (places, client):
        monkeypatch.setattr(module, "mine", lambda: frozenset({os.geteuid() + 77}))
    return os.geteuid()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somebody has planted a project file above the folder that one works in, as in /tmp."""
    (tmp_path / "work" / "below").mkdir(parents=True)
    (tmp_path / "work" / "devloop.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path / "work" / "below")
    return tmp_path / "work"


@pytest.mark.parametrize(
    "command",
    [["up", "--headless"], ["check"], ["env", "api"], ["exec", "api", "true"], ["status"], ["list"], ["leave", "api"],
     ["agent", "status"], ["logs", "api"], ["down"], ["up", "-f", "../devloop.toml", "--detach"]],
)  # fmt: skip
def test_a_project_of_somebody_else_is_not_used(
    project: Path, stranger: int, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) in (1, 2)
    told = capsys.readouterr().err
    assert "belongs to" in told and f"devloop trust -f {shlex.quote(f'{project}/devloop.toml')}" in told


def test_it_has_no_names_for_a_shell(project: Path, stranger: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["names"]) == 0
    assert capsys.readouterr().out == ""


def test_trust_allows_it_and_another_owner_does_not_inherit_that(
    project: Path, stranger: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trust"]) == 0
    assert "may belong to" in capsys.readouterr().out
    assert find(Path.cwd()) == project / "devloop.toml"
    assert main(["names"]) == 0 and capsys.readouterr().out == "api\n"
    monkeypatch.setattr("devloop.config.find.stranger", lambda path: stranger + 1)
    with pytest.raises(ForeignError):
        find(Path.cwd())


def test_a_file_of_somebody_else_is_not_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "devloop.toml").write_text('include = "shared.toml"\n' + CONFIG)
    shared = tmp_path / "shared.toml"
    shared.write_text('[services.web]\ncommand = "true"\n')
    real = places.stranger
    for module in ("devloop.config.find", "devloop.commands.trust"):
        monkeypatch.setattr(f"{module}.stranger", lambda path, **given: 4711 if path == shared else real(path, **given))
    monkeypatch.chdir(tmp_path)
    assert main(["check"]) == 2
    assert "shared.toml belongs to the user with number 4711" in capsys.readouterr().err
    assert main(["names"]) == 0 and capsys.readouterr().out == "api\n"
    assert main(["trust"]) == 0
    assert main(["check"]) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away: run this as root")
def test_an_env_file_of_somebody_else_gives_no_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One's own project in /tmp, where anybody can put a file beside it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("SUDO_UID", raising=False)
    (tmp_path / "devloop.toml").write_text('[services.api]\ncommand = "${RUNNER:-true}"\n')
    (tmp_path / ".env").write_text("RUNNER=evil\n")
    os.chown(tmp_path / ".env", 4711, 4711)
    monkeypatch.chdir(tmp_path)
    assert main(["check"]) == 2
    told = capsys.readouterr().err
    assert ".env:1:1: this belongs to the user with number 4711" in told and "devloop trust" in told
    assert main(["trust"]) == 0 and main(["check"]) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away: run this as root")
def test_trust_allows_whoever_owns_what_is_included_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("SUDO_UID", raising=False)
    (tmp_path / "devloop.toml").write_text('include = "shared.toml"\n' + CONFIG)
    (tmp_path / "shared.toml").write_text('[services.web]\ncommand = "true"\n')
    os.chown(tmp_path / "devloop.toml", 4711, 4711)
    os.chown(tmp_path / "shared.toml", 4712, 4712)
    monkeypatch.chdir(tmp_path)
    assert main(["check"]) == 2
    assert main(["trust"]) == 0
    assert main(["check"]) == 0
    capsys.readouterr()
    assert main(["names"]) == 0 and capsys.readouterr().out == "api\nweb\n"


def test_a_state_folder_of_somebody_else_has_no_engine(
    tmp_path: Path, stranger: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".devloop").mkdir(mode=0o700)
    (tmp_path / ".devloop" / "engine.lock").write_text("1\n/x/devloop.toml\n")
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 1
    assert "the state folder belongs to another user" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away: run this as root")
def test_a_project_that_was_really_given_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "devloop.toml"
    file.write_text(CONFIG)
    monkeypatch.delenv("SUDO_UID", raising=False)
    assert find(tmp_path) == file
    os.chown(file, 65534, 65534)
    with pytest.raises(ForeignError):
        find(tmp_path)
    monkeypatch.setenv("SUDO_UID", "65534")
    assert find(tmp_path) == file
    monkeypatch.delenv("SUDO_UID")
    os.chown(file, 0, 0)
    os.chown(tmp_path, 65534, 65534)  # whoever owns the folder can put another file there
    with pytest.raises(ForeignError):
        find(tmp_path)


def test_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(looks: Looks = Looks.REFUSED) -> str:
        try:
            private_folder(folder, "it", hint="move", looks=looks)
        except DevloopError as error:
            return error.what
        return ""

    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    assert refused() == ""
    folder.chmod(0o755)
    assert refused() == "others may look into it" and refused(Looks.LEFT) == ""
    assert refused(Looks.CLOSED) == "" and folder.stat().st_mode & 0o777 == 0o700
    for mode in (0o720, 0o702):
        folder.chmod(mode)
        assert {refused(each) for each in Looks} == {"others may write to it"}
    link = tmp_path / "link"
    folder.chmod(0o700)
    link.symlink_to(folder)
    there, folder = folder, link
    assert {refused(each) for each in Looks} == {"it is a link"}
    folder = there
    monkeypatch.setattr(places.os, "geteuid", lambda: os.getuid() + 1)
    assert {refused(each) for each in Looks} == {"it belongs to another user"}


def test_a_file_system_that_keeps_no_modes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refused)  # FAT
    tmp_path.chmod(0o755)
    with pytest.raises(DevloopError, match="others may look into the state folder") as told:
        private_folder(tmp_path, "the state folder", hint="use another", looks=Looks.CLOSED)
    assert "use another" in (told.value.hint or "")


def test_the_runtime_folder_is_used_if_it_is_this_user_s_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    assert runtime_folder() == tmp_path
    tmp_path.chmod(0o750)
    assert runtime_folder() is None
    tmp_path.chmod(0o700)
    monkeypatch.setattr(places.os, "geteuid", lambda: os.getuid() + 1)  # as after su
    assert runtime_folder() is None
    monkeypatch.setenv("XDG_RUNTIME_DIR", "here")
    assert runtime_folder() is None


def test_an_engine_of_another_user_is_not_talked_to(tmp_path: Path, stranger: int) -> None:
    with socket.socket(socket.AF_UNIX) as planted:
        planted.bind(str(tmp_path / "control.sock"))
        planted.listen()
        with pytest.raises(EngineError, match="no engine of yours"):
            client.call(tmp_path / "control.sock", "enter", service="api")


@pytest.mark.skipif(not places.LINUX, reason="SO_PEERCRED is Linux's")
def test_the_other_end_of_a_socket_is_known() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert peer(one) == (os.getpid(), os.geteuid()) and os.geteuid() in mine()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away: run this as root")
def test_a_service_s_env_file_of_somebody_else_gives_no_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("SUDO_UID", raising=False)
    (tmp_path / "devloop.toml").write_text(f'{CONFIG}env_file = "api.env"\n')
    (tmp_path / "api.env").write_text("LD_PRELOAD=/tmp/evil.so\n")
    os.chown(tmp_path / "api.env", 4711, 4711)
    monkeypatch.chdir(tmp_path)
    assert main(["check"]) == 2
    told = capsys.readouterr().err
    assert "services.api.env_file[0]" in told and "belongs to the user with number 4711" in told
    assert main(["trust"]) == 0 and "may belong to" in capsys.readouterr().out
    assert main(["check"]) == 0

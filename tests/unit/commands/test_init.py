"""`devloop init`: what it writes over, and what it says."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from devloop.commands.project import init
from devloop.errors import DevloopError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def run(*, force: bool = False, stdout: bool = False, file: str | None = None) -> int:
    return init(argparse.Namespace(force=force, stdout=stdout, file=file))


def test_f_names_the_file_and_with_it_the_folder(here: Path) -> None:
    (here / "devloop.toml").write_text("mine")
    (here / "api").mkdir()
    (here / "api/Procfile").write_text("web: ./run\n")
    assert run(file="other.toml") == 0
    assert run(file="api/devloop.toml") == 0
    assert "./run" in (here / "api/devloop.toml").read_text() and "./run" not in (here / "other.toml").read_text()
    assert (here / "devloop.toml").read_text() == "mine"
    with pytest.raises(DevloopError, match="there is one already"):
        run(file="api")
    with pytest.raises(DevloopError, match="no such folder"):
        run(file="nowhere/devloop.toml")


def test_what_was_not_taken_over_is_said_on_stderr_and_in_the_file(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "main.py").touch()
    (here / "compose.yaml").write_text("services:\n  a:\n    build: .\n    deploy: {replicas: 2}\nvolumes: {x: {}}\n")
    assert run() == 0
    out, err = capfd.readouterr()
    assert "written, with 1 service: look through it" in out
    assert "  a: Not taken over, since it runs here and in no container: deploy (compose.yaml:4:13)." in err
    assert "  compose.yaml:5:10: volumes was not taken over" in err
    text = (here / "devloop.toml").read_text()
    assert "deploy (compose.yaml:4:13)" in text
    assert "# - compose.yaml:5:10: volumes was not taken over" in text
    assert [each.name for each in here.iterdir() if each.name.startswith(".")] == []


def test_stdout_is_utf8_and_writes_nothing(here: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    (here / "Procfile").write_text("web: echo ü\n", encoding="utf-8")
    assert run(stdout=True) == 0
    assert "echo ü".encode() in capfdbinary.readouterr().out
    assert not (here / "devloop.toml").exists()


def test_a_file_that_is_there_is_replaced_by_force_alone(here: Path) -> None:
    (here / "devloop.toml").write_text("mine")
    with pytest.raises(DevloopError, match="there is one already"):
        run()
    assert (here / "devloop.toml").read_text() == "mine"
    assert run(force=True) == 0
    assert (here / "devloop.toml").read_text() != "mine"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("dangling", [False, True])
def test_no_link_is_followed(here: Path, tmp_path: Path, force: bool, dangling: bool) -> None:
    aim = tmp_path / "elsewhere"
    if not dangling:
        aim.write_text("theirs")
    (here / "devloop.toml").symlink_to(aim)
    with pytest.raises(DevloopError, match="this is a link"):
        run(force=force)
    assert (aim.read_text() if aim.exists() else None) == (None if dangling else "theirs")


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_that_name(here: Path, force: bool) -> None:
    (here / "devloop.toml").mkdir()
    with pytest.raises(DevloopError, match="this is a folder"):
        run(force=force)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any folder; run as an ordinary user")
@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_may_not_be_written(here: Path, force: bool) -> None:
    here.chmod(0o555)
    try:
        with pytest.raises(DevloopError, match="can't be written: Permission denied"):
            run(force=force)
    finally:
        here.chmod(0o755)


def test_a_disk_that_is_full_leaves_nothing_behind(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "devloop.toml").write_text("mine")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DevloopError, match="can't be written: No space left on device"):
        run(force=True)
    assert (here / "devloop.toml").read_text() == "mine"
    assert [each.name for each in here.iterdir()] == ["devloop.toml"]


@pytest.mark.parametrize("name", ["compose.yaml", "Procfile"])
def test_a_source_that_can_not_be_read_is_said_and_nothing_is_written(here: Path, name: str) -> None:
    (here / name).write_bytes(b"a: \xff\n")
    with pytest.raises(DevloopError, match="this is not UTF-8 text"):
        run()
    assert not (here / "devloop.toml").exists()


def test_what_is_only_an_image_is_said_to_be_off(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "services:\n  web: {build: ., command: python app.py}\n  db: {image: postgres}\n  cache: {image: redis}\n"
    (here / "compose.yaml").write_text(text)
    run()
    told = capsys.readouterr().err
    assert "off" in told and "db, cache" in told and 'mode = "local"' in told

"""What volumes hold, how they are written, and the private folder that they lie in."""

from __future__ import annotations

import base64
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from devloop.errors import DevloopError
from devloop.remote.workload import atomic, materialise, payload
from devloop.remote.workload.model import Absence
from devloop.remote.workload.payload import File, TokenSource
from devloop.remote.workload.runfolder import RunFolder, choose_base, sweep

from .conftest import sources, workload


def b64(text: bytes) -> str:
    return base64.b64encode(text).decode()


MAPS = {"one": {"data": {"a": "A", "b": "B"}, "binaryData": {"bin": b64(b"\xff\0")}}}
SECRETS = {"one": {"data": {"a": b64(b"secret")}}}


def made(
    volume: dict[str, Any], tokens: dict[TokenSource, str | Absence] | None = None, **spec: Any
) -> payload.Payload:
    given = sources(config_maps=MAPS, secrets=SECRETS)
    return payload.make({"name": "v", **volume}, workload(**spec), given, tokens or {})


def test_all_keys_or_those_that_items_names() -> None:
    files = made({"configMap": {"name": "one", "defaultMode": 0o400}}).files
    assert {path: (each.data, each.mode) for path, each in files.items()} == {
        "a": (b"A", 0o400),
        "b": (b"B", 0o400),
        "bin": (b"\xff\0", 0o400),
    }
    items = [{"key": "a", "path": "x/./y", "mode": 0o600}, {"key": "bin", "path": "z"}]
    files = made({"configMap": {"name": "one", "items": items}}).files
    assert {path: each.mode for path, each in files.items()} == {"x/y": 0o600, "z": 0o644}


def test_a_later_source_wins_in_a_projected_volume() -> None:
    both = {"sources": [{"configMap": {"name": "one"}}, {"secret": {"name": "one"}}]}
    found = made({"projected": both})
    assert found.files["a"].data == b"secret"
    assert found.folder_mode == 0o1777


def test_an_fs_group_may_read() -> None:
    found = made({"secret": {"secretName": "one", "defaultMode": 0o400}}, securityContext={"fsGroup": 1})
    assert found.files["a"].mode == 0o440
    assert found.folder_mode == 0o3777


@pytest.mark.parametrize(("context", "mode"), [({}, 0o644), ({"fsGroup": 1}, 0o640), ({"runAsUser": 7}, 0o600)])
def test_modes_of_tokens(context: dict[str, int], mode: int) -> None:
    volume = {"projected": {"sources": [{"serviceAccountToken": {"path": "token", "audience": "vault"}}]}}
    tokens: dict[TokenSource, str | Absence] = {TokenSource("vault", 3600): "t"}
    assert made(volume, tokens, securityContext=context).files["token"].mode == mode


def test_a_token_that_may_not_be_asked_for_is_a_note() -> None:
    found = made({"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}})
    assert not found.files
    assert "serviceaccounts/token" in found.notes[0].text


def test_problems_of_volumes() -> None:
    missing = {"secret": {"secretName": "none"}}
    assert "secret none does not exist" in made(missing).problems[0].what
    assert not made({"secret": {"secretName": "none", "optional": True}}).problems
    items = [{"key": "none", "path": "x"}]
    assert "has no key none" in made({"configMap": {"name": "one", "items": items}}).problems[0].what
    assert not made({"configMap": {"name": "one", "items": items, "optional": True}}).problems


def test_a_payload_shows_no_content() -> None:
    assert "secret" not in repr(made({"secret": {"secretName": "one"}}))


# The cases of pkg/volume/util/nested_volumes_test.go, in short.
def test_mount_points_inside_of_a_volume() -> None:
    paths = ["/dir", "/dir/nested", "/dir/nested/double", "/dir/nested-vol", "/dir2/other", "/dir/nested.vol"]
    mounts = [{"name": f"v{index}", "mountPath": path} for index, path in enumerate(paths)]
    pod = workload({"volumeMounts": mounts}).pod
    assert payload.nested_mount_points("v0", pod) == ["nested", "nested-vol", "nested.vol"]
    assert payload.nested_mount_points("v1", pod) == ["double"]
    assert payload.nested_mount_points("v5", pod) == []


def write(folder: Path, files: dict[str, tuple[str, int]]) -> bool:
    return atomic.write(folder, {path: File(data.encode(), mode) for path, (data, mode) in files.items()})


def test_a_volume_is_written_as_the_kubelet_does(tmp_path: Path) -> None:
    old_umask = os.umask(0o077)
    try:
        assert write(tmp_path, {"a": ("A", 0o640), "x/y": ("Y", 0o751)})
    finally:
        os.umask(old_umask)
    assert (tmp_path / "a").readlink() == Path("..data/a")
    assert (tmp_path / "x").readlink() == Path("..data/x")
    assert (tmp_path / "..data").readlink().name.startswith("..20")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "x/y").stat().st_mode) == 0o751
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o755
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o777


def test_an_update_swaps_and_removes(tmp_path: Path) -> None:
    write(tmp_path, {"a": ("1", 0o644), "gone": ("x", 0o644), "d/e": ("x", 0o644)})
    first = (tmp_path / "..data").readlink()
    (tmp_path / "mount-point").mkdir()
    assert not write(tmp_path, {"a": ("1", 0o644), "gone": ("x", 0o644), "d/e": ("x", 0o644)})
    assert (tmp_path / "..data").readlink() == first
    with (tmp_path / "a").open() as reader:
        assert write(tmp_path, {"a": ("2", 0o644), "d/f": ("x", 0o644)})
        assert reader.read() == "1", "who has it open reads on"
    assert (tmp_path / "a").read_text() == "2"
    left = {each.name for each in tmp_path.iterdir()}
    assert left == {"..data", (tmp_path / "..data").readlink().name, "a", "d", "mount-point"}
    assert not (tmp_path / "d/e").exists()
    assert write(tmp_path, {"a": ("2", 0o600), "d/f": ("x", 0o644)}), "a mode is a change too"


def test_an_update_that_fails_leaves_all_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, {"a": ("1", 0o644)})
    with pytest.raises(NotADirectoryError):
        write(tmp_path, {"a": ("2", 0o644), "a/b": ("3", 0o644)})
    assert (tmp_path / "a").read_text() == "1"
    assert len(list(tmp_path.iterdir())) == 3
    write(tmp_path, {"a": ("4", 0o644)})
    assert (tmp_path / "a").read_text() == "4"


@pytest.mark.parametrize("path", ["", "/abs", "../x", "a/../b", "..data", "..x", "n" * 256, "a/" * 2100])
def test_paths_that_no_volume_has(tmp_path: Path, path: str) -> None:
    with pytest.raises(atomic.BadPathError):
        write(tmp_path, {path: ("x", 0o644)})
    assert list(tmp_path.iterdir()) == []


def test_sub_paths() -> None:
    assert materialise.sub_path({"subPath": "a/./b"}, {}) == "a/b"
    assert materialise.sub_path({"subPathExpr": "$(POD)/$$(X)"}, {"POD": "web"}) == "web/$(X)"
    assert materialise.sub_path({}, {}) == ""
    for wrong in ({"subPathExpr": "$(NONE)"}, {"subPath": "/a"}, {"subPath": "a/../../b"}):
        with pytest.raises(ValueError, match="subPath"):
            materialise.sub_path(wrong, {})


def test_a_sub_path_does_not_follow(tmp_path: Path) -> None:
    write(tmp_path, {"a": ("1", 0o640), "d/e": ("1", 0o644)})
    outside = tmp_path.parent / "sub"
    materialise.snapshot(tmp_path, "a", outside / "0")
    materialise.snapshot(tmp_path, "d", outside / "1")
    materialise.snapshot(tmp_path, "none", outside / "2")
    write(tmp_path, {"a": ("2", 0o640)})
    assert (outside / "0").read_text() == "1"
    assert stat.S_IMODE((outside / "0").stat().st_mode) == 0o640
    assert (outside / "1/e").read_text() == "1"
    assert list((outside / "2").iterdir()) == []


def test_a_run_folder_is_private_and_goes(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
        assert stat.S_IMODE(run.parent.stat().st_mode) == 0o700
        locked = run.path / "locked"
        locked.mkdir()
        (locked / "file").write_text("x")
        locked.chmod(0o500)
        with RunFolder(tmp_path) as other:
            assert run.path.exists(), "who lives is left alone"
            assert other.path != run.path
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_has_left_is_removed(tmp_path: Path) -> None:
    code = (
        "import sys,signal,pathlib; from devloop.remote.workload.runfolder import RunFolder\n"
        "with RunFolder(pathlib.Path(sys.argv[1])) as run:\n"
        "  (run.path / 'secret').write_text('x'); print(run.path, flush=True); signal.pause()"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        assert sweep(left.parent) == []
        process.send_signal(signal.SIGKILL)
    assert (left / "secret").exists()
    with RunFolder(tmp_path):
        assert not left.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_others_can_reach_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / f"devloop-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o755)  # whatever the umask is
    with pytest.raises(DevloopError, match="others may look into the folder of private files"), RunFolder(tmp_path):
        pass


def test_memory_is_preferred(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "no-such"))
    base = choose_base()
    assert base.in_memory is (base.path == Path("/dev/shm"))

"""Secret files are kept in memory, or are refused, or the project says that they may lie on a disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from devloop.config.load import load
from devloop.errors import RemoteError
from devloop.remote.workload import Options, VolumeMode, open_view, runfolder
from devloop.remote.workload import references as kinds
from devloop.remote.workload import view as views
from devloop.remote.workload.fake import FakeCluster

from .conftest import pod

SECRET = {"name": "keys", "secret": {"secretName": "keys"}}


async def _open(cluster: FakeCluster, folder: Path, *, on_disk: bool) -> None:
    mounts = {"volumeMounts": [{"name": "keys", "mountPath": "/keys"}]}
    await cluster.put(kinds.POD, pod(mounts, volumes=[SECRET]))
    await cluster.put(kinds.SECRET, {"metadata": {"name": "keys"}, "data": {"key": "eA=="}})
    options = Options("image", secrets_on_disk=on_disk, image_environment=False, follow=False)
    async with open_view(cluster, "pod/web-1", folder=folder / "run", data=folder / "data", options=options):
        pass


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(runfolder, "_filesystem", lambda _: None)  # as on macOS
    (tmp_path / "run").mkdir()
    return tmp_path


async def test_without_a_tmpfs_they_are_refused_with_what_to_do(cluster: FakeCluster, disk: Path) -> None:
    with pytest.raises(RemoteError, match="keys hold secrets, and there is no tmpfs here") as caught:
        await _open(cluster, disk, on_disk=False)
    assert "secrets_on_disk = true" in str(caught.value) and "XDG_RUNTIME_DIR" in str(caught.value)
    assert list((disk / "run").iterdir()) == []


async def test_the_project_may_allow_it(cluster: FakeCluster, disk: Path) -> None:
    await _open(cluster, disk, on_disk=True)
    text = "[remote]\n{}\n[services.api]\ncommand = 'true'\n"
    for key, allowed in (("", False), ("secrets_on_disk = true", True)):
        (disk / "devloop.toml").write_text(text.format(key))
        remote = load(disk / "devloop.toml", {}).remote
        assert remote is not None and remote.secrets_on_disk is allowed


async def test_on_a_tmpfs_there_is_nothing_to_allow(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runfolder, "_filesystem", lambda _: "tmpfs")
    (tmp_path / "run").mkdir()
    await _open(cluster, tmp_path, on_disk=False)


@pytest.mark.parametrize(
    ("volume", "secret"),
    [
        ({"emptyDir": {"medium": "Memory"}}, True),
        ({"csi": {"driver": "secrets-store.csi.k8s.io"}}, True),
        ({"secret": {"secretName": "x"}}, True),
        ({"projected": {"sources": []}}, True),
        ({"emptyDir": {}}, False),
        ({"persistentVolumeClaim": {"claimName": "x"}}, False),
        ({"configMap": {"name": "x"}}, False),
    ],
)
def test_what_is_in_memory_in_the_pod_is_no_disk_s(volume: dict[str, Any], secret: bool) -> None:
    assert views._secret({"name": "v", **volume}) is secret


async def test_an_empty_folder_for_memory_lies_with_the_secrets(cluster: FakeCluster, tmp_path: Path) -> None:
    """No pod runs, so that empty folders stand in: where each lies is where its copy would."""
    mounts = {"volumeMounts": [{"name": "ram", "mountPath": "/ram"}, {"name": "cache", "mountPath": "/cache"}]}
    volumes = [{"name": "ram", "emptyDir": {"medium": "Memory"}}, {"name": "cache", "emptyDir": {}}]
    template = {"metadata": {"labels": {"app": "web"}}}
    template["spec"] = pod(mounts, volumes=volumes, automountServiceAccountToken=False)["spec"]
    spec = {"selector": {"matchLabels": {"app": "web"}}, "template": template}
    await cluster.put(kinds.DEPLOYMENT, {"metadata": {"name": "web", "uid": "d"}, "spec": spec})
    (tmp_path / "run").mkdir()
    options = Options("image", default_mode=VolumeMode.COPY, image_environment=False, follow=False)
    async with open_view(
        cluster, "deploy/web", folder=tmp_path / "run", data=tmp_path / "data", options=options
    ) as view:
        assert {each.path: each.source.relative_to(tmp_path).parts[0] for each in view.mounts} == {
            "/ram": "run",
            "/cache": "data",
        }


def test_down_removes_what_a_killed_engine_has_left(tmp_path: Path) -> None:
    runtime, project = tmp_path / "runtime", tmp_path / "project"
    left = runtime / f"devloop-{os.getuid()}" / "run-dead"
    for folder in (runtime, left.parent, left, project, project / ".devloop", project / ".devloop" / "volumes"):
        folder.mkdir(mode=0o700)
    (left / "secret").write_text("x")
    (project / ".devloop" / "volumes" / "copy").write_text("x")
    (project / "devloop.toml").write_text("[services.api]\ncommand = 'true'\n")
    ran = subprocess.run(
        [sys.executable, "-m", "devloop.cli", "down"],
        cwd=project,
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "removed what an engine that was killed has left" in ran.stdout
    assert not left.exists() and not (project / ".devloop" / "volumes").exists()

"""What somebody agrees to says all that it stands for, and nothing that is the user's own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from devloop.config.model import Remote, RemoteKind
from devloop.errors import DevloopError
from devloop.remote.reach import reach

PLUGIN = {"apiVersion": "client.authentication.k8s.io/v1", "command": "get-token"}


def written(file: Path, user: object, **cluster: object) -> None:
    """A kubeconfig; JSON is YAML."""
    content: dict[str, Any] = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://one", **cluster}}],
        "users": [{"name": "u", "user": user}],
    }
    file.write_text(json.dumps(content))


def reached(file: Path, user: object, **cluster: object) -> dict[str, str]:
    written(file, user, **cluster)
    return reach(Remote(RemoteKind.KUBERNETES, kubeconfig=file), file.parent)


def test_a_command_on_two_lines_is_not_the_one_that_looks_like_it(tmp_path: Path) -> None:
    file = tmp_path / "kube.yaml"
    shown = [
        reached(file, {"exec": {**PLUGIN, "args": ["-c", f"# harmless{between}touch pwned"]}})
        for between in (" ", "\n", "\\n", "\x1b[8m", "\u202e")
    ]
    assert len({json.dumps(each) for each in shown}) == len(shown)
    assert all(text.isprintable() for each in shown for text in each.values())
    assert "# harmless\\ntouch pwned" in " ".join(shown[1].values())


@pytest.mark.parametrize("user", [{"exec": PLUGIN}, {"tokenFile": "/secret"}, {"auth-provider": {"name": "gcp"}}])
@pytest.mark.parametrize(
    "other",
    [{"server": "https://other"}, {"proxy-url": "http://other"}, {"insecure-skip-tls-verify": True},
     {"certificate-authority-data": "b3RoZXI="}, {"tls-server-name": "other"}],
)  # fmt: skip
def test_where_credentials_are_sent_is_part_of_it(tmp_path: Path, user: object, other: dict[str, object]) -> None:
    file = tmp_path / "kube.yaml"
    before, after = reached(file, user), reached(file, user, **other)
    assert before != after and "https://one" in before["server"]


def test_a_cluster_that_is_made_anew_is_no_change_where_its_credentials_stand_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "kube.yaml"  # k3d and kind pick a port and keys each time
    before = reached(file, {"token": "one"}, **{"certificate-authority-data": "b25l"})
    assert before == reached(file, {"token": "two"}, **{"certificate-authority-data": "dHdv"}, server="https://b:2")


def test_a_kubeconfig_that_kubectl_takes_too_is_the_user_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    file = tmp_path / ".kube" / "config"
    file.parent.mkdir()
    assert reached(file, {"exec": PLUGIN}) == {}
    other = tmp_path / "other"
    assert reached(other, {"exec": PLUGIN}) != {}
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'no'}:{other}")
    assert reached(other, {"exec": PLUGIN}) == {}


@pytest.mark.parametrize(
    "user",
    [{"exec": "sh"}, {"exec": {**PLUGIN, "args": 5}}, {"exec": {**PLUGIN, "env": 5}}, {"exec": [1]},
     {"exec": {**PLUGIN, "env": [5, {"name": 1, "value": {"a": [None]}}]}}, {"auth-provider": {"a": {}}}, 5],
)  # fmt: skip
def test_what_is_none_is_no_reason_for_a_traceback(tmp_path: Path, user: object) -> None:
    reached(tmp_path / "kube.yaml", user)


def test_a_circle_is_told_apart_too(tmp_path: Path) -> None:
    file = tmp_path / "kube.yaml"
    written(file, "USER")
    text = file.read_text()
    file.write_text(text.replace('"USER"', "{auth-provider: &a {1: x, y: *a}}"))
    remote = Remote(RemoteKind.KUBERNETES, kubeconfig=file)
    before = reach(remote, tmp_path)
    file.write_text(text.replace('"USER"', "{auth-provider: &a {1: z, y: *a}}"))
    assert before != reach(remote, tmp_path)


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "kube.yaml")
    with pytest.raises(DevloopError, match="named pipe"):
        reach(Remote(RemoteKind.KUBERNETES, kubeconfig=tmp_path / "kube.yaml"), tmp_path)


def test_the_context_that_a_project_chooses_is_part_of_it_and_what_the_user_s_file_says_of_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    file = tmp_path / ".kube" / "config"
    file.parent.mkdir()
    written(file, {"token": "t"})
    before = reach(Remote(RemoteKind.KUBERNETES, context="dev"), tmp_path)
    assert before != reach(Remote(RemoteKind.KUBERNETES, context="production"), tmp_path)
    assert before != reach(Remote(RemoteKind.KUBERNETES), tmp_path)
    written(file, {"token": "t"}, server="https://elsewhere:2")
    assert before == reach(Remote(RemoteKind.KUBERNETES, context="dev"), tmp_path)

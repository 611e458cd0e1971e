"""Which cluster a command is about."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from devloop import cli
from devloop.commands.remote import cluster, project
from devloop.config.model import Project, Remote, RemoteKind
from devloop.errors import ConfigError, UsageError

KUBERNETES = Remote(RemoteKind.KUBERNETES, context="dev", namespace="shop", kubeconfig=Path("/own"), agent_image="a:1")


def args(**given: str | None) -> argparse.Namespace:
    return argparse.Namespace(**{"context": None, "namespace": None, "kubeconfig": None, "file": None, **given})


def of(remote: Remote | None) -> Project:
    return Project("demo", Path("/demo/devloop.toml"), (), {}, remote=remote)


def test_the_projects_is_meant_and_each_option_says_otherwise() -> None:
    assert cluster(args(), of(KUBERNETES), asks=False) == KUBERNETES
    assert cluster(args(namespace="mine"), of(KUBERNETES), asks=False) == replace(KUBERNETES, namespace="mine")
    assert cluster(args(context="prod"), of(KUBERNETES), asks=False) == replace(KUBERNETES, context="prod")
    # Another file has other contexts.
    found = cluster(args(kubeconfig="/other"), of(KUBERNETES), asks=False)
    assert found == replace(KUBERNETES, kubeconfig=Path("/other"), context=None)
    assert cluster(args(kubeconfig="/other", context="x"), of(KUBERNETES), asks=False).context == "x"


@pytest.mark.parametrize("none", [None, of(None)])
def test_without_a_remote_it_is_the_current_context(none: Project | None) -> None:
    assert cluster(args(), none) == Remote(RemoteKind.KUBERNETES)
    assert cluster(args(namespace="mine"), none).namespace == "mine"


def test_a_remote_that_is_no_cluster_stays_what_it_is_unless_one_is_named() -> None:
    host = of(Remote(RemoteKind.SSH, host="bastion"))
    assert cluster(args(), host, asks=False).kind is RemoteKind.SSH
    assert cluster(args(namespace="mine"), host, asks=False).kind is RemoteKind.SSH
    assert cluster(args(context="dev"), host, asks=False) == Remote(RemoteKind.KUBERNETES, context="dev")


def test_no_project_is_no_error_and_a_broken_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert project(args()) is None
    with pytest.raises(UsageError):
        project(args(file="nowhere.toml"))
    (tmp_path / "devloop.toml").write_text("[services.web]\n")
    with pytest.raises(ConfigError):
        project(args())
    (tmp_path / "devloop.toml").write_text('[services.web]\ncommand = "true"\n')
    found = project(args())
    assert found is not None and found.remote is None


def test_logs_of_pods_want_a_name_and_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "devloop.toml"
    file.write_text('[remote]\nkind = "ssh"\nhost = "dev"\n[services.api]\ncommand = "true"\n')
    assert cli.main(["-f", str(file), "logs", "--remote"]) == 2
    assert "which services?" in capsys.readouterr().err
    assert cli.main(["-f", str(file), "logs", "--remote", "api"]) == 2
    assert "nobody has agreed" in capsys.readouterr().err
    assert cli.main(["-f", str(file), "trust"]) == 0
    assert cli.main(["-f", str(file), "logs", "--remote", "api"]) == 2
    assert "only a cluster's pods have logs" in capsys.readouterr().err

"""Exec plugins, as programs: what kubectl's users have in their kubeconfigs for every managed cluster."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from devloop.remote.kubernetes.kubeconfig import Kubeconfig
from devloop.remote.link import PermanentError

pytestmark = pytest.mark.slow
VERSION = "client.authentication.k8s.io/v1"
# Counts its runs, notes what it was told, and gives a token that holds the count.
PLUGIN = f"""#!{sys.executable}
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
runs = here / "runs"
count = int(runs.read_text()) + 1 if runs.exists() else 1
runs.write_text(str(count))
(here / "info").write_text(os.environ["KUBERNETES_EXEC_INFO"])
if "--fail" in sys.argv:
    sys.exit("token expired: log in again")
status = {{"token": f"token-{{count}}-{{os.environ.get('EXTRA', '')}}"}}
if "--expired" in sys.argv:
    status["expirationTimestamp"] = "2020-01-01T00:00:00Z"
print(json.dumps({{"apiVersion": "{VERSION}", "kind": "ExecCredential", "status": status}}))
"""


def made(folder: Path, **spec: Any) -> Kubeconfig:
    plugin = folder / "login"
    plugin.write_text(PLUGIN)
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    plugin_spec = {"apiVersion": VERSION, "command": "./login", **spec}
    content = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://server", "certificate-authority-data": "Q0E="}}],
        "users": [{"name": "u", "user": {"exec": plugin_spec}}],
    }
    path = folder / "config"
    path.write_text(yaml.safe_dump(content))
    return Kubeconfig(path)


async def test_its_token_is_used_and_kept_until_it_is_refused(tmp_path: Path) -> None:
    config = made(tmp_path, env=[{"name": "EXTRA", "value": "e"}], provideClusterInfo=True)
    # No certificate authority is read in this test: there is no server.
    config.chosen.cluster.pop("certificate-authority-data")  # type: ignore[attr-defined]
    for _ in range(2):
        settings = await config.configuration()
        assert settings.api_key["BearerToken"] == "Bearer token-1-e"
    config.forget()
    assert (await config.configuration()).api_key["BearerToken"] == "Bearer token-2-e"
    info = json.loads((tmp_path / "info").read_text())
    assert info["spec"] == {"interactive": False, "cluster": {"server": "https://server"}}


async def test_an_expired_token_is_fetched_anew(tmp_path: Path) -> None:
    config = made(tmp_path, args=["--expired"], env=None)
    config.chosen.cluster.pop("certificate-authority-data")  # type: ignore[attr-defined]
    await config.configuration()
    assert config.stale()
    await config.configuration()
    assert (tmp_path / "runs").read_text() == "2"


async def test_what_it_says_on_stderr_is_the_error(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="log in again"):
        await made(tmp_path, args=["--fail"]).configuration()


async def test_one_that_is_not_installed_is_an_error_with_its_own_hint(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="not installed") as missing:
        await made(tmp_path, command="no-such-plugin", installHint="brew install it").configuration()
    assert missing.value.hint == "brew install it"


async def test_one_that_needs_a_terminal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="terminal"):
        await made(tmp_path, interactiveMode="Always").configuration()

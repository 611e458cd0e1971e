"""From `[remote]` to what connects."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from devloop.config.model import Remote, RemoteKind
from devloop.errors import UsageError
from devloop.remote.kubernetes.install import IMAGE
from devloop.remote.open import agent_image, host_link, kubeconfig, state_home


def test_whose_image_it_is() -> None:
    plain, named = Remote(RemoteKind.KUBERNETES), Remote(RemoteKind.KUBERNETES, agent_image="own:1")
    assert agent_image(plain, {}) == IMAGE
    assert agent_image(plain, {"DEVLOOP_AGENT_IMAGE": "site:2"}) == "site:2"
    assert agent_image(plain, {"DEVLOOP_AGENT_IMAGE": ""}) == IMAGE
    assert agent_image(named, {"DEVLOOP_AGENT_IMAGE": "site:2"}) == "own:1"


def test_the_key_is_the_users_and_no_projects() -> None:
    assert state_home({"XDG_STATE_HOME": "/state"}) == Path("/state")
    for environ in ({}, {"XDG_STATE_HOME": "relative"}, {"XDG_STATE_HOME": ""}):
        assert state_home(environ) == Path("~/.local/state").expanduser()


def test_another_kind_of_remote_has_none() -> None:
    with pytest.raises(UsageError, match="of kind ssh"):
        kubeconfig(Remote(RemoteKind.SSH, host="bastion"))
    with pytest.raises(UsageError, match="names no host"):
        host_link(Remote(RemoteKind.KUBERNETES))


def test_it_is_light_to_import() -> None:
    code = "import sys, devloop.remote.open; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"aiohttp", "asyncssh", "kubernetes", "yaml", "asyncio"} & set(modules)

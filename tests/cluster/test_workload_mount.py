"""The mode `mount`: a claim through FUSE, read-only and live. Where a machine has no sshfs it is skipped."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from devloop.remote.workload import VolumeMode, fuse

from . import kit
from .conftest import Namespace
from .kit import ApiClient
from .test_workload_volumes import Volumes, claim, local

pytestmark = pytest.mark.role("attach", agent=False)


async def test_a_claim_is_mounted(admin: ApiClient, namespace: Namespace, tmp_path: Path) -> None:
    if reason := fuse.missing():
        pytest.skip(reason)
    place = Volumes(admin, namespace, tmp_path)
    await claim(place, "data")
    command = ["sh", "-c", "mkdir /v/data/a; echo 1 >/v/data/a/file; ln -s a/file /v/data/link; exec sleep infinity"]
    probe = {"exec": {"command": ["test", "-e", "/v/data/link"]}, "periodSeconds": 1}
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    container = {"command": command, "readinessProbe": probe}
    await place.run("web", volumes, container=container, securityContext={"fsGroup": 65532})
    async with place.opened("pod/web", modes={"data": VolumeMode.MOUNT}) as opened:
        source = opened.source("/v/data")
        # Never from the loop that carries the mount's bytes.
        assert await asyncio.to_thread(local, source) == await place.far("web", "/v/data")
        await kit.execute(namespace.developer, place.name, "web", "sh", "-c", "echo 2 >/v/data/new")
        assert await asyncio.to_thread((source / "new").read_text) == "2\n"
        with pytest.raises(OSError, match="Read-only"):
            await asyncio.to_thread((source / "mine").write_text, "x")

"""A pod that says of its files what no honest one says: nothing of it is written outside of the copy's folder."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from devloop.errors import RemoteError
from devloop.remote.workload import beneath, copying, files_container, materialise, payload
from devloop.remote.workload.copying import Copier
from tests.unit.workload.conftest import sources, workload

Entry = tuple[str, int, str]
"""A name, a mode, and what a file holds or where a link leads."""
FILE, FOLDER, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


class Hostile(asyncssh.SFTPServer):
    """Says what `entries` has for each folder, whatever there is."""

    entries: dict[str, list[Entry]]

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        """What a client reads of a folder."""
        for name, mode, text in self.entries.get(path.decode(), []):
            attrs = asyncssh.SFTPAttrs(permissions=mode, size=len(text), atime=1, mtime=1)
            yield asyncssh.SFTPName(name.encode(), attrs=attrs)

    async def lstat(self, path: bytes) -> asyncssh.SFTPAttrs:
        """The volume itself: a folder."""
        return asyncssh.SFTPAttrs(permissions=FOLDER, size=0, atime=1, mtime=1)

    async def readlink(self, path: bytes) -> bytes:
        """Where a link leads."""
        return next(text for name, mode, text in self._all(path) if mode == LINK).encode()

    def _all(self, path: bytes) -> list[Entry]:
        last = path.decode().rsplit("/", 1)[-1]
        return [each for found in self.entries.values() for each in found if each[0].rsplit("/", 1)[-1] == last]

    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> Any:
        """Any file is there, and has its text."""
        return next(text for name, mode, text in self._all(path) if stat.S_ISREG(mode))

    def read(self, file_obj: Any, offset: int, size: int) -> bytes:
        """A file's text; one that says `endless` has no end."""
        if file_obj == "endless":
            return b"x" * size
        return str(file_obj).encode()[offset : offset + size]

    def close(self, file_obj: Any) -> None:
        """Nothing to do."""

    def fstat(self, file_obj: Any) -> asyncssh.SFTPAttrs:
        """Its size, as it says."""
        return asyncssh.SFTPAttrs(permissions=FILE, size=len(file_obj))


@asynccontextmanager
async def copier(entries: dict[str, list[Entry]], limit: int = 1 << 20) -> AsyncIterator[Copier]:
    key = asyncssh.generate_private_key("ssh-ed25519")
    served = type("Served", (Hostile,), {"entries": entries})
    listener = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[key],
        authorized_client_keys=asyncssh.import_authorized_keys(key.export_public_key().decode()),
        sftp_factory=served,
    )
    async with (
        listener,
        asyncssh.connect(
            *("127.0.0.1", listener.get_port()), client_keys=[key], known_hosts=None, config=None, username="x"
        ) as connection,
        connection.start_sftp_client(path_errors="surrogateescape") as client,
    ):
        yield Copier(client, limit)


def everything(folder: Path) -> set[str]:
    return {str(each.relative_to(folder)) for each in folder.rglob("*")}


ESCAPES: dict[str, list[Entry]] = {
    "dots": [("../escaped", FILE, "x")],
    "dots above": [("a/../../../escaped", FILE, "x")],
    "absolute": [("{out}/escaped", FILE, "x")],
    "a folder": [("../escaped", FOLDER, "")],
    "a link": [("../escaped", LINK, "/etc/passwd")],
    "below a link": [("way", LINK, "{out}"), ("way/escaped", FILE, "x")],
    "a link and a folder of one name": [("way", LINK, "{out}"), ("way", FOLDER, "")],
    "a link and a file of one name": [("way", LINK, "{out}/escaped"), ("way", FILE, "x")],
    "a null": [("a\0b", FILE, "x")],
    "too long": [("n" * 300, FILE, "x")],
    "twice": [("a", FILE, "x"), ("a", FILE, "y")],
}


@pytest.mark.parametrize("kind", ESCAPES)
async def test_names_and_links_that_lead_out_are_refused(tmp_path: Path, kind: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "data").mkdir()

    def filled(text: str) -> str:
        return text.replace("{out}", str(outside))

    entries = {"/v": [(filled(name), mode, filled(text)) for name, mode, text in ESCAPES[kind]]}
    entries["/v/way"] = [("escaped", FILE, "x")]
    before = everything(tmp_path)
    async with copier(entries) as made:
        with pytest.raises(RemoteError, match="volume scratch is not copied"):
            await made.copy("scratch", "/v", tmp_path / "data" / "scratch")
    assert everything(tmp_path) == before, "nothing was written, and nothing stays"


async def test_links_stay_links_and_nothing_runs_as_the_developer(tmp_path: Path) -> None:
    entries = {"/v": [("out", LINK, "/etc"), ("run", stat.S_IFREG | 0o6755, "#!/bin/sh")]}
    async with copier(entries) as made:
        await made.copy("scratch", "/v", tmp_path / "scratch")
    assert os.readlink(tmp_path / "scratch" / "out") == "/etc"  # noqa: PTH115
    assert stat.S_IMODE((tmp_path / "scratch" / "run").stat().st_mode) == 0o755
    with pytest.raises(beneath.BadNameError, match="leads out"):
        beneath.inside(tmp_path / "scratch", "out/passwd")


async def test_a_file_that_is_longer_than_it_says(tmp_path: Path) -> None:
    async with copier({"/v": [("log", FILE, "endless")]}, limit=1 << 20) as made:
        with pytest.raises(RemoteError, match=r"grows while it is copied, beyond 1\.0 MiB"):
            await made.copy("scratch", "/v", tmp_path / "scratch")
    assert not everything(tmp_path)


async def test_folders_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(dict[str, list[Entry]]):
        def get(self, key: str, default: Any = None) -> list[Entry]:
            return [("d" * 200, FOLDER, "")]

    async with copier(Endless()) as made:
        with pytest.raises(RemoteError, match="too long"):
            await made.copy("scratch", "/v", tmp_path / "scratch")
    monkeypatch.setattr(copying, "MAX_ENTRIES", 10)
    async with copier({"/v": [(f"f{number}", FILE, "") for number in range(11)]}) as made:
        with pytest.raises(RemoteError, match="more than 10 files"):
            await made.copy("scratch", "/v", tmp_path / "scratch")
    assert not everything(tmp_path)


async def test_a_sub_path_and_what_is_below_it_are_copied_once(tmp_path: Path) -> None:
    async with copier({"/v": [("a", FOLDER, "")], "/v/a": [("b", FILE, "x")]}) as made:
        await made.copy("scratch", "/v", tmp_path / "scratch", ["a/b", "a", "a"])
    assert everything(tmp_path / "scratch") == {"a", "a/b"}


def test_removing_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "closed").mkdir(parents=True)
    (outside / "closed").chmod(0o500)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "way").symlink_to(outside)
    (tmp_path / "top").symlink_to(outside)
    for each in ("run", "top"):
        beneath.remove(tmp_path / each)
    assert [each.name for each in tmp_path.iterdir()] == ["outside"]
    assert stat.S_IMODE((outside / "closed").stat().st_mode) == 0o500


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "a/b", ".."])
def test_a_volume_of_a_name_that_no_api_server_lets_through(name: str) -> None:
    mounts = {"volumeMounts": [{"name": name, "mountPath": "/v"}]}
    pod = workload(mounts, volumes=[{"name": name, "configMap": {"name": "one"}}])
    with pytest.raises(RemoteError, match="can't be called so"):
        payload.volumes_of(pod)


@pytest.mark.parametrize("key", ["../escaped", "/escaped", "a/../../escaped", "..data/x", "a\0b"])
def test_a_config_map_of_keys_that_no_api_server_lets_through(tmp_path: Path, key: str) -> None:
    volume = {"name": "v", "configMap": {"name": "one"}}
    pod = workload({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}, volumes=[volume])
    given = sources(config_maps={"one": {"data": {key: "x"}}})
    changed, _, problems = materialise.write(tmp_path / "run" / "v", volume, pod, given, {}, {})
    assert not changed
    assert "not one inside of a volume" in str(problems[0])
    assert everything(tmp_path) <= {"run", "run/v"}


def test_a_files_container_of_somebody_elses_is_not_taken() -> None:
    pod = workload(volumes=[{"name": "v", "emptyDir": {}}])
    mine = files_container.spec(pod, "agent:1", ["v"])
    wanted = files_container.spec(pod, "agent:1", ["v"])
    assert files_container.suits(mine, mine, wanted)
    for other in (
        {"command": ["python3", "-c", "evil"]},
        {"args": ["x"]},
        {"env": [{"name": "PYTHONPATH", "value": "/v"}]},
        {"envFrom": [{"configMapRef": {"name": "evil"}}]},
        {"image": "evil:1"},
        {"volumeMounts": []},
    ):
        assert not files_container.suits({**mine, **other}, mine, wanted), other


async def test_only_what_this_process_has_made_is_taken_again() -> None:
    """A container with the right name, image and mounts, and a program of somebody else's."""
    from devloop.remote.workload import references as kinds
    from devloop.remote.workload.fake import FakeCluster

    pod = workload(volumes=[{"name": "v", "emptyDir": {}}])
    theirs = files_container.spec(pod, "agent:1", ["v"]) | {"command": ["python3", "-c", "evil"]}
    state = [{"name": theirs["name"], "state": {"running": {}}}]
    cluster = FakeCluster()
    there = {**pod.pod, "spec": {**pod.pod["spec"], "ephemeralContainers": [theirs]}}
    there["status"] = {**pod.pod["status"], "ephemeralContainerStatuses": state}
    await cluster.put(kinds.POD, there)
    with pytest.raises(RemoteError, match="runs no containers"):  # it asks for one of its own
        await files_container.start(cluster, pod, "agent:1", ["v"])

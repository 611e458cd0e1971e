"""The mode `mount`: a pod's folder through FUSE, by sshfs, read-only.

sshfs speaks SFTP on its standard input and output (`-o passive`); devloop carries the bytes into the pod.
There is no well-kept FUSE binding that is worth a dependency, and sshfs is packaged everywhere.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devloop.agent.tasks import background
from devloop.errors import RemoteError

if TYPE_CHECKING:
    import asyncssh

START_SECONDS = 10
_CHUNK = 1 << 17


def missing() -> str:
    """Why a FUSE mount is not possible on this machine; empty if it is."""
    if shutil.which("sshfs") is None:
        return "sshfs is not installed"
    if not (shutil.which("fusermount3") or shutil.which("fusermount")):
        return "fusermount3 is not installed"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as problem:
        return f"/dev/fuse can't be opened ({problem.strerror})"
    return ""


@asynccontextmanager
async def mounted(
    connection: asyncssh.SSHClientConnection, volume: str, remote: str, local: Path
) -> AsyncIterator[None]:
    """`local`, an empty folder, shows `remote` while the context lasts. Raises RemoteError.

    It is seen in the mount namespace of this process and in those made from it later. This event loop carries
    its bytes: whoever looks into `local` from the loop itself waits for good.
    """
    if reason := missing():
        raise RemoteError(
            f"volume {volume} can't be mounted: {reason}",
            hint='Install sshfs and FUSE 3, or set this volume to "copy" or "ignore".',
        )
    channel: Any = await connection.create_process(subsystem="sftp", encoding=None)
    process = await asyncio.create_subprocess_exec(
        *("sshfs", f":{remote}", str(local), "-f", "-o", "passive,ro,idmap=user,default_permissions"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    tasks = [
        background(_pump(process.stdout, channel.stdin), name="sshfs asks"),
        background(_pump(channel.stdout, process.stdin), name="sshfs is answered"),
    ]
    try:
        await _until_mounted(process, volume, local)
        yield
    finally:
        tool = shutil.which("fusermount3") or "fusermount"
        unmount = await asyncio.create_subprocess_exec(
            *(tool, "-u", "-z", str(local)), stderr=asyncio.subprocess.DEVNULL
        )
        await unmount.wait()
        if process.returncode is None:
            process.terminate()
        await process.wait()
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        channel.close()


async def _until_mounted(process: asyncio.subprocess.Process, volume: str, local: Path) -> None:
    point = str(local.resolve())  # before there is anything to look into  # noqa: ASYNC240
    try:
        async with asyncio.timeout(START_SECONDS):
            # No event tells of a mount.
            while not _is_mounted(point):
                if process.returncode is not None:
                    assert process.stderr is not None
                    said = (await process.stderr.read()).decode(errors="replace").strip()
                    raise RemoteError(f"volume {volume} can't be mounted: sshfs: {said}")
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise RemoteError(f"volume {volume} is not mounted within {START_SECONDS} s") from None


def _is_mounted(point: str) -> bool:
    """By the table of mounts: to look at the folder would wait for this very loop."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4].encode().decode("unicode_escape") == point for line in lines)


async def _pump(source: Any, target: Any) -> None:
    while data := await source.read(_CHUNK):
        target.write(data)
        await target.drain()

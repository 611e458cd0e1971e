"""The agent's own key: made in its pod, which the private half never leaves; the public half is published.

It is kept in the pod's memory, so that it outlives a restart of the container. Developers read the public half where
the agent's service account alone writes it, with the uid of the pod that it belongs to: an older pod's key is not taken
for it, and what somebody else has put there first is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import urllib.error
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any

import asyncssh

from .keys import AGENT, HOST_KEY, POD_UID, config_maps, host_key_of, owned_by
from .objects import kept
from .presence import JSON, ClusterApi, TooLongError

log = logging.getLogger("agent")

FILE = "host_key"
OWN_BYTES = 64 << 10
"""The ConfigMap has less than 1 KiB. What is longer is not the agent's."""
FOREIGN_BYTES = 16 << 20
RETRY_SECONDS = (0.1, 2.0)
AGAIN_SECONDS = 30.0
"""So often it is looked whether it is still there."""
MERGE = "application/merge-patch+json"


class HostKeyError(Exception):
    """The agent has no host key that anybody could know: why."""


def host_key(folder: Path) -> asyncssh.SSHKey:
    """The key in this folder; made, ed25519 and mode 0600, if there is none. Blocking; HostKeyError."""
    file = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            key = asyncssh.generate_private_key("ssh-ed25519")
            draft = file.with_name(f"{FILE}.new")
            draft.unlink(missing_ok=True)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as out:
                out.write(key.export_private_key())
            draft.replace(file)
        return asyncssh.read_private_key(file)
    except (OSError, asyncssh.KeyImportError) as problem:
        raise HostKeyError(f"{file}: {problem}") from problem


class Publisher:
    """Keeps the public half where developers read it."""

    def __init__(self, api: ClusterApi, key: asyncssh.SSHKey, pod: str, uid: str) -> None:
        """`pod` and `uid` are the agent's own pod."""
        self._api = api
        self._line = key.export_public_key().decode().strip()
        self._pod = pod
        self._uid = uid
        self._path = config_maps(api.namespace)

    async def publish(self, stopped: asyncio.Event | None = None) -> bool:
        """Come back when it is published; what fails is tried again, until `stopped` (False). HostKeyError if the agent
        may not.
        """
        stopped = stopped or asyncio.Event()
        delay = RETRY_SECONDS[0]
        while not stopped.is_set():
            try:
                await asyncio.to_thread(self._publish)
            except urllib.error.HTTPError as problem:
                problem.close()
                if problem.code == HTTPStatus.FORBIDDEN:
                    raise HostKeyError(
                        f"the agent's service account may not publish its host key in a ConfigMap {AGENT}: "
                        "its Role has to be applied anew (role-agent.yaml; `devloop agent manifest --role-only`)"
                    ) from problem
                log.warning("the host key is not published yet: %s", problem)
            except (OSError, HTTPException, ValueError) as problem:
                log.warning("the host key is not published yet: %s", problem)
            else:
                return True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await stopped.wait()
            delay = min(delay * 2, RETRY_SECONDS[1])
        return False

    async def keep(self) -> None:
        """Publish it anew when it is gone; does not return. Where another pod has published its own, that one stays."""
        while True:
            await asyncio.sleep(AGAIN_SECONDS)
            try:
                if await asyncio.to_thread(self._there) is None:
                    await asyncio.to_thread(self._api.call, "POST", self._path, self._config_map())
            except (OSError, HTTPException, ValueError) as problem:
                log.warning("the host key can't be looked after: %s", problem)

    def _there(self) -> dict[str, Any] | None:
        """The ConfigMap; None if there is none. One that is too long is only described. OSError, ValueError."""
        path = f"{self._path}/{AGENT}"
        try:
            return self._api.call("GET", path, most=OWN_BYTES)
        except TooLongError:
            return self._api.metadata(path, FOREIGN_BYTES)[0]
        except urllib.error.HTTPError as problem:
            problem.close()
            if problem.code == HTTPStatus.NOT_FOUND:
                return None
            raise

    def _publish(self) -> None:
        """Once. Whatever stands in the way goes, unless an administrator has made it for this."""
        there = self._there()
        if there is not None:
            metadata = there["metadata"]
            leaving = bool(metadata.get("deletionTimestamp"))
            if not leaving and host_key_of(there, self._uid) == self._line:
                return
            if not leaving and kept(there) and not there.get("immutable"):
                self._patch({"data": self._data()})
                return
            if metadata.get("finalizers"):
                self._patch({"metadata": {"uid": metadata["uid"], "finalizers": None}})
            if not leaving:
                body = {"preconditions": {"uid": metadata["uid"]}}
                self._ignoring(HTTPStatus.NOT_FOUND, "DELETE", f"{self._path}/{AGENT}", body)
        self._api.call("POST", self._path, self._config_map())

    def _patch(self, body: dict[str, Any]) -> None:
        self._ignoring(HTTPStatus.NOT_FOUND, "PATCH", f"{self._path}/{AGENT}", body, MERGE)

    def _ignoring(self, status: int, method: str, path: str, body: Any, content_type: str = JSON) -> None:
        try:
            self._api.call(method, path, body, content_type=content_type)
        except urllib.error.HTTPError as problem:
            problem.close()
            if problem.code != status:
                raise

    def _data(self) -> dict[str, str]:
        return {HOST_KEY: self._line, POD_UID: self._uid}

    def _config_map(self) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": AGENT,
                "labels": {"app.kubernetes.io/name": AGENT, "app.kubernetes.io/managed-by": "devloop"},
                "ownerReferences": [owned_by(self._pod, self._uid)],
            },
            "data": self._data(),
        }

"""Services that lead to an agent which is gone: nobody stands behind them, so they are led back to their pods.

An agent that is told to end does it by itself. One that is killed can't, and its Services refuse every new connection
until somebody does. So the engine watches the agent's pod: what that says is what nodes go by, and it says so up to two
seconds before the connection to the agent ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection

from devloop.agent.objects import Document
from devloop.errors import RemoteError
from devloop.failures import contained
from devloop.remote.kubernetes.api import Api, ApiError
from devloop.remote.kubernetes.install import SELECTOR

from .claims import Claims
from .replace import is_ready

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
AGAIN_SECONDS = (0.1, 1.0, 5.0)
"""Before the next watch: after one that has ended, one that was cut, and one that was refused."""


class Bridge:
    """See the module. `led` are the Services that lead to the agent for us; `gone` is called when its pod has gone."""

    def __init__(self, api: Api, claims: Claims, led: Callable[[], Collection[str]], gone: Callable[[], None]) -> None:
        self._api = api
        self._claims = claims
        self._led = led
        self._gone = gone
        self._path = f"/api/v1/namespaces/{api.namespace}/pods"

    async def watching(self) -> None:
        """Lead back as soon as the agent's pod is gone, or not ready. For good."""
        while True:
            pause = AGAIN_SECONDS[0]
            try:
                async for kind, pod in self._api.watch(self._path, labelSelector=SELECTOR):
                    if is_gone(kind, pod):
                        self._gone()
                        await self.lead_back()
            except ApiError as problem:
                log.info("the agent's pod can't be watched: %s", problem.what)
                pause = AGAIN_SECONDS[2]
            except (RemoteError, OSError, TimeoutError):
                pause = AGAIN_SECONDS[1]
            await asyncio.sleep(pause)

    async def until(self, connected: asyncio.Event) -> None:
        """While the link is lost, look again and again: the watch may be lost as well."""
        while not connected.is_set():
            await self.lead_back()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await connected.wait()

    async def lead_back(self) -> None:
        """If no agent is ready, and the API can be reached."""
        names = self._led()
        if not names:
            return
        try:
            if not any(map(is_ready, await self.pods())):
                led = await asyncio.gather(*map(self._claims.unlead, names), return_exceptions=True)
                for problem in led:  # each is tried again, and keeps no other from being led back
                    if isinstance(problem, Exception):
                        log.info("a Service is not led back: %s", contained(problem, "it can't be led back"))
        except RemoteError as problem:
            log.info("the agent can't be looked for: %s", problem.what)

    async def pods(self) -> list[Document]:
        """The agent's. RemoteError."""
        return list((await self._api.get(self._path, labelSelector=SELECTOR)).get("items") or [])


def is_gone(kind: str, pod: Document) -> bool:
    """Whether an event of a watch says that nothing is led to an agent any more. To one that is being deleted it is."""
    return kind == "DELETED" or not (pod["metadata"].get("deletionTimestamp") or is_ready(pod))

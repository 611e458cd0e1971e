"""The size of a replaced workload: zero, and zero again when somebody else has started it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from http import HTTPStatus

from devloop.agent import objects
from devloop.agent.paths import workloads
from devloop.errors import RemoteError
from devloop.failures import contained
from devloop.remote.kubernetes.api import Api, ApiError

from . import replace
from .attachment import Attachment
from .claims import Claims, version
from .seam import AttachError, Phase

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at the size while pods end, and where workloads may not be watched."""
UNDONE = -1
"""Of `Attachment.sized`: somebody has started it, and that is told."""


class Sizes:
    """One engine's. `undone` hears of an attachment whose workload somebody has started: what, and whether that was
    another devloop (an agent that has put it back)."""

    def __init__(self, api: Api, claims: Claims, undone: Callable[[Attachment, str, bool], None]) -> None:
        self._api = api
        self._claims = claims
        self._undone = undone
        self._unseen: dict[str, tuple[str, objects.Document]] = {}
        """By attachment, the last that was told of its workload while its size was about to be set."""

    async def stop(self, found: Attachment) -> None:
        """Set it to zero; its last pod has gone when this returns. AttachError if they don't end, RemoteError."""
        workload = found.spec.workload
        until = time.monotonic() + replace.GONE_SECONDS
        while not (found.over and found.task is not None):
            scale = await self._claims.resize(workload, 0)
            found.sized = version(scale)
            late = self._unseen.pop(found.spec.id, None)
            if late is not None and found.task is not None:
                self.seen(found, *late)  # it came while the size was being set: after it, or before
            selector = str(scale.get("status", {}).get("selector") or "")
            if not selector:
                return
            grace = await replace.until_gone(self._api, selector, LOOK_SECONDS)
            if grace is None:
                if not await self._claims.size(workload):
                    return
                continue  # started again since
            if time.monotonic() > until + grace:
                raise AttachError(f"its pods have not ended in {replace.GONE_SECONDS + grace:g} s", where=workload)

    async def watching(self, found: Attachment) -> None:
        """Notice what others do to its size, for as long as it is held."""
        kind, _, name = found.spec.workload.partition("/")
        path = workloads(self._api.namespace, f"{kind}s")
        while not found.over:
            try:
                async for event, workload in self._api.watch(path, fieldSelector=f"metadata.name={name}"):
                    self.seen(found, event, workload)
            except ApiError as problem:
                if problem.status == HTTPStatus.FORBIDDEN:
                    await self._look(found)
                else:
                    log.info("%s can't be watched: %s", found.spec.workload, problem.what)
                await asyncio.sleep(LOOK_SECONDS)
            except (RemoteError, OSError, TimeoutError):
                await asyncio.sleep(LOOK_SECONDS)
            except Exception as problem:  # a fault of ours: it is told, and its size is watched on
                contained(problem, f"the size of {found.spec.workload} can't be followed")
                await asyncio.sleep(LOOK_SECONDS)

    def seen(self, found: Attachment, event: str, workload: objects.Document) -> None:
        """What the watch tells of it."""
        if found.over:
            return
        if found.sized == UNDONE:
            self._unseen[found.spec.id] = ("MODIFIED", workload)
            return
        if event == "DELETED":
            if found.state.phase is Phase.ATTACHED:
                found.become(Phase.ATTACHED, f"{found.spec.workload} was deleted; one of its name is stopped again")
            return
        # Another object of its name has no version in common with the last one; a size above zero is news in any case.
        size = int(workload["spec"].get("replicas", 1))
        if size and (version(workload) > found.sized or event == "ADDED"):
            self._tell(found, size, objects.changed_by(workload, "replicas"))

    async def _look(self, found: Attachment) -> None:
        """The same by its size alone: who has set it can't be told then."""
        try:
            size = await self._claims.size(found.spec.workload)
        except (RemoteError, OSError, TimeoutError):
            return
        if size and not found.over and found.sized != UNDONE:
            self._tell(found, size, "")

    def _tell(self, found: Attachment, size: int, who: str) -> None:
        found.sized = UNDONE
        text = f"{who or 'somebody'} has set the size of {found.spec.workload} to {size}"
        self._undone(found, text, who == "devloop")

"""Attachments that end: all is put back, and tried again while the API server or the agent has trouble.

Each is put back by a task of its own, which goes on when nobody waits for it any more (Ctrl-C). A new attachment of the
same id, or of the same workload, waits until that is over: both would write the same objects.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping

from devloop.agent import objects
from devloop.agent.objects import Dead
from devloop.agent.spec import Spec
from devloop.agent.tasks import background
from devloop.errors import RemoteError
from devloop.failures import contained

from . import replace
from .attachment import Attachment
from .claims import Claims
from .seam import AttachError
from .session import Session, SessionLostError

log = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0
"""How long requests that the local service is answering may take to end when it leaves."""
END_SECONDS = 1.0
AGAIN_SECONDS = (0.1, 5.0)
"""Between two tries to put back what could not be: at first, and at most."""
PATIENCE_SECONDS = 3.0
"""How long who leaves waits for these tries."""
GIVE_UP_SECONDS = 120.0
"""After so long they end: the lease is over by then, and what is left is the agent's."""


class UnsettledError(RemoteError):
    """All is put back that can be; whether a workload will be set to zero yet is not known."""


class Releases:
    """One engine's. `session` gives the connection to the agent, if there is one."""

    def __init__(
        self, claims: Claims, locks: Mapping[str, asyncio.Lock], session: Callable[[], Session | None]
    ) -> None:
        """`locks`: by Service, or workload where there is none; what is missing is made."""
        self._claims = claims
        self._locks = locks
        self._session = session
        self._going: dict[Attachment, asyncio.Task[None]] = {}
        self._again: dict[Attachment, asyncio.Task[None]] = {}

    @property
    def kept(self) -> tuple[Attachment, ...]:
        """Those whose leases are to be renewed: they are being put back, or may have to be yet."""
        unsettled = (each for each in self._again if each.spec.workload in self._claims.unsettled)
        return tuple(dict.fromkeys((*self._going, *unsettled)))

    def begin(self, found: Attachment, *, stop: bool = True) -> asyncio.Task[None]:
        """Put it back. The task ends when that is done and what the local service was answering is answered, or with
        a RemoteError: then it is tried again for a while, and left to the agent when the lease is over.

        What stands in for a workload is stopped before that starts again, unless `stop` is false.
        """
        if (going := self._going.get(found)) is not None:
            return going
        found.cancel()
        task = asyncio.create_task(self._release(found, stop=stop), name=f"putting back {found.spec.id}")
        self._going[found] = task
        task.add_done_callback(lambda _: self._going.pop(found, None))
        task.add_done_callback(_tell)
        return task

    async def free(self, spec: Spec) -> None:
        """Until nothing is put back any more of an earlier attachment that has the id or the lease of this one.

        What of the same id is tried again is left to this one: it takes up the lease as it is.
        """
        name = objects.lease_name(spec)
        tasks = [task for each, task in self._going.items() if each.spec.id == spec.id or each.lease == name]
        for each, task in self._again.items():
            if each.spec.id == spec.id:
                task.cancel()
                tasks.append(task)
        if tasks:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Until all is put back that can be now. What is left is the agent's."""
        await asyncio.gather(*self._going.values(), return_exceptions=True)
        tasks = list(self._again.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- One ----------------------------------------------------------------------------------------------------------

    async def _release(self, found: Attachment, *, stop: bool) -> None:
        """Undo, in the order that leaves no request unanswered, and no queue with two consumers."""
        if found.tasks:  # they are cancelled, and one that is slow to end keeps nothing from being put back
            await asyncio.wait(found.tasks, timeout=END_SECONDS)
        found.stop()
        handed_over = await found.local.stop() if stop and found.spec.kind == "replace" and found.task else None
        whole = False
        try:
            whole = await self._undo(found, handed_over)
        finally:
            if handed_over is not None:
                handed_over()
            again = None if whole else self._try_again(found)
        if again is not None:
            await asyncio.wait([again], timeout=PATIENCE_SECONDS)
            if not again.done():
                what = f"whether {found.spec.workload or found.spec.service} is as it was can't be told yet"
                hint = "Its lease stays until it can. Devloop puts back what is left; without devloop the agent does."
                raise UnsettledError(what, where=self._claims.api.where, hint=hint)

    async def _undo(self, found: Attachment, handed_over: Callable[[], None] | None) -> bool:
        """Whether nothing is left."""
        spec, session = found.spec, self._session()
        good = session if session is not None and not session.lost and spec.service else None
        async with self._locks[spec.service or spec.workload]:
            try:
                if spec.kind == "replace" and spec.service:
                    await self._back_to_size(found)
                if good is not None:
                    with contextlib.suppress(SessionLostError, AttachError):
                        await good.detach(spec)
                return await self._restore(found)
            finally:
                if handed_over is not None:
                    handed_over()  # what waits goes to the pods now, which are ready
                # Also if something is left: another attachment of this id may have another local port.
                if good is not None:
                    await good.drained(spec, DRAIN_SECONDS)
                    await good.forget(spec)

    async def _restore(self, found: Attachment) -> bool:
        """A replaced workload's lease has the workload's name, and may be somebody else's by now."""
        return await self._claims.restore({found.lease: Dead(attachment=found.spec.id)})

    async def _back_to_size(self, found: Attachment) -> None:
        """The replaced pods first, so that there is somebody to lead the traffic back to."""
        for each in await self._claims.leases():
            if each["metadata"]["name"] == found.lease and objects.stands_for(each, found.spec):
                said = (each["metadata"].get("annotations") or {}).get(objects.REPLICAS, "")
                if said.isdecimal():
                    api, service = self._claims.api, found.spec.service
                    scale = await self._claims.resize(found.spec.workload, int(said), only_from=0)
                    await replace.until_ready(api, str(scale["status"].get("selector") or ""), int(said))
                    if int(said):
                        await replace.until_endpoints(api, objects.shadow_name(service))

    # --- Again --------------------------------------------------------------------------------------------------------

    def _try_again(self, found: Attachment) -> asyncio.Task[None]:
        task = background(self._trying(found), name=f"putting back {found.spec.id} again")
        self._again[found] = task
        task.add_done_callback(lambda _: self._again.pop(found, None))
        return task

    async def _trying(self, found: Attachment) -> None:
        pause, until = AGAIN_SECONDS[0], time.monotonic() + GIVE_UP_SECONDS
        while time.monotonic() < until:
            await asyncio.sleep(pause)
            pause = min(pause * 2, AGAIN_SECONDS[1])
            try:
                async with self._locks[found.spec.service or found.spec.workload]:
                    if await self._restore(found):
                        return
            except (RemoteError, OSError, TimeoutError) as problem:
                log.info("%s is not put back yet: %s", found.spec.id, problem)
            except Exception as problem:  # a fault of ours: it is told, and tried again
                contained(problem, f"{found.spec.id} can't be put back")


def _tell(task: asyncio.Task[None]) -> None:
    """Nobody may wait for it."""
    if not task.cancelled() and (problem := task.exception()) is not None:
        log.info("%s: %s", task.get_name(), problem)
        if not isinstance(problem, RemoteError | OSError | TimeoutError):
            contained(problem, f"{task.get_name()} has failed")

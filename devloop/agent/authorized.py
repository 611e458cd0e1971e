"""Who may log in: developers whose key has an entry in the cluster (`keys.py`), looked up there at each login.

One object is asked for by its name, so that nothing that others have written, or how much of it, keeps anybody out,
and nothing is remembered of keys that nobody uses. Of objects only the metadata is read, and no more than a bound.
"""

from __future__ import annotations

import asyncio
import logging
import time
import urllib.error
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, Protocol

from .keys import SELECTOR, age, config_maps, entry_name, is_entry, over, suffix_of
from .presence import ClusterApi, TooLongError

log = logging.getLogger("agent")

AT_ONCE = 8
"""So many entries are asked for at the same time; whoever asks for more waits in line."""
ENTRY_BYTES = 64 << 10
"""An entry's metadata is a KiB or two. One that is longer lets nobody in."""
SWEEP_SECONDS = 300.0
JOINING_SECONDS = 15.0
"""So long after it has been made, an entry's owner is waited for."""
PAGE, PAGE_BYTES, OBJECT_BYTES = 50, 1 << 20, 16 << 20
"""So many entries are read at a time, and so much of them. One alone has 1.5 MiB in etcd, six times that as JSON."""
PAGES = 40
"""So many pages are looked at for somebody who is just joining."""


class Admission(Protocol):
    """Who is let in; each is known by the name of their entry."""

    async def admits(self, public: bytes, username: str) -> str:
        """The entry that lets this key in, which is in SSH's wire format; empty if none does."""

    def entered(self, entry: str) -> None:
        """Somebody has logged in with it: it stays while they are here, however long."""

    def left(self, entry: str) -> None:
        """They are gone, and may come back."""

    async def goodbye(self, entry: str) -> None:
        """Its owner needs it no more."""

    async def joining(self) -> bool:
        """Whether somebody has made an entry a moment ago, and is not here yet."""

    async def keep(self) -> None:
        """Remove what is over, from time to time; does not return."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept of one that was listed."""

    name: str
    uid: str
    age: float
    over: bool


class Authorized:
    """As the API of the cluster has them."""

    def __init__(self, api: ClusterApi) -> None:
        self._api = api
        self._path = config_maps(api.namespace)
        self._asking = asyncio.Semaphore(AT_ONCE)
        self._here: Counter[str] = Counter()
        self._recent: dict[str, float] = {}
        """When each of the last minute's was here first or last; monotonic seconds."""

    async def admits(self, public: bytes, username: str) -> str:
        """See Admission."""
        if not (suffix := suffix_of(username)):
            return ""
        name = entry_name(public, suffix)
        try:
            async with self._asking:
                found, now = await asyncio.to_thread(self._api.metadata, f"{self._path}/{name}", ENTRY_BYTES)
        except urllib.error.HTTPError as problem:
            problem.close()
            if problem.code != HTTPStatus.NOT_FOUND:
                log.warning("keys can't be looked up: %s", problem)
            return ""
        except (OSError, HTTPException, ValueError) as problem:
            log.warning("%s can't be read: %s", name, problem)
            return ""
        metadata = _metadata(found)
        return name if metadata.get("name") == name and is_entry(metadata) and not over(metadata, now) else ""

    def entered(self, entry: str) -> None:
        """See Admission."""
        self._here[entry] += 1
        self._note(entry)

    def left(self, entry: str) -> None:
        """See Admission."""
        self._here[entry] -= 1
        if self._here[entry] <= 0:
            del self._here[entry]
        self._note(entry)

    def _note(self, entry: str) -> None:
        now = time.monotonic()
        self._recent = {name: since for name, since in self._recent.items() if now - since < 4 * JOINING_SECONDS}
        self._recent[entry] = now

    async def goodbye(self, entry: str) -> None:
        """See Admission."""
        await self._delete(entry)

    async def joining(self) -> bool:
        """See Admission. Where there is no end to the entries, somebody may be."""
        pages = 0
        try:
            async for page in self._pages():
                pages += 1
                for each in page:
                    if each.age < JOINING_SECONDS and not each.over and each.name not in self._recent:
                        return True
                if pages >= PAGES:
                    return True
        except (OSError, HTTPException, ValueError) as problem:
            log.warning("keys can't be listed: %s", problem)
        return False

    async def keep(self) -> None:
        """See Admission."""
        while True:
            try:
                await self.sweep()
            except (OSError, HTTPException, ValueError) as problem:
                log.warning("keys that are over can't be removed: %s", problem)
            await asyncio.sleep(SWEEP_SECONDS)

    async def sweep(self) -> None:
        """Remove all that is over and that nobody is here with. Raises what the API's calls do."""
        async for page in self._pages():
            for each in page:
                if each.over and each.name not in self._here:
                    log.info("%s is over", each.name)
                    await self._delete(each.name, each.uid)

    async def _delete(self, name: str, uid: str = "") -> None:
        body = {"preconditions": {"uid": uid}} if uid else None
        try:
            await asyncio.to_thread(self._api.call, "DELETE", f"{self._path}/{name}", body)
        except urllib.error.HTTPError as problem:
            problem.close()
            if problem.code not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                log.warning("%s can't be removed: %s", name, problem)
        except (OSError, HTTPException, ValueError) as problem:
            log.warning("%s can't be removed: %s", name, problem)

    async def _pages(self) -> AsyncIterator[list[Entry]]:
        """All entries, a page at a time; what is on its way out is left out. Raises what the API's calls do."""
        size, token = PAGE, ""
        while True:
            query = f"labelSelector={SELECTOR}&limit={size}" + (f"&continue={token}" if token else "")
            try:
                most = PAGE_BYTES if size > 1 else OBJECT_BYTES
                found, now = await asyncio.to_thread(self._api.metadata, f"{self._path}?{query}", most)
            except TooLongError:
                if size == 1:
                    raise
                size = max(1, size // 8)
                continue
            except urllib.error.HTTPError as problem:
                problem.close()
                if problem.code == HTTPStatus.GONE:  # the list is too old to go on with: the next sweep is another
                    return
                raise
            items = found.get("items")
            yield [
                _entry(each, now) for each in map(_metadata, items if isinstance(items, list) else ()) if is_entry(each)
            ]
            token = str(_metadata(found).get("continue") or "")
            if not token:
                return


def _metadata(found: Any) -> dict[str, Any]:
    metadata = found.get("metadata") if isinstance(found, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def _entry(metadata: dict[str, Any], now: datetime) -> Entry:
    try:
        seconds = age(metadata, now)
    except ValueError:
        seconds = float("inf")
    return Entry(str(metadata["name"]), str(metadata.get("uid", "")), seconds, over(metadata, now))

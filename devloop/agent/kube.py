"""The agent's view of its namespace: objects kept in step by a watch, and restoration.

The agent's image has no Kubernetes client. What is here is blocking and runs in threads: a daemon thread for each
kind that is watched, and the event loop's own executor for single calls.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import urllib.error
from collections.abc import Callable, Collection, Iterable
from http import HTTPStatus
from typing import Any

from .objects import REPLICAS, Call, Snapshot, next_step, spec_of
from .paths import STEPS, leases, scale, services
from .presence import ClusterApi

log = logging.getLogger("agent.kube")

Document = dict[str, Any]
RETRY_SECONDS = (0.1, 5.0)
FORBIDDEN_SECONDS = 60.0
WATCH_SECONDS = 75
SILENCE_SECONDS = 90.0
"""The API server ends a watch before that. One that hears nothing for so long has lost its connection in silence. Not
every API server gives bookmarks, which would tell sooner."""
ERROR_BYTES = 64 << 10
"""What is read of an answer that is an error."""
AGAIN = frozenset(
    (
        HTTPStatus.CONFLICT,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    )
)
"""What the API server answers where the same call may do in a moment."""
MANAGER = "fieldManager=devloop"
"""How the API server notes who has changed what (managedFields)."""


class Watched:
    """The objects of one kind, by name. `changed` is called from the event loop after each change."""

    def __init__(self, api: ClusterApi, path: str, changed: Callable[[], None], query: str = "") -> None:
        self.objects: dict[str, Document] = {}
        self.synced = asyncio.Event()
        self.forbidden = False
        """The agent may not see them."""
        self._api = api
        self._path = path
        self._query = query
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._closed = threading.Event()
        threading.Thread(target=self._run, name=f"watch {path}", daemon=True).start()

    def close(self) -> None:
        """Hear no more. The thread ends with its watch."""
        self._closed.set()

    def _run(self) -> None:
        delay = RETRY_SECONDS[0]
        while not self._closed.is_set():
            try:
                found = self._api.call("GET", f"{self._path}?{self._query}")
                self._tell(self._all, found.get("items") or [])
                version = found["metadata"]["resourceVersion"]
                query = f"watch=1&timeoutSeconds={WATCH_SECONDS}"
                query += f"&resourceVersion={version}&{self._query}"
                delay = RETRY_SECONDS[0]
                for line in self._api.lines(f"{self._path}?{query}", SILENCE_SECONDS):
                    event = json.loads(line)
                    if event["type"] == "ERROR" or self._closed.is_set():
                        break
                    if event["type"] == "BOOKMARK":  # nothing has changed
                        continue
                    self._tell(self._one, event["type"], event["object"])
            except urllib.error.HTTPError as problem:
                problem.close()
                if problem.code == HTTPStatus.FORBIDDEN:
                    self._tell(self._refused)
                    self._closed.wait(FORBIDDEN_SECONDS)
            except Exception as problem:  # http.client's own too: half an answer is no OSError. The watch must go on.
                log.info("%s: %s: %s", self._path, type(problem).__name__, problem)
            self._closed.wait(delay)
            delay = min(delay * 2, RETRY_SECONDS[1])

    def _tell(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop has closed
            self._closed.set()

    def _all(self, items: Iterable[Document]) -> None:
        self.objects = {each["metadata"]["name"]: each for each in items}
        self.forbidden = False
        self.synced.set()
        self._changed()

    def _one(self, kind: str, found: Document) -> None:
        name = found["metadata"]["name"]
        if kind == "DELETED":
            self.objects.pop(name, None)
        else:
            self.objects[name] = found
        self._changed()

    def _refused(self) -> None:
        self.forbidden = True
        self.synced.set()
        self._changed()


def snapshot(api: ClusterApi) -> Snapshot:
    """What is there now. Services before leases: whatever a Service is marked for had its lease before. Blocking."""
    found = api.call("GET", services(api.namespace)).get("items") or []
    held = api.call("GET", f"{leases(api.namespace)}?labelSelector=devloop.dev/lease").get("items") or []
    sizes: dict[str, int | None] = {}
    for each in held:
        spec = spec_of(each)
        if spec is not None and spec.workload and REPLICAS in (each["metadata"].get("annotations") or {}):
            kind, _, name = spec.workload.partition("/")
            try:
                size = api.call("GET", scale(api.namespace, f"{kind}s", name))
                sizes[spec.workload] = int(size["spec"].get("replicas", 0))
            except urllib.error.HTTPError as problem:
                problem.close()
                if problem.code == HTTPStatus.NOT_FOUND:
                    sizes[spec.workload] = None
                else:
                    log.warning("the size of %s can't be read: %s", spec.workload, problem)
    return Snapshot(tuple(found), tuple(held), sizes)


def perform(api: ClusterApi, call: Call) -> None:
    """One call of a restoration. Blocking; HTTPError."""
    namespace = api.namespace
    if call.verb == "SCALE":
        path = scale(namespace, call.kind, call.name)
        found = api.call("GET", path)
        if found["spec"].get("replicas", 0) == 0:
            api.call("PUT", f"{path}?{MANAGER}", {**found, "spec": {**found["spec"], "replicas": call.replicas}})
        return
    path = {"services": services, "leases": leases}[call.kind](namespace)
    api.call(call.verb, f"{path}/{call.name}?{MANAGER}", call.body)


def restore(api: ClusterApi, dead: Collection[str]) -> int:
    """Put back what nobody holds, until there is nothing left of it; how many calls it took. Blocking; OSError."""
    for count in range(STEPS):
        step = next_step(snapshot(api), dead, vouched=True)
        if step is None:
            return count
        log.info("%s %s %s: %s", step.verb, step.kind, step.name, step.why)
        try:
            perform(api, step)
        except urllib.error.HTTPError as problem:
            problem.close()
            # Somebody else was quicker, and it is looked at anew.
            if problem.code not in (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND):
                raise
            time.sleep(0.02 * (count + 1))
    return STEPS


def error_text(problem: urllib.error.HTTPError) -> str:
    """What the API server says."""
    try:
        return str(json.loads(problem.read(ERROR_BYTES))["message"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return str(problem)

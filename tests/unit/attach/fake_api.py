"""The API server, as far as attachments use it, in memory: versions, conflicts, preconditions, and crashes."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

from devloop.remote.kubernetes.api import ApiError

Document = dict[str, Any]


class CrashError(Exception):
    """The client has died: nothing of it is done any more."""


def service(name: str = "api", **spec: Any) -> Document:
    ports = [
        {"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"},
        {"name": "admin", "port": 81, "targetPort": 8081, "protocol": "TCP"},
    ]
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "annotations": {"owner": "shop"}, "labels": {"team": "a"}},
        "spec": {"selector": {"app": name}, "ports": ports, "clusterIP": "10.0.0.1", **spec},
    }


class FakeApi:
    namespace = "space"
    where = "fake/space"

    def __init__(self, *services: Document, workloads: dict[str, int] | None = None) -> None:
        self.objects: dict[str, Document] = {}
        self.sizes = dict(workloads or {})
        self.calls: list[str] = []
        self.crash_after: int | None = None
        self.before: Callable[[str, str], None] = lambda method, path: None
        self._versions = itertools.count(1)
        self.sized = 0
        """The version of the size that was set last."""
        for each in services:
            self._store(f"/api/v1/namespaces/space/services/{each['metadata']['name']}", each)

    def _store(self, path: str, body: Document) -> Document:
        kept = copy.deepcopy(body)
        kept["metadata"]["resourceVersion"] = str(next(self._versions))
        kept["metadata"].setdefault("uid", f"uid-{path}")
        self.objects[path] = kept
        return copy.deepcopy(kept)

    def plain(self) -> dict[str, Any]:
        """Everything, without versions."""
        out = copy.deepcopy(self.objects)
        for each in out.values():
            del each["metadata"]["resourceVersion"]
        return {**out, **self.sizes}

    async def get(self, path: str, **query: str) -> Document:
        found = await self.find(path)
        if found is None:
            raise ApiError(404, "NotFound", path, where=self.where)
        return found

    async def find(self, path: str) -> Document | None:
        self.before("GET", path)
        if path.endswith("/scale"):
            size = self.sizes.get(path.split("/")[-3] + "/" + path.split("/")[-2])
            version = {"resourceVersion": str(self.sized)}
            return None if size is None else {"metadata": version, "spec": {"replicas": size}, "status": {}}
        if path.endswith(("/services", "/leases")):
            return {"items": [copy.deepcopy(each) for key, each in self.objects.items() if key.startswith(f"{path}/")]}
        found = self.objects.get(path)
        return copy.deepcopy(found) if found is not None else None

    async def request(self, method: str, path: str, body: Any = None, **_: Any) -> Document:
        self.before(method, path)
        if self.crash_after is not None and len(self.calls) >= self.crash_after:
            raise CrashError
        self.calls.append(f"{method} {path.rsplit('/namespaces/space/')[1]}")
        if path.endswith("/scale"):
            self.sized = next(self._versions)
            self.sizes[path.split("/")[-3] + "/" + path.split("/")[-2]] = body["spec"]["replicas"]
            return {**body, "metadata": {"resourceVersion": str(self.sized)}}
        target = f"{path}/{body['metadata']['name']}" if method == "POST" else path
        found = self.objects.get(target)
        if method == "POST":
            if found is not None:
                raise ApiError(409, "AlreadyExists", path, where=self.where)
            return self._store(target, body)
        if found is None:
            raise ApiError(404, "NotFound", path, where=self.where)
        wanted = body.get("preconditions", {}) if method == "DELETE" else body["metadata"]
        for key in ("uid", "resourceVersion"):
            if key in wanted and wanted[key] != found["metadata"][key]:
                raise ApiError(409, "Conflict", path, where=self.where)
        if method == "DELETE":
            return self.objects.pop(target)
        if method == "PATCH":
            return self._store(target, {**found, "spec": {**found["spec"], **body["spec"]}})
        return self._store(target, {**body, "metadata": {**body["metadata"], "uid": found["metadata"]["uid"]}})

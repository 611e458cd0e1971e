"""Pods, and the part of the API server and of the agent that doors are put into them by, in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from devloop.remote.kubernetes.api import ApiError

Document = dict[str, Any]
AGENT = "10.0.0.9:19999"


def pod(
    name: str,
    *,
    phase: str = "Running",
    ending: bool = False,
    ports: dict[str, int] | None = None,
    doors: list[Document] | None = None,
    states: dict[str, Document] | None = None,
    **spec: Any,
) -> Document:
    number = int(name.rpartition("-")[2])
    named = {"http": 8080} if ports is None else ports
    found: Document = {
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": {"app": "web"}},
        "spec": {
            "containers": [{"ports": [{"name": key, "containerPort": port} for key, port in named.items()]}],
            "ephemeralContainers": doors or [],
            **spec,
        },
        "status": {
            "phase": phase,
            "podIPs": [{"ip": f"10.0.0.{number + 1}"}],
            "hostIP": "192.168.0.1",
            "ephemeralContainerStatuses": [{"name": key, "state": value} for key, value in (states or {}).items()],
        },
    }
    if ending:
        found["metadata"]["deletionTimestamp"] = "now"
    return found


class FakePods:
    """An API server with a headless Service `web`, its pods and an agent; and the agent's desk (`ask`).

    A door that is put into a pod is caught at the next look, or ends with what `dies` says.
    """

    namespace = "space"
    where = "fake/space"

    def __init__(self, service: Document, *names: str) -> None:
        self.service: Document | None = service
        self.pods = {name: pod(name) for name in names}
        self.dies = ""
        self.refuses: Callable[[str], ApiError | None] = lambda name: None
        self.dry: list[str] = []
        self.asked: list[list[Document]] = []

    async def get(self, path: str, **query: str) -> Document:
        if "devloop-agent" in query.get("labelSelector", ""):
            agent = pod("agent-8")
            agent["spec"]["containers"][0]["image"] = "agent:7"
            agent["status"]["containerStatuses"] = [{"state": {"running": {}}}]
            return {"items": [agent]}
        wanted = dict(each.split("=") for each in query.get("labelSelector", "").split(",") if each)
        found = [each for each in self.pods.values() if wanted.items() <= each["metadata"]["labels"].items()]
        return {"items": copy.deepcopy(found)}

    async def find(self, path: str) -> Document | None:
        return copy.deepcopy(self.service)

    async def request(self, method: str, path: str, body: Any = None, *, query: Any = None, **_: Any) -> Document:
        assert (method, path.rsplit("/", 1)[1]) == ("PATCH", "ephemeralcontainers")
        name = path.split("/")[-2]
        if problem := self.refuses(name):
            raise problem
        if query.get("dryRun"):
            self.dry.append(name)
            return {}
        found = self.pods[name]
        assert body["metadata"]["uid"] == found["metadata"]["uid"]
        (made,) = body["spec"]["ephemeralContainers"]
        found["spec"]["ephemeralContainers"].insert(0, made)  # in no order
        state = (
            {"terminated": {"reason": "Error", "exitCode": 1, "message": self.dies}} if self.dies else {"running": {}}
        )
        found["status"]["ephemeralContainerStatuses"].append({"name": made["name"], "state": state})
        return {}

    def kill(self, name: str) -> None:
        """The last door of a pod."""
        self.pods[name]["status"]["ephemeralContainerStatuses"][-1]["state"] = {"terminated": {"exitCode": 137}}

    def doors(self) -> dict[str, int]:
        """How many were put into each."""
        return {name: len(each["spec"]["ephemeralContainers"]) for name, each in self.pods.items()}

    async def ask(self, **message: Any) -> Document:
        """See `devloop/attach/session.py`."""
        assert message["do"] == "doors"
        self.asked.append(message["pods"])
        standing = {}
        for each in message["pods"]:
            statuses = self.pods[each["name"]]["status"]["ephemeralContainerStatuses"]
            standing[each["uid"]] = "caught" if statuses and "running" in statuses[-1]["state"] else ""
        return {"agent": AGENT, "token": "secret", "pods": standing}

"""What the pods of a workload print, as the API server gives it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from devloop.errors import UsageError
from devloop.remote.kubernetes import podlogs
from devloop.remote.kubernetes.api import Api, ApiError, ApiUnreachableError
from devloop.remote.kubernetes.podlogs import Line, Source, Wanted

STAMP = "2026-11-28T03:15:3{}.5Z"
START = 1_795_835_730_500_000_000  # STAMP with 0, in nanoseconds


def pod(name: str, instance: str = "one", *containers: str) -> dict[str, Any]:
    names = containers or ("main",)
    return {
        "metadata": {"name": name, "uid": f"uid-{name}"},
        "spec": {"containers": [{"name": each} for each in names]},
        "status": {"containerStatuses": [{"name": each, "containerID": f"x://{instance}"} for each in names]},
    }


class Cluster:
    """An API server with a Deployment `web` and a log of each pod, in pieces."""

    namespace, where = "shop", "test/shop"

    def __init__(self) -> None:
        self.pods = [pod("web-1"), pod("web-2")]
        self.logs: dict[str, list[bytes | Exception]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []

    async def find(self, path: str) -> Any:
        if path == "/apis/apps/v1/namespaces/shop/deployments/web":
            return {"metadata": {"uid": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}}}}
        if path.startswith("/apis/argoproj.io"):
            raise ApiError(403, "Forbidden", "no", where="x")
        return None

    async def get(self, path: str, **query: str) -> Any:
        assert path == "/api/v1/namespaces/shop/pods" and query == {"labelSelector": "app=web"}
        return {"items": self.pods}

    async def stream(self, path: str, **query: str) -> AsyncIterator[bytes]:
        name = path.split("/")[-2]
        self.asked.append((name, query))
        for each in self.logs.pop(name, []):
            if isinstance(each, Exception):
                raise each
            yield each
        if query.get("follow"):
            await asyncio.Event().wait()


def api(cluster: Cluster) -> Api:
    return cast(Api, cluster)


def line(second: int, text: str) -> bytes:
    return f"{STAMP.format(second)} {text}\n".encode()


async def test_a_workload_is_found_by_kind_or_by_name_alone() -> None:
    cluster = Cluster()
    for reference in ("web", "deployment/web", "deploy/web"):
        found = await podlogs.source(api(cluster), reference, "main")
        assert found == Source("deployment/web", "app=web", "", "main")
    with pytest.raises(UsageError, match="no workload 'webb'"):
        await podlogs.source(api(cluster), "webb", None)


WEB = Source("deployment/web", "app=web")


async def printed(cluster: Cluster, wanted: Wanted) -> list[Line]:
    return [line async for line in podlogs.read(api(cluster), [WEB], wanted)]


async def test_lines_are_printed_as_they_come_and_not_kept() -> None:
    """However much pods have printed: here it has no end."""
    cluster, given = Cluster(), Counter[str]()

    async def endless(path: str, **query: str) -> AsyncIterator[bytes]:
        while True:
            given[path] += 1
            yield line(given[path] % 50, "x" * 1000)

    cluster.stream = endless  # type: ignore[method-assign, assignment]
    lines = podlogs.read(api(cluster), [WEB], Wanted())
    async with asyncio.timeout(20):
        for _ in range(100):
            await anext(lines)
    assert sum(given.values()) < 110
    await lines.aclose()  # type: ignore[attr-defined]


async def test_lines_of_all_pods_come_in_order_of_their_time() -> None:
    cluster = Cluster()
    cluster.logs = {
        "web-1": [line(0, "a")[:9], line(0, "a")[9:] + line(2, "c 1\r"), b"no time"],
        "web-2": [line(1, "b") + STAMP.format(3).encode() + b" last"],
    }
    found = await printed(cluster, Wanted(tail=5, since=60))
    assert [(each.pod, each.text) for each in found] == [
        ("web-1", "a"), ("web-2", "b"), ("web-1", "c 1"), ("web-1", "no time"), ("web-2", "last"),
    ]  # fmt: skip
    assert found[0].at == START and found[3].at == 0
    asked = {"container": "main", "timestamps": "true", "tailLines": "5", "sinceSeconds": "60"}
    assert cluster.asked == [("web-1", asked), ("web-2", asked)]


async def test_a_line_without_an_end_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(podlogs, "LONGEST_LINE", 100)
    cluster = Cluster()
    cluster.pods = cluster.pods[:1]
    cluster.logs = {"web-1": [b"x" * 60, b"x" * 60, b"y"]}
    assert [len(each.text) for each in await printed(cluster, Wanted())] == [120, 1]


async def test_no_pod_is_said() -> None:
    cluster = Cluster()
    cluster.pods = [{**pod("web-1"), "status": {}}]
    with pytest.raises(UsageError, match="deployment/web has no pod that has printed anything"):
        await printed(cluster, Wanted())


async def test_new_pods_and_lost_connections_are_followed_and_no_line_comes_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(podlogs, "AGAIN_SECONDS", 0.001)
    cluster, heard, news = Cluster(), list[Line](), asyncio.Event()
    cluster.pods = cluster.pods[:1]
    cluster.logs = {"web-1": [line(0, "a"), line(1, "b"), ApiUnreachableError("cut", where="x")]}

    def hear(found: Line) -> None:
        heard.append(found)
        news.set()

    async def until(count: int) -> None:
        async with asyncio.timeout(5):
            while len(heard) < count:
                news.clear()
                await news.wait()

    task = asyncio.create_task(podlogs.follow(api(cluster), WEB, Wanted(tail=10), hear))
    await until(2)
    # The connection is made anew from there, in whole seconds: what was told is not told again.
    cluster.logs = {"web-1": [line(1, "b"), line(2, "c")]}
    await until(3)
    # A container that has started again has a log of its own, and so has a new pod: all of it is new.
    cluster.logs = {"web-1": [line(3, "d")], "web-3": [line(4, "e")]}
    cluster.pods = [pod("web-1", "two"), pod("web-3")]
    await until(5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [each.text for each in heard] == ["a", "b", "c", "d", "e"]
    assert cluster.asked[0][1]["tailLines"] == "10" and "tailLines" not in cluster.asked[-1][1]


async def test_without_the_right_the_refusal_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(podlogs, "AGAIN_SECONDS", 5.0)
    cluster = Cluster()
    cluster.logs = {"web-1": [ApiError(403, "Forbidden", "pods/log is forbidden", where="x")]}
    async with asyncio.timeout(5):
        with pytest.raises(ApiError, match="pods/log"):
            await podlogs.follow(api(cluster), WEB, Wanted(), lambda _: None)

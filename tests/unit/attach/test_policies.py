"""A policy that keeps the agent from the original pods: found out by a connection, and named."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import pytest

from devloop.agent import reach
from devloop.attach.policies import refusal, selecting
from devloop.remote.kubernetes.api import ApiError

from .fake_api import service


def policy(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"podSelector": {"matchLabels": {"app": "api"}}, **spec}}


CLIENTS = policy("only-clients", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}])


@pytest.mark.parametrize(
    ("found", "kind", "names"),
    [
        (CLIENTS, "Ingress", ["only-clients"]),
        (CLIENTS, "Egress", []),
        (policy("out", egress=[]), "Egress", []),
        (policy("out", egress=[{}]), "Egress", ["out"]),
        (policy("out", policyTypes=["Egress"]), "Ingress", []),
        (policy("all", podSelector={}), "Ingress", ["all"]),
        (policy("none", podSelector={"matchLabels": {"app": "other"}}), "Ingress", []),
    ],
)
def test_which_policies_select_a_pod(found: dict[str, Any], kind: str, names: list[str]) -> None:
    assert selecting([found], {"app": "api"}, kind) == names


class Api:
    namespace = "shop"
    where = "x"

    def __init__(self, *policies: dict[str, Any], forbidden: bool = False) -> None:
        self.policies, self.forbidden = policies, forbidden

    async def get(self, path: str, **_: str) -> dict[str, Any]:
        if path.endswith("/networkpolicies"):
            if self.forbidden:
                raise ApiError(403, "Forbidden", "no", where="x")
            return {"items": list(self.policies)}
        return {"items": [{"metadata": {"name": "api-1", "labels": {"app": "api"}}}]}


@pytest.mark.parametrize(
    ("api", "said"),
    [
        (Api(CLIENTS), "10.0.0.1:8080), so all of its clients would wait in vain: the NetworkPolicy only-clients does"),
        (Api(forbidden=True), "a NetworkPolicy may be why, and they may not be read"),
        (Api(), "no NetworkPolicy of the namespace selects them"),
        (Api(policy("out", podSelector={}, policyTypes=["Egress"])), "the NetworkPolicy out does not let it out"),
    ],
)
async def test_the_refusal_names_the_policy(api: Api, said: str) -> None:
    error = await refusal(cast(Any, api), service(), ["10.0.0.1:8080"])
    assert said in error.what and error.hint is not None and "podSelector" in error.hint


async def test_what_answers_or_refuses_is_reached_and_what_says_nothing_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reach, "CONNECT_SECONDS", 0.05)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    with socket.socket() as closed, socket.socket() as full:
        closed.bind(("127.0.0.1", 0))
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # with its queue full the kernel drops a SYN, as a policy does
        waiting = []
        for _ in range(2):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(full.getsockname())
        there, refuses = server.sockets[0].getsockname(), closed.getsockname()
        silent = full.getsockname()
        assert await reach.unreached([[there], [refuses], [], [silent, there]]) == []
        assert await reach.unreached([[there], [silent]]) == [f"127.0.0.1:{silent[1]}"]
        for each in waiting:
            each.close()
    server.close()

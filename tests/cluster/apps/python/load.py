"""The Python half of the load: http.client and grpcio. It takes the same plans and prints the same lines as Go's
(`market/load.go`): python3 load.py FILE
"""

from __future__ import annotations

import collections
import http.client
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc

ENDING = threading.Event()
DEADLINE = 10.0
LOCK = threading.Lock()
SOME: dict[str, dict[str, Any]] = {}


class EndedError(Exception):
    """The server has said in order that it goes."""


class WrongError(Exception):
    """Not the answer to what was asked."""


def say(line: dict[str, Any]) -> None:
    with LOCK:
        print(json.dumps(line), flush=True)


def some(client: str, asked: float) -> dict[str, Any]:
    """What a client had since its last line; `since` is when the first of it was asked."""
    found = SOME.setdefault(
        client, {"client": client, "since": asked, "ok": 0, "ended": 0, "who": collections.Counter(), "slow": 0.0}
    )
    found["since"] = min(found["since"], asked)
    return found


class Http:
    """One keep-alive connection. http.client tries nothing twice; what the server closes while it is idle is an end."""

    def __init__(self, plan: dict[str, Any]) -> None:
        host, _, port = plan["target"].partition(":")
        self.connection = http.client.HTTPConnection(host, int(port), timeout=DEADLINE)
        self.connection.connect()
        self.closed = False

    def call(self, name: str) -> str:
        if self.closed or self.idle_end():
            raise EndedError
        self.connection.request("GET", "/", headers={"X-Id": name})
        response = self.connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise OSError(f"status {response.status}, {len(body)} bytes: {body[:80]!r}")
        answer = json.loads(body)
        if answer["id"] != name:
            raise WrongError(f"{answer['id']} for {name}")
        self.closed = response.will_close
        return str(answer["who"])

    def idle_end(self) -> bool:
        sock: Any = self.connection.sock
        sock.settimeout(0.0)
        try:
            return not sock.recv(1)  # a byte that nobody asked for is an end, too
        except BlockingIOError:
            return False
        finally:
            sock.settimeout(DEADLINE)

    def close(self) -> None:
        self.connection.close()


class Rpc:
    """One channel, for good."""

    def __init__(self, plan: dict[str, Any]) -> None:
        # A channel of its own: grpcio lets channels to one target share a connection. Retries are gRPC's own: only of
        # what the server has said that it has not taken.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.service_config_disable_resolution", 1)]
        self.channel = grpc.insecure_channel(plan["target"], options)
        self.kind = plan["kind"]
        self.chatting: Any = None
        self.said: Any = None

    def call(self, name: str) -> str:
        if self.kind == "chat":
            return self.chat(name)
        ask = self.channel.unary_unary("/trial.Market/One", lambda it: json.dumps(it).encode(), json.loads)
        answer = ask({"id": name}, timeout=DEADLINE)
        if answer["id"] != name:
            raise WrongError(f"{answer['id']} for {name}")
        return str(answer["who"])

    def chat(self, name: str) -> str:
        if self.chatting is None:
            self.said = collections.deque()
            given = threading.Semaphore(0)
            said = self.said

            def asks() -> Any:
                while True:
                    given.acquire()
                    if not said:
                        return
                    yield said.popleft()

            self.given = given
            ask = self.channel.stream_stream("/trial.Market/Chat", lambda it: json.dumps(it).encode(), json.loads)
            self.chatting = ask(asks())
        stuck = threading.Timer(DEADLINE, self.chatting.cancel)
        stuck.start()
        try:
            self.said.append({"id": name})
            self.given.release()
            answer = next(self.chatting)
        except StopIteration:
            raise EndedError from None
        finally:
            stuck.cancel()
        if answer["id"] != name:
            raise WrongError(f"{answer['id']} for {name}")
        return str(answer["who"])

    def close(self) -> None:
        if self.chatting is not None:
            self.chatting.cancel()
            self.given.release()
        self.channel.close()


def said(problem: BaseException) -> str:
    if isinstance(problem, grpc.RpcError):
        status: Any = problem
        return f"{status.code().name}: {status.details()}"[:300]
    return f"{type(problem).__name__}: {problem}"[:300]


def loop(plan: dict[str, Any], prefix: str) -> None:
    held: Any = None
    opened, calls, number = 0.0, 0, 0
    at = time.monotonic()
    while not ENDING.is_set():
        at = max(at + plan["every"] / 1000, time.monotonic() - 1)
        ENDING.wait(max(0.0, at - time.monotonic()))
        for _ in range(3):
            number += 1
            name = f"{prefix}-{number}"
            began = time.time()
            try:
                if held is None:
                    opened, calls = began, 0
                    held = (Http if plan["kind"] == "http" else Rpc)(plan)
                who = held.call(name)
            except EndedError:
                held.close()
                held = None
                with LOCK:
                    some(plan["name"], began)["ended"] += 1
                continue
            except (OSError, http.client.HTTPException, ValueError, grpc.RpcError, WrongError) as problem:
                if ENDING.is_set():
                    return
                took = time.time() - began
                kind = "wrong" if isinstance(problem, (WrongError, ValueError)) else "failed"
                kind = "stuck" if took >= DEADLINE * 0.98 else kind
                line = {"client": plan["name"], "at": began, "took": took, "kind": kind, "error": said(problem)}
                say({**line, "opened": opened, "calls": calls})
                if held is not None:
                    held.close()
                held = None
            else:
                calls += 1
                with LOCK:
                    found = some(plan["name"], began)
                    found["ok"] += 1
                    found["who"][who] += 1
                    found["slow"] = max(found["slow"], time.time() - began)
            if not plan.get("held") and held is not None:
                held.close()
                held = None
            break


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: ENDING.set())
    plans = json.loads(Path(sys.argv[1]).read_text())
    threads = []
    for plan in plans:
        for _ in range(plan.get("connections", 1)):
            prefix = f"py-{os.getpid()}-{len(threads)}"
            threads.append(threading.Thread(target=loop, args=(plan, prefix), daemon=True))
    for each in threads:
        each.start()
    while not ENDING.wait(0.5):
        with LOCK:
            lines = [{**each, "until": time.time()} for each in SOME.values()]
            SOME.clear()
        for line in lines:
            say(line)


main()

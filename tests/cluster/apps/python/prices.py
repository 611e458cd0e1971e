"""A gRPC service in Python: the same methods as the Go one (`market/rpc.go`), messages as JSON."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc

WHO = os.environ.get("WHO") or socket.gethostname()
DRAINING = threading.Event()
Message = dict[str, Any]


def dump(message: Message) -> bytes:
    return json.dumps(message).encode()


class Market:
    """Serves; with $BACKENDS it asks those in a chain."""

    def __init__(self) -> None:
        self.backends = [grpc.insecure_channel(each) for each in os.environ.get("BACKENDS", "").split()]

    def one(self, asked: Message, _: grpc.ServicerContext) -> Message:
        return {"id": asked["id"], "who": WHO}

    def chain(self, asked: Message, context: grpc.ServicerContext) -> Message:
        via = [WHO]
        for each in self.backends:
            call = each.unary_unary("/trial.Market/Chain", dump, json.loads)
            try:
                got = call(asked, timeout=context.time_remaining())
            except grpc.RpcError as problem:
                status: Any = problem
                context.abort(status.code(), f"prices asked a backend: {status.details()}")
            if got["id"] != asked["id"]:
                context.abort(grpc.StatusCode.DATA_LOSS, "a backend has answered somebody else's call")
            via += got["via"]
        return {"id": asked["id"], "who": WHO, "via": via}

    def count(self, asked: Message, _: grpc.ServicerContext) -> Iterator[Message]:
        for index in range(asked["count"]):
            yield {"id": asked["id"], "index": index, "who": WHO}
            time.sleep(asked.get("gap", 0) / 1000)

    def through(self, asked: Message, context: grpc.ServicerContext) -> Iterator[Message]:
        """What each backend streams, handed on as it comes; without backends, `count`."""
        if not self.backends:
            yield from self.count(asked, context)
        for each in self.backends:
            call = each.unary_stream("/trial.Market/Through", dump, json.loads)
            try:
                for message in call(asked, timeout=context.time_remaining()):
                    yield {**message, "who": WHO}
            except grpc.RpcError as problem:
                status: Any = problem
                context.abort(status.code(), f"prices asked a backend: {status.details()}")

    def chat(self, asked: Iterator[Message], context: grpc.ServicerContext) -> Iterator[Message]:
        """Answers each message; once it drains, the stream ends with OK."""
        heard: queue.Queue[Message | None] = queue.Queue()

        def read() -> None:
            try:
                for each in asked:
                    heard.put(each)
            except grpc.RpcError:
                pass
            heard.put(None)

        threading.Thread(target=read, daemon=True).start()
        while not DRAINING.is_set() and context.is_active():
            try:
                message = heard.get(timeout=0.2)
            except queue.Empty:
                continue
            if message is None:
                return
            yield {**message, "who": WHO}


def main() -> None:
    """Until SIGTERM: $DRAIN seconds in which nobody new is led here, then a graceful end."""
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    served = Market()
    handlers = {
        "One": grpc.unary_unary_rpc_method_handler(served.one, json.loads, dump),
        "Chain": grpc.unary_unary_rpc_method_handler(served.chain, json.loads, dump),
        "Count": grpc.unary_stream_rpc_method_handler(served.count, json.loads, dump),
        "Through": grpc.unary_stream_rpc_method_handler(served.through, json.loads, dump),
        "Chat": grpc.stream_stream_rpc_method_handler(served.chat, json.loads, dump),
    }
    server = grpc.server(futures.ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("trial.Market", handlers),))
    server.add_insecure_port(f"[::]:{os.environ['GRPC']}")
    server.start()
    print("serves as", WHO, flush=True)
    ending.wait()
    time.sleep(float(os.environ.get("DRAIN", "0")))
    DRAINING.set()
    server.stop(5).wait()


main()

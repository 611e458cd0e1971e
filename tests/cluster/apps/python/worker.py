"""A queue's consumer: takes a job, works, and says that it is done, in Redis' own words and with no library.

A job that is taken lies in the list `doing:WHO` until it is done; one that a killed worker has left there is taken up
by the next of its name. So each job is done, and done once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from typing import Any

WHO = os.environ.get("WHO") or socket.gethostname()
ENDING = threading.Event()


class Redis:
    """One connection; a server that goes is an OSError."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=10)
        self.file = self.socket.makefile("rb")

    def ask(self, *words: str) -> Any:
        data = b"".join(b"$%d\r\n%s\r\n" % (len(each.encode()), each.encode()) for each in words)
        self.socket.sendall(b"*%d\r\n%s" % (len(words), data))
        return self.answer()

    def answer(self) -> Any:
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the store has closed the connection")
        kind, rest = line[:1], line[1:-2].decode()
        match kind:
            case b"$":
                return None if rest == "-1" else self.file.read(int(rest) + 2)[:-2].decode()
            case b"*":
                return None if rest == "-1" else [self.answer() for _ in range(int(rest))]
            case b"-":
                raise ConnectionError(rest)
        return rest


def work(store: Redis) -> None:
    """Until it is told to end, between two jobs."""
    doing = f"doing:{WHO}"
    while store.ask("RPOPLPUSH", doing, "jobs"):
        pass
    while not ENDING.is_set():
        job = store.ask("BRPOPLPUSH", "jobs", doing, "1")
        if job is None:
            continue
        time.sleep(0.02)
        store.ask("MULTI")
        store.ask("RPUSH", "done", json.dumps({"id": job, "who": WHO}))
        store.ask("LREM", doing, "1", job)
        store.ask("EXEC")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: ENDING.set())
    host, _, port = os.environ.get("STORE", "queue:6379").partition(":")
    print("works as", WHO, flush=True)
    while not ENDING.is_set():
        try:
            work(Redis(host, int(port)))
        except OSError as problem:
            print("the store:", problem, flush=True)
            ENDING.wait(0.5)


main()

"""Takes orders off the queue, packs them and marks them as shipped.

An order that is under way stands in `orders:packing` until it is done: after a crash, or a kill -9, the next
worker finds it there and takes it up again. On SIGTERM the order in hand is finished first.
"""

from __future__ import annotations

import json
import os
import signal
import time

from shared.log import say
from shared.resp import Store, StoreError

PACKING = float(os.environ.get("PACKING_SECONDS", "0.4"))
"""Seconds that it takes to pack one order."""

store = Store.from_env(timeout=None)
stopping = False
idle = False


def on_signal(*_: object) -> None:
    global stopping
    stopping = True
    if idle:
        raise SystemExit


def next_order() -> bytes | None:
    """The next order's number, moved to `orders:packing`; None after a quiet while."""
    global idle
    idle = True
    try:
        if stopping:
            raise SystemExit
        return store("BRPOPLPUSH", "orders:queue", "orders:packing", 30)
    finally:
        idle = False


def ship(number: bytes) -> None:
    key = b"order:" + number
    found = store("GET", key)
    if found is not None:
        order = json.loads(found)
        for status in ("packing", "shipped"):
            if status == "shipped":
                time.sleep(PACKING)
                order["shipped"] = time.time()
            store("SET", key, json.dumps({**order, "status": status}))
        say(f"order {order['id']}: {order['quantity']} {order['product']} shipped")
    store("LREM", "orders:packing", 1, number)


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    try:
        for number in store("LRANGE", "orders:packing", 0, -1):
            say("an order was left half packed: it goes first")
            ship(number)
        say(f"worker waits for orders from {store}")  # devloop.toml's ready probe looks for this line
        while True:
            if (number := next_order()) is not None:
                ship(number)
    except SystemExit:
        say("worker stops")
        raise
    except (OSError, StoreError) as error:
        # Left to whoever supervises: a restart with backoff is what a lost store calls for.
        raise SystemExit(f"the store {store} is lost: {error}") from None


if __name__ == "__main__":
    main()

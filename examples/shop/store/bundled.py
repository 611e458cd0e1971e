"""A stand-in for Redis: strings and lists, blocking pops, one JSON file. Not for production."""

from __future__ import annotations

import json
import signal
import socketserver
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from shared.log import say

Value = bytes | list[bytes]
SAVE_EVERY = 1.0
"""Seconds; as with Redis's own everysec, a crash loses this much at most."""


class CommandError(Exception):
    """Becomes an error reply."""


OK = object()


class Database:
    """The data, and one method for each command; `execute` is what callers use, from any thread."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.data: dict[bytes, Value] = {}
        self.changed = threading.Condition()
        self.dirty = False
        self.commands: dict[str, Callable[..., object]] = {
            name.removeprefix("do_").upper(): getattr(self, name) for name in dir(self) if name.startswith("do_")
        }
        if file is not None and file.exists():
            raw = json.loads(file.read_text(encoding="utf-8"))
            self.data = {
                key.encode("latin-1"): [v.encode("latin-1") for v in value]
                if isinstance(value, list)
                else value.encode("latin-1")
                for key, value in raw.items()
            }

    def execute(self, words: list[bytes]) -> object:
        name = words[0].decode(errors="replace").upper()
        command = self.commands.get(name)
        if command is None:
            raise CommandError(f"ERR unknown command '{name}'")
        with self.changed:
            try:
                return command(*words[1:])
            except TypeError:
                raise CommandError(f"ERR wrong number of arguments for '{name}'") from None
            except ValueError:
                raise CommandError("ERR value is not an integer or out of range") from None

    def save(self) -> None:
        if self.file is None or not self.dirty:
            return
        with self.changed:
            self.dirty = False
            raw = {
                key.decode("latin-1"): [v.decode("latin-1") for v in value]
                if isinstance(value, list)
                else value.decode("latin-1")
                for key, value in self.data.items()
            }
        draft = self.file.with_suffix(".new")
        draft.write_text(json.dumps(raw), encoding="utf-8")
        draft.replace(self.file)

    # Access by type

    def string(self, key: bytes) -> bytes | None:
        value = self.data.get(key)
        if isinstance(value, list):
            raise CommandError("WRONGTYPE Operation against a key holding the wrong kind of value")
        return value

    def items(self, key: bytes) -> list[bytes]:
        value = self.data.get(key, [])
        if not isinstance(value, list):
            raise CommandError("WRONGTYPE Operation against a key holding the wrong kind of value")
        return value

    def put(self, key: bytes, value: Value) -> None:
        if value == []:
            self.data.pop(key, None)  # Redis knows no empty list
        else:
            self.data[key] = value
        self.dirty = True
        self.changed.notify_all()

    # Commands

    def do_ping(self, text: bytes | None = None) -> object:
        return b"PONG" if text is None else text

    def do_echo(self, text: bytes) -> object:
        return text

    def do_select(self, _: bytes) -> object:
        return OK

    def do_get(self, key: bytes) -> object:
        return self.string(key)

    def do_mget(self, *keys: bytes) -> object:
        return [value if isinstance(value := self.data.get(key), bytes) else None for key in keys]

    def do_set(self, key: bytes, value: bytes, *options: bytes) -> object:
        wanted = {option.upper() for option in options}
        if wanted - {b"NX", b"XX"}:
            raise CommandError("ERR syntax error")
        if (b"NX" in wanted and key in self.data) or (b"XX" in wanted and key not in self.data):
            return None
        self.put(key, value)
        return OK

    def do_del(self, *keys: bytes) -> object:
        found = [key for key in keys if self.data.pop(key, None) is not None]
        self.dirty = self.dirty or bool(found)
        return len(found)

    def do_exists(self, *keys: bytes) -> object:
        return sum(key in self.data for key in keys)

    def do_keys(self, pattern: bytes) -> object:
        import fnmatch

        return [key for key in self.data if fnmatch.fnmatchcase(key.decode(), pattern.decode())]

    def do_dbsize(self) -> object:
        return len(self.data)

    def do_flushall(self) -> object:
        self.data.clear()
        self.dirty = True
        return OK

    def do_incrby(self, key: bytes, by: bytes | int) -> object:
        value = int(self.string(key) or 0) + int(by)
        self.put(key, b"%d" % value)
        return value

    def do_decrby(self, key: bytes, by: bytes | int) -> object:
        return self.do_incrby(key, -int(by))

    def do_incr(self, key: bytes) -> object:
        return self.do_incrby(key, 1)

    def do_decr(self, key: bytes) -> object:
        return self.do_incrby(key, -1)

    def do_lpush(self, key: bytes, *values: bytes) -> object:
        items = [*reversed(values), *self.items(key)]
        self.put(key, items)
        return len(items)

    def do_rpush(self, key: bytes, *values: bytes) -> object:
        items = [*self.items(key), *values]
        self.put(key, items)
        return len(items)

    def do_llen(self, key: bytes) -> object:
        return len(self.items(key))

    def do_lrange(self, key: bytes, first: bytes, last: bytes) -> object:
        items = self.items(key)
        begin, end = (int(n) + len(items) if int(n) < 0 else int(n) for n in (first, last))
        return items[max(begin, 0) : end + 1]

    def do_ltrim(self, key: bytes, first: bytes, last: bytes) -> object:
        kept = self.do_lrange(key, first, last)
        assert isinstance(kept, list)
        self.put(key, kept)
        return OK

    def do_lrem(self, key: bytes, count: bytes, value: bytes) -> object:
        items, wanted = list(self.items(key)), int(count)
        if wanted < 0:
            items.reverse()
        removed = 0
        while value in items and (wanted == 0 or removed < abs(wanted)):
            items.remove(value)
            removed += 1
        if wanted < 0:
            items.reverse()
        self.put(key, items)
        return removed

    def do_lpop(self, key: bytes) -> object:
        return self.pop(key, 0)

    def do_rpop(self, key: bytes) -> object:
        return self.pop(key, -1)

    def do_rpoplpush(self, source: bytes, target: bytes) -> object:
        value = self.pop(source, -1)
        if value is not None:
            self.do_lpush(target, value)
        return value

    def do_blpop(self, *words: bytes) -> object:
        return self.wait(words[-1], lambda: self.pop_first(words[:-1], 0))

    def do_brpop(self, *words: bytes) -> object:
        return self.wait(words[-1], lambda: self.pop_first(words[:-1], -1))

    def do_brpoplpush(self, source: bytes, target: bytes, seconds: bytes) -> object:
        return self.wait(seconds, lambda: self.do_rpoplpush(source, target))

    def pop(self, key: bytes, index: int) -> bytes | None:
        items = list(self.items(key))
        if not items:
            return None
        value = items.pop(index)
        self.put(key, items)
        return value

    def pop_first(self, keys: tuple[bytes, ...], index: int) -> object:
        for key in keys:
            if (value := self.pop(key, index)) is not None:
                return [key, value]
        return None

    def wait(self, seconds: bytes, attempt: Callable[[], object]) -> object:
        """Try again at each change of the data, for this long; 0 is for ever."""
        end = time.monotonic() + float(seconds) if float(seconds) else None
        while (result := attempt()) is None:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return None
            self.changed.wait(left)
        return result


class Client(socketserver.StreamRequestHandler):
    """One connection: commands in, replies out."""

    disable_nagle_algorithm = True
    server: Server

    def handle(self) -> None:
        try:
            while words := read_command(self.rfile):
                if words[0].upper() == b"QUIT":
                    self.wfile.write(b"+OK\r\n")
                    return
                try:
                    reply = encode(self.server.database.execute(words))
                except CommandError as error:
                    reply = b"-%s\r\n" % str(error).encode()
                self.wfile.write(reply)
        except ConnectionError:
            pass
        except ValueError:
            self.wfile.write(b"-ERR Protocol error\r\n")


class Server(socketserver.ThreadingTCPServer):
    """A thread for each connection."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], database: Database) -> None:
        super().__init__(address, Client)
        self.database = database


def read_command(stream: BinaryIO) -> list[bytes]:
    """The next command's words, empty at the end; inline commands ("PING") are taken too."""
    line = stream.readline(65536)
    while line in (b"\r\n", b"\n"):
        line = stream.readline(65536)
    if not line.startswith(b"*"):
        return line.split()
    words = []
    for _ in range(int(line[1:])):
        size = stream.readline(64)
        if not size.startswith(b"$"):
            raise ValueError("a bulk string was expected")
        words.append(stream.read(int(size[1:]) + 2)[:-2])
    return words


def encode(reply: object) -> bytes:
    if reply is OK:
        return b"+OK\r\n"
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, bytes):
        return b"$%d\r\n%s\r\n" % (len(reply), reply)
    assert isinstance(reply, list)
    return b"*%d\r\n%s" % (len(reply), b"".join(map(encode, reply)))


def serve(host: str, port: int, file: Path | None) -> None:
    """Until SIGTERM or SIGINT."""
    database = Database(file)
    ending = threading.Event()

    def end(_: int, __: FrameType | None) -> None:
        ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with Server((host, port), database) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        while not ending.wait(SAVE_EVERY):
            database.save()
        database.save()
        say("store stops")

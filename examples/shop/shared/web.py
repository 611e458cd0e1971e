"""A small HTTP server: routes, JSON, keep-alive, a log line for each request, and a stop in order.

On SIGTERM or SIGINT it takes no new connections, finishes the requests that are under way and returns at
once: no polling interval to wait for, so a reload costs nothing here.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from shared.log import say, status

GRACE = 5.0
"""Seconds that requests under way get at the end."""

CARRIED = ("traceparent", "tracestate", "baggage")
"""W3C Trace Context and Baggage: each service hands these on with the calls that it makes, so that a request
can be followed, and routed, through all of them."""


class RequestError(Exception):
    """Ends a request with this status and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Request:
    """What a route's function gets."""

    def __init__(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        url = urlsplit(path)
        self.path = url.path
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        self.headers = headers
        self.body = body

    @property
    def carried(self) -> dict[str, str]:
        return {name: self.headers[name] for name in CARRIED if name in self.headers}

    def json(self) -> dict[str, object]:
        try:
            data = json.loads(self.body or b"{}")
        except ValueError:
            raise RequestError(400, "the body is not JSON") from None
        if not isinstance(data, dict):
            raise RequestError(400, "the body is not a JSON object")
        return data

    def form(self) -> dict[str, str]:
        return {key: values[-1] for key, values in parse_qs(self.body.decode(errors="replace")).items()}


class Response:
    """What it gives back: str is HTML, bytes go as they are, anything else becomes JSON."""

    def __init__(self, content: object, code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        if isinstance(content, bytes):
            self.body, kind = content, "application/octet-stream"
        elif isinstance(content, str):
            self.body, kind = content.encode(), "text/html; charset=utf-8"
        else:
            self.body, kind = json.dumps(content).encode() + b"\n", "application/json"
        self.code = code
        self.headers = {"Content-Type": kind, **(headers or {})}


Route = Callable[..., object]


class App:
    """Routes of one service: (method, pattern) → function; the pattern's groups are its arguments."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.served_by = f"{name} on {socket.gethostname()}, pid {os.getpid()}"
        self.routes: list[tuple[str, re.Pattern[str], Route]] = []

    def route(self, method: str, pattern: str) -> Callable[[Route], Route]:
        def add(function: Route) -> Route:
            self.routes.append((method, re.compile(pattern), function))
            return function

        return add

    def answer(self, method: str, request: Request) -> Response:
        allowed = False
        for wanted, pattern, function in self.routes:
            if match := pattern.fullmatch(request.path):
                if wanted == method:
                    result = function(request, *match.groups())
                    return result if isinstance(result, Response) else Response(result)
                allowed = True
        raise RequestError(405, "wrong method") if allowed else RequestError(404, "no such page")

    def run(self, port: int) -> None:
        """Serve on HOST:PORT until SIGTERM or SIGINT."""
        host, port = os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", port))
        server = Server((host, port), Handler, self)
        # The signal's byte makes select return: nothing polls, nothing waits.
        woken, wake = socket.socketpair()
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        say(f"{self.name} listens on http://{host}:{server.server_port}")
        while woken not in select.select([server, woken], [], [])[0]:
            server.handle_request()
        server.server_close()
        left = server.drain(GRACE)
        say(f"{self.name} stops" + (f", {left} requests cut off" if left else ""))


class Server(ThreadingHTTPServer):
    """A thread for each connection, and a count of the requests under way."""

    daemon_threads = True
    allow_reuse_address = True  # a restart need not wait for old connections to leave TIME_WAIT
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], app: App) -> None:
        super().__init__(address, handler)
        self.app = app
        self.under_way = 0
        self.changed = threading.Condition()

    def count(self, change: int) -> None:
        with self.changed:
            self.under_way += change
            self.changed.notify_all()

    def drain(self, seconds: float) -> int:
        with self.changed:
            self.changed.wait_for(lambda: self.under_way == 0, seconds)
            return self.under_way

    def server_bind(self) -> None:
        # HTTPServer's own asks the DNS for this host's name, which can take seconds on a laptop.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]


class Handler(BaseHTTPRequestHandler):
    """Reads a request, asks the app, writes the answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    # Head and body in one write. The process may end while a request that has just come is answered: then all of the
    # answer is sent, or nothing, and a client or proxy may ask again.
    wbufsize = 65536
    server: Server

    def do_GET(self) -> None:
        self.handle_one("GET")

    def do_POST(self) -> None:
        self.handle_one("POST")

    def handle_one(self, method: str) -> None:
        self.server.count(+1)
        try:
            begin = time.monotonic()
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            response = self.respond(method, Request(self.path, self.headers, body))
            self.send_response_only(response.code)
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(response.body)))
            self.send_header("X-Served-By", self.server.app.served_by)
            self.end_headers()
            self.wfile.write(response.body)
            self.wfile.flush()
            if self.path != "/healthz":  # a probe every second would hide the rest
                took = (time.monotonic() - begin) * 1000
                say(f"{method} {self.path} {status(response.code)} {took:.1f} ms")
        except ConnectionError:
            self.close_connection = True
        finally:
            self.server.count(-1)

    def respond(self, method: str, request: Request) -> Response:
        try:
            return self.server.app.answer(method, request)
        except RequestError as error:
            return Response({"error": str(error)}, error.code)
        except Exception as error:
            # A bug or a dependency that is away must end this request only; the log says which.
            say(f"error in {method} {request.path}: {type(error).__name__}: {error}")
            return Response({"error": f"{type(error).__name__}: {error}"}, 503)

"""What a user does in the first hour with an installed devloop, asserted: `first_hour.py DEVLOOP FOLDER`.

Runs on the bare machine by itself, with the standard library alone.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

SERVER = """
import http.server, os
class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello from here")
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Hello).serve_forever()
"""
DEADLINE = 60.0


def main() -> None:
    """Raises AssertionError with what devloop said at the first step that is not as promised."""
    program, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True)
    os.chdir(folder)

    def devloop(*arguments: str) -> str:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=DEADLINE
        )
        assert done.returncode == 0, f"{arguments}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    Path("server.py").write_text(SERVER)
    Path("Procfile").write_text("web: python3 server.py\n")
    Path(".env").write_text(f"PORT={port}\n")
    devloop("init")
    assert "[services.web]" in Path("devloop.toml").read_text()
    devloop("check")
    log = Path("up.log")
    with log.open("wb") as out:
        up = subprocess.Popen([program, "up", "--headless"], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        address, end = f"http://127.0.0.1:{port}/", time.monotonic() + DEADLINE
        while answer(address) != "hello from here":
            assert up.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        found = json.loads(devloop("status", "--json"))["services"]
        assert [(each["name"], each["state"]) for each in found] == [("web", "ready")], found
        devloop("down")
        assert up.wait(DEADLINE) == 0, log.read_text()
        assert answer(address) == "", "the service goes on after `down`"
    finally:
        up.kill()
        up.wait()
    assert "Traceback" not in log.read_text(), log.read_text()


def answer(address: str) -> str:
    """What is served there; empty if nothing is."""
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            body: bytes = response.read()
            return body.decode()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
    print("init, check, up --headless, status, down: as promised")

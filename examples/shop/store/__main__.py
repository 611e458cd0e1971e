"""The store: a real redis-server where one is installed, a small stand-in in Python where not.

HOST and PORT say where it listens. STORE_DATA names a folder to keep the data in; without it all is gone at
the end. STORE_KIND=redis or STORE_KIND=bundled chooses by hand.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from shared.log import say


def main() -> None:
    host, port = os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "7379"))
    folder = data_folder()
    kind = os.environ.get("STORE_KIND", "")
    program = None if kind == "bundled" else shutil.which("redis-server")
    if program is None and kind == "redis":
        raise SystemExit("STORE_KIND=redis, and no redis-server is installed")
    if program is None:
        why = "by STORE_KIND" if kind else "no redis-server here"
        say(f"store: the bundled stand-in on {host}:{port} ({why})")
        from store.bundled import serve

        serve(host, port, folder / "store.json" if folder else None)
        return
    say(f"store: {program} on {host}:{port}")
    options = ["--bind", host, "--port", str(port), "--protected-mode", "no", "--daemonize", "no"]
    options += ["--save", "", "--appendonly", "yes" if folder else "no"]
    options += ["--dir", str(folder)] if folder else []
    # exec: redis becomes this process, so that it gets the signals itself.
    os.execv(program, [program, *options])


def data_folder() -> Path | None:
    if not os.environ.get("STORE_DATA"):
        return None
    folder = Path(os.environ["STORE_DATA"]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    return folder


if __name__ == "__main__":
    main()

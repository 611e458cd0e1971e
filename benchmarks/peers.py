"""The programs that devloop is measured beside: which are here, and how to get the others.

    python -m benchmarks.peers             what is here
    python -m benchmarks.peers --install   what is missing, into ~/.cache/devloop-bench; entr by apt

Nothing is installed into the checkout. watchexec is compiled, which takes minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "devloop-bench"


@dataclass(frozen=True, slots=True)
class Peer:
    """A program, where its installer puts it, how to ask its version, and how to install it."""

    name: str
    place: Path | None
    version: tuple[str, ...]
    install: tuple[tuple[str, ...], ...]
    needs: str

    @property
    def path(self) -> str | None:
        if self.place is not None and self.place.exists():
            return str(self.place)
        return shutil.which(self.name)


_VENV = CACHE / "venv"
_PIP = (
    (sys.executable, "-m", "venv", str(_VENV)),
    (str(_VENV / "bin" / "python"), "-m", "pip", "install", "-q", "uvicorn", "watchfiles", "honcho"),
)

PEERS = {
    peer.name: peer
    for peer in (
        Peer("entr", None, ("-h",), (("apt-get", "install", "-y", "entr"),), "apt-get"),
        Peer(
            "nodemon",
            CACHE / "npm" / "node_modules" / ".bin" / "nodemon",
            ("--version",),
            (("npm", "install", "--prefix", str(CACHE / "npm"), "nodemon"),),
            "npm",
        ),
        Peer(
            "watchexec",
            CACHE / "cargo" / "bin" / "watchexec",
            ("--version",),
            (("cargo", "install", "watchexec-cli", "--locked", "--root", str(CACHE / "cargo")),),
            "cargo",
        ),
        Peer("uvicorn", _VENV / "bin" / "uvicorn", ("--version",), _PIP, "python3"),
        Peer("watchfiles", _VENV / "bin" / "watchfiles", ("--version",), _PIP, "python3"),
        Peer("honcho", _VENV / "bin" / "honcho", ("version",), _PIP, "python3"),
    )
}


def path(name: str) -> str | None:
    """The program's path, None if it is not installed."""
    return PEERS[name].path


def version(name: str) -> str:
    """Name and version, as the tables show it."""
    peer = PEERS[name]
    if peer.path is None:
        return f"{name} (not installed)"
    done = subprocess.run([peer.path, *peer.version], capture_output=True, text=True, check=False)
    words = (done.stdout + done.stderr).replace("release:", "").split()
    number = next((word.strip("v,") for word in words if word.strip("v,")[:1].isdigit()), "?")
    return f"{name} {number}"


def missing(names: list[str]) -> list[str]:
    return [name for name in names if path(name) is None]


def install() -> int:
    """Install what is missing; the number of those that could not be."""
    CACHE.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, "CARGO_TARGET_DIR": str(CACHE / "cargo-target")}
    failed = 0
    for name in missing(list(PEERS)):
        peer = PEERS[name]
        if peer.path is not None:  # came with the one before
            continue
        if shutil.which(peer.needs) is None:
            print(f"{name}: needs {peer.needs}, which is not here", file=sys.stderr)
            failed += 1
            continue
        for command in peer.install:
            print("+", *command, flush=True)
            if subprocess.run(command, env=environ, preexec_fn=lambda: os.nice(10), check=False).returncode:
                failed += 1
                break
    return failed


def main() -> int:
    failed = install() if "--install" in sys.argv[1:] else 0
    for name in PEERS:
        print(version(name))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

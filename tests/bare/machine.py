"""A bare machine: its files in a folder of their own, its processes and mounts in namespaces of their own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.kube.commands import command

from . import root as files

USER, UID = "tester", 7_411
"""An ordinary user, with an id that no user of this machine is likely to have: limits count by it."""
HOME = f"/home/{USER}"
PIP_CACHE = "/var/cache/pip"
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
"""Of an ordinary user, as Debian's login gives it (/etc/login.defs)."""
INIT = Path(__file__).with_name("init.py")


@dataclass
class Machine:
    """One that is there; `run` is a command line typed on it."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    """What its package managers need to know."""

    def run(
        self,
        *argv: str,
        folder: str = HOME,
        variables: Mapping[str, str] | None = None,
        open_files: tuple[int, int] = (1024, 1024),
        user: bool = True,
        heard: Callable[[str], None] = lambda line: None,
    ) -> int:
        """Run it without a terminal and without input, and print what it says; `heard` is told each line.

        Returns its exit code. Nothing that it started is left afterwards.
        """
        environment = {"PATH": PATH, "HOME": HOME, "USER": USER, "LOGNAME": USER, "SHELL": "/bin/sh", "LANG": "C.UTF-8"}
        if not user:
            environment |= {"PATH": f"/usr/sbin:/sbin:{PATH}", "HOME": "/root", "USER": "root", "LOGNAME": "root"}
        cache = files.cache() / "pip"
        cache.mkdir(parents=True, exist_ok=True)
        os.chown(cache, UID, UID)
        order = {
            "root": str(self.root),
            "binds": [[str(cache), PIP_CACHE, "rw"]],
            "uid": UID if user else 0,
            "files": open_files,
            "folder": folder,
            "argv": argv,
            "environment": {**environment, **self.environment, "PIP_CACHE_DIR": PIP_CACHE, **(variables or {})},
        }
        # If this process is killed, the kernel ends unshare, and with it all that is in there.
        process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),
                *("unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child"),
                *(sys.executable, "-I", "-S", str(INIT), json.dumps(order)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                heard(line.rstrip("\n"))
            return process.wait()
        finally:
            process.kill()
            process.stdout.read()  # to its end: then all that had it are gone
            process.stdout.close()
            process.wait()


@contextmanager
def machine(suite: str) -> Iterator[Machine]:
    """A new one with that release of Debian, and one ordinary user. It is gone afterwards, on SIGTERM too."""
    before = {number: signal.signal(number, _interrupted) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with _folder() as folder:
            made = Machine(folder / "root")
            made.root.mkdir()
            command("tar", "-C", str(made.root), "--numeric-owner", "-xpf", str(files.layer(suite).path))
            made.environment = files.package_configuration(made.root)
            if made.run("useradd", "--create-home", "--uid", str(UID), "--user-group", USER, folder="/", user=False):
                raise SystemExit("bare: the user could not be made")
            yield made
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupted(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder for one machine. What a run that was killed has left is removed first."""
    runs = files.cache() / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    for lock in runs.glob("*.lock"):
        with lock.open() as other, contextlib.suppress(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
    folder = runs / str(os.getpid())
    lock = folder.with_suffix(".lock")
    with lock.open("w") as ours:
        fcntl.flock(ours, fcntl.LOCK_EX)
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder)
            lock.unlink()


def give(machine: Machine, source: Path, target: str) -> None:
    """Copy a file into it, for all to read."""
    place = machine.root / target.lstrip("/")
    shutil.copyfile(source, place)
    place.chmod(0o644)


def give_checkout(machine: Machine, checkout: Path, target: str = "/srv/checkout.bundle") -> None:
    """What is committed in the checkout, as something to clone from."""
    bundle = machine.root / target.lstrip("/")
    words: Sequence[str] = ("git", "-C", str(checkout), "-c", "safe.directory=*")
    command(*words, "bundle", "create", "--quiet", str(bundle), "HEAD")
    bundle.chmod(0o644)
    if left := command(*words, "status", "--porcelain", "--untracked-files=no").strip():
        print(f"bare: {len(left.splitlines())} changed files are not committed, and so not part of this", flush=True)

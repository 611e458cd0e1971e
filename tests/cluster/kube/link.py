"""A slow and lossy link between this machine and the node, beside the cable.

It has a device and addresses of its own. What uses it says so, by its kubeconfig; everything else keeps
the cable. The wire itself is tools/link, which explains why it is not tc's netem.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import IO

from .errors import ClusterError
from .sandbox import Sandbox
from .settings import Settings


class Link:
    """The wire, from `start` to `close`. Perfect at first."""

    def __init__(self, settings: Settings, programs: Path) -> None:
        self.settings = settings
        self.program = programs / "link"
        self.process: subprocess.Popen[str] | None = None

    @property
    def device(self) -> str:
        """The device's name, at both ends."""
        return f"{self.settings.name}1"

    @property
    def server(self) -> str:
        """The API server by way of this link; the certificate has this address too."""
        return f"https://{self.settings.link_ips[1]}:6443"

    def start(self) -> None:
        """Lay the wire; a ClusterError says why that can't be done."""
        pid = Sandbox(self.settings).pid
        if pid is None:
            raise ClusterError(f"The cluster {self.settings.name} is not running", "Run: make cluster")
        here, there = self.settings.link_ips
        self.process = subprocess.Popen(
            [
                str(self.program),
                *("-peer", str(pid), "-name", self.device, "-here", f"{here}/30", "-there", f"{there}/30"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._answer()
        self.set()

    def set(self, delay: float = 0.0, loss: float = 0.0, megabit: float = 0.0) -> None:
        """Both ways alike: a one-way delay in seconds, a share of packets to lose, a rate (0: no limit).

        The round trip grows by twice the delay.
        """
        self._say(f"set {delay * 1e6:.0f}us {loss} {megabit}")

    def cut(self) -> None:
        """Lose every packet, in silence, until `mend`: the pulled cable."""
        self._say("cut")

    def mend(self) -> None:
        """Carry packets again."""
        self._say("mend")

    def close(self) -> None:
        """Take the wire away; its devices go with it."""
        if self.process is None:
            return
        _, _ = self.process.communicate(timeout=10)
        self.process = None

    def _pipes(self) -> tuple[IO[str], IO[str], IO[str]]:
        assert self.process is not None
        assert self.process.stdin and self.process.stdout and self.process.stderr
        return self.process.stdin, self.process.stdout, self.process.stderr

    def _say(self, line: str) -> None:
        self._pipes()[0].write(line + "\n")
        self._pipes()[0].flush()
        self._answer()

    def _answer(self) -> None:
        _, answers, errors = self._pipes()
        answer = answers.readline().strip()
        if answer != "ok":
            raise ClusterError(f"The slow link: {answer or errors.read().strip()}")

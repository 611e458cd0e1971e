"""asyncssh, with less work for each packet; for both ends of a link.

A connection of a service's is eight packets, a round trip two, and each cost some 50 µs at either end: a third of it
was an AES context that was made anew for each packet (`gcm.py`), and log lines that were put together and thrown away.
Bulk data is copied less (`packets.py`). Nothing of what is sent changes. It holds for all of a process.
"""

from __future__ import annotations

from typing import Any

import asyncssh.encryption
import asyncssh.logging
import asyncssh.packet

from . import packets
from .gcm import QuickGCM


def quicken() -> None:
    """Let every SSH connection of this process have it, from its next change of keys on."""
    modules: Any = (asyncssh.encryption, asyncssh.packet.SSHPacketLogger, asyncssh.logging.SSHLogger)
    modules[0].GCMCipher = QuickGCM
    modules[1]._log_packet = _say_nothing
    modules[2].log = _say_if_heard
    packets.install()


_say: Any = asyncssh.logging.SSHLogger.log


def _say_if_heard(self: Any, level: int, *args: object, **kwargs: object) -> None:
    """asyncssh puts its text together before it asks whether anybody hears it."""
    if self.logger.isEnabledFor(level):
        _say(self, level, *args, **kwargs)


def _say_nothing(*_: object, **__: object) -> None:
    """asyncssh's third level of debugging, which nobody asks devloop for."""

"""asyncssh, with less work for each packet; for both ends of a link.

A connection of a service's is eight packets, a round trip two, and each cost some 50 µs at either end: a third of it
was an AES context that was made anew for each packet, and log lines that were put together and thrown away. Nothing
of what is sent changes. It holds for all of a process: an SSH connection gets new ciphers whenever it changes its keys.
"""

from __future__ import annotations

from typing import Any

import asyncssh.crypto.cipher
import asyncssh.logging
import asyncssh.packet
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_MAC_BYTES = 16


class QuickGCM(asyncssh.crypto.cipher.GCMCipher):
    """AES-GCM as RFC 5647 has it: 4 fixed bytes and a counter of 8 are the nonce."""

    _context: AESGCM | None = None

    def _ready(self) -> AESGCM:
        if self._context is None:
            self._context = AESGCM(self._key)
            self._fixed, self._count = self._iv[:4], int.from_bytes(self._iv[4:], "big")
        self._iv = self._fixed + self._count.to_bytes(8, "big")
        self._count = (self._count + 1) & 0xFFFFFFFFFFFFFFFF
        return self._context

    def encrypt_and_sign(self, header: bytes, data: bytes) -> tuple[bytes, bytes]:
        """(header, the rest with its MAC): asyncssh only puts the two together."""
        context = self._ready()
        return header, context.encrypt(self._iv, data, header)

    def verify_and_decrypt(self, header: bytes, data: bytes, mac: bytes) -> bytes | None:
        """The data, None if somebody has changed it."""
        context = self._ready()
        try:
            return context.decrypt(self._iv, data + mac, header)
        except InvalidTag:
            return None


def quicken() -> None:
    """Let every SSH connection of this process have it, from its next change of keys on."""
    import asyncssh.encryption as encryption

    modules: Any = (encryption, asyncssh.packet.SSHPacketLogger, asyncssh.logging.SSHLogger)
    modules[0].GCMCipher = QuickGCM
    modules[1]._log_packet = _say_nothing
    modules[2].log = _say_if_heard


_say: Any = asyncssh.logging.SSHLogger.log


def _say_if_heard(self: Any, level: int, *args: object, **kwargs: object) -> None:
    """asyncssh puts its text together before it asks whether anybody hears it."""
    if self.logger.isEnabledFor(level):
        _say(self, level, *args, **kwargs)


def _say_nothing(*_: object, **__: object) -> None:
    """asyncssh's third level of debugging, which nobody asks devloop for."""

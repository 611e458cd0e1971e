"""AES-GCM for asyncssh, with one context for each key.

asyncssh makes an AES context anew for each packet, which is a third of what a small packet costs.
"""

from __future__ import annotations

from typing import Any

from asyncssh.crypto.cipher import GCMCipher
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TAG_BYTES = 16

Buffer = bytes | bytearray | memoryview


class QuickGCM(GCMCipher):
    """AES-GCM as RFC 5647 has it: 4 fixed bytes and a counter of 8 are the nonce."""

    _context: Any = None
    opened: bytes | None = None
    """The text of the packet that asyncssh asks for next, if `open` was asked already."""

    def _ready(self) -> Any:
        if self._context is None:
            self._context = AESGCM(self._key)
            self._fixed, self._count = self._iv[:4], int.from_bytes(self._iv[4:], "big")
        self._iv = self._fixed + self._count.to_bytes(8, "big")
        self._count = (self._count + 1) & 0xFFFFFFFFFFFFFFFF
        return self._context

    def encrypt_and_sign(self, header: bytes, data: bytes) -> tuple[bytes, bytes]:
        """(header, the rest with its tag): asyncssh only puts the two together."""
        context = self._ready()
        return header, context.encrypt(self._iv, data, header)

    def verify_and_decrypt(self, header: bytes, data: bytes, mac: bytes) -> bytes | None:
        """The data, None if somebody has changed it."""
        if self.opened is not None:
            opened, self.opened = self.opened, None
            return opened
        context = self._ready()
        try:
            found: bytes = context.decrypt(self._iv, data + mac, header)
        except InvalidTag:
            return None
        return found

    def seal(self, header: Buffer, data: Buffer, out: memoryview) -> None:
        """Encrypt into `out`, which has room for the data and its tag."""
        context = self._ready()
        context.encrypt_into(self._iv, data, header, out)

    def open(self, header: Buffer, sealed: Buffer, out: memoryview) -> bool:
        """Decrypt what has its tag at the end into `out`; False if somebody has changed it."""
        context = self._ready()
        try:
            context.decrypt_into(self._iv, sealed, header, out)
        except InvalidTag:
            return False
        return True

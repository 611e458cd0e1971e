"""What devloop changes in asyncssh changes nothing of what is sent."""

from __future__ import annotations

import asyncssh.encryption
import pytest
from asyncssh.crypto.cipher import GCMCipher
from asyncssh.encryption import get_encryption

from devloop.agent import forward
from devloop.agent.gcm import QuickGCM

KEY, HEADER = bytes(range(16)), b"\0\0\0\x20"


@pytest.mark.parametrize("iv", [bytes(12), b"abcd" + b"\xff" * 8])
def test_packets_are_those_of_asyncssh(iv: bytes) -> None:
    theirs, ours = GCMCipher("aes128-gcm", KEY, iv), QuickGCM("aes128-gcm", KEY, iv)
    back, back_theirs = QuickGCM("aes128-gcm", KEY, iv), GCMCipher("aes128-gcm", KEY, iv)
    for number in range(5):
        data = bytes([number]) * 32
        sent = b"".join(ours.encrypt_and_sign(HEADER, data))
        assert sent == b"".join(theirs.encrypt_and_sign(HEADER, data))
        for each in (back, back_theirs):
            assert each.verify_and_decrypt(HEADER, sent[4:-16], sent[-16:]) == data


def test_a_changed_packet_is_found() -> None:
    sent = b"".join(QuickGCM("aes128-gcm", KEY, bytes(12)).encrypt_and_sign(HEADER, bytes(32)))
    assert QuickGCM("aes128-gcm", KEY, bytes(12)).verify_and_decrypt(HEADER, sent[4:-16], bytes(16)) is None


def test_every_connection_has_it() -> None:
    assert forward.TcpChannel  # importing it is what does it, at either end
    made = get_encryption(b"aes128-gcm@openssh.com", KEY, bytes(12))
    assert isinstance(made, asyncssh.encryption.GCMEncryption)
    assert isinstance(made._cipher, QuickGCM)

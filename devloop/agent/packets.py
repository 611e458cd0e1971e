"""asyncssh's packets without its copies, once a connection is set up; for both ends of a link.

asyncssh parses what it receives by slicing: each packet is copied seven times on its way in and four times on its way
out, and a link's speed is what the processor has left. Here a packet is decrypted from where it was received into a
buffer that is used again, and handed on from there; on its way out it is put together once and encrypted into such a
buffer. What the packets of channels say goes to the same methods of asyncssh as before. Until a connection is set up,
while its keys change, and with other ciphers than AES-GCM, all is asyncssh's own.

Nothing of what is sent changes (RFC 4253, 6; RFC 5647, 7), but for the empty packets of `send_packet`. What channels
send within one turn of the event loop goes out in one system call, and wakes who carries it on once.
"""

from __future__ import annotations

import os
import time
from typing import Any

import asyncssh.connection
import asyncssh.encryption
from asyncssh.misc import DisconnectError, MACError, ProtocolError
from asyncssh.packet import PacketDecodeError, SSHPacket

from .gcm import TAG_BYTES, Buffer, QuickGCM
from .unsent import unacknowledged

# Messages' numbers (RFC 4253, 12; RFC 4254, 9).
IGNORE = 2
GLOBAL_REQUEST = 80
CHANNEL_OPEN = 90
CHANNEL_OPEN_FAILURE = 92
CHANNEL_DATA = 94
CHANNEL_CLOSE = 97
# Each packet costs some 30 µs of Python at either end, whatever its size.
PACKET_BYTES = 128 * 1024
BLOCK = 16
HEADER = 4
"""The packet's length, in clear (RFC 5647, 7.3)."""
FRONT = 10
"""Before a channel's data: the padding's length, the message's number, the channel, the data's length."""
GATHERED_BYTES = 256 * 1024
"""So much is sent at once, and not only at the end of the turn."""
SMALL = 32 * 1024
"""Less than this is handed on as bytes of its own: whoever keeps it shall not keep a buffer of four times its size."""
UNREAD_BYTES = 64 << 20
"""A connection whose other end leaves more than that unread is ended. Who has much to send waits long before; what is
answered at once to whoever asks (RFC 4254, 4) does not."""
REKEY_BYTES = 16 << 30
"""RFC 4344, 3.2 allows 2^32 blocks of 16 bytes to a key. asyncssh changes it after 1 GiB: ten seconds of a download."""


class Buffers:
    """Buffers of one size, used again when nobody reads them any more."""

    def __init__(self, size: int, most: int) -> None:
        """`most` are kept, of `size` bytes each."""
        self.size = size
        self._most = most
        self._free: list[bytearray] = []
        self._next = 0

    def take(self) -> bytearray:
        """One that nobody reads."""
        free = self._free
        for _ in range(len(free)):
            self._next = (self._next + 1) % len(free)
            buffer = free[self._next]
            try:
                # A bytearray that has a memoryview somewhere can't change its size.
                buffer.append(0)
            except BufferError:
                continue
            del buffer[-1]
            return buffer
        buffer = bytearray(self.size)
        if len(free) < self._most:
            free.append(buffer)
        return buffer


# A process has one event loop that moves bytes, so all of its connections share these. A buffer holds one packet of the
# largest size, and what is around it.
_buffers = Buffers(HEADER + FRONT + PACKET_BYTES + 2 * BLOCK + TAG_BYTES, 16)
_plain = memoryview(bytearray(_buffers.size))
"""What is about to be encrypted; only within one call."""
_noise = b""


def _padding(size: int) -> bytes:
    """Random bytes. A system call for each packet's few would cost more than its encryption."""
    global _noise
    if len(_noise) < size:
        _noise = os.urandom(4096)
    found, _noise = _noise[:size], _noise[size:]
    return found


def _cipher(encryption: Any) -> QuickGCM | None:
    if type(encryption) is asyncssh.encryption.GCMEncryption and type(encryption._cipher) is QuickGCM:
        return encryption._cipher
    return None


_Connection: Any = asyncssh.connection.SSHConnection


class State:
    """What one connection has received and not parsed, and has to send."""

    def __init__(self, gathers: bool) -> None:
        """`gathers`: its transport brings together what is written in a turn by itself."""
        self.gathers = gathers
        self.received = bytearray()
        self.need = 0
        """More than HEADER: so many bytes must be there before anything can be done."""
        self.heard = 0.0
        """When something has come, in the loop's seconds."""
        self.out: list[bytes | memoryview] = []
        self.out_bytes = 0
        self.written = 0
        """Bytes that were given to the transport, or are about to be."""
        self.taken = 0
        """How many of these the other end's kernel had when it was last looked."""
        self.asked = 0
        """What `written` was when a sign of life was last asked for."""


def silence(connection: Any) -> float:
    """For how many seconds nothing has come by an SSH connection; not a packet's first byte."""
    return float(connection._loop.time() - _state(connection).heard)


def _state(connection: Any) -> State:
    found: State | None = connection.__dict__.get("_devloop_state")
    if found is None:
        transport = connection._transport
        # A ProxyCommand's has `write` and little else.
        gathers = getattr(transport, "gathers", False) or not hasattr(transport, "writelines")
        found = connection._devloop_state = State(gathers)
    return found


# --- Sending -------------------------------------------------------------------------------------------------------


_write = _Connection._send


def _send_at_once(self: Any, data: Buffer) -> None:
    """In place of SSHConnection's `_send`: asyncssh's own packets, after what was gathered."""
    state = _state(self)
    if state.out:
        _flush(self)
    state.written += len(data)
    _write(self, data)
    _bound(self)


def _gather(connection: Any, packet: bytes | memoryview) -> None:
    state = _state(connection)
    state.written += len(packet)
    if state.gathers:
        _write(connection, packet)
        return
    state.out.append(packet)
    state.out_bytes += len(packet)
    if state.out_bytes >= GATHERED_BYTES:
        _flush(connection)
    elif len(state.out) == 1:
        connection._loop.call_soon(_flush, connection)


def _flush(connection: Any) -> None:
    state = _state(connection)
    out, state.out, state.out_bytes = state.out, [], 0
    if connection._transport is None or connection._transport.is_closing():
        return  # uvloop raises
    if len(out) == 1:
        _write(connection, out[0])
    elif out:
        connection._transport.writelines(out)
    _bound(connection)


def _bound(connection: Any) -> None:
    """End a connection for which too much waits."""
    size = getattr(connection._transport, "get_write_buffer_size", None)
    if size is not None and size() > UNREAD_BYTES:
        connection.abort()


def _send(connection: Any, head: bytes, data: Buffer) -> bool:
    """Send a message in two parts; False if asyncssh has to. `data` may be used again at once."""
    cipher = _cipher(connection._send_encryption)
    size = 1 + len(head) + len(data)
    if (
        cipher is None
        or connection._compressor is not None
        or not connection._kex_complete
        or not connection._auth_complete
        or connection._rekey_bytes_sent >= connection._rekey_bytes
        or (connection._rekey_time and time.monotonic() >= connection._rekey_time)
        or size > _buffers.size - HEADER - 2 * BLOCK - TAG_BYTES
    ):
        return False
    pad = -size % BLOCK
    if pad < 4:
        pad += BLOCK
    length = size + pad
    if length <= SMALL:
        header = length.to_bytes(HEADER, "big")
        plain = b"".join((pad.to_bytes(1, "big"), head, data, _padding(pad)))
        _gather(connection, header + cipher.encrypt_and_sign(header, plain)[1])
    else:
        front = 1 + len(head)
        _plain[0] = pad
        _plain[1:front] = head
        _plain[front:size] = data
        _plain[size:length] = _padding(pad)
        out = memoryview(_buffers.take())[: HEADER + length + TAG_BYTES]
        out[:HEADER] = length.to_bytes(HEADER, "big")
        cipher.seal(out[:HEADER], _plain[:length], out[HEADER:])
        _gather(connection, out)
    connection._send_seq = (connection._send_seq + 1) & 0xFFFFFFFF
    connection._rekey_bytes_sent += length
    return True


def send_data(connection: Any, channel: int, data: Buffer) -> None:
    """Send one packet of data to the other end's `channel`. `data` may be used again at once."""
    head = channel.to_bytes(4, "big") + len(data).to_bytes(4, "big")
    if not _send(connection, CHANNEL_DATA.to_bytes(1, "big") + head, data):
        _send_packet(connection, CHANNEL_DATA, head, bytes(data))


_send_packet = _Connection.send_packet
_AEAD = (asyncssh.encryption.GCMEncryption, asyncssh.encryption.ChachaEncryption)


def send_packet(self: Any, pkttype: int, *args: bytes, handler: Any = None) -> None:
    """In place of SSHConnection's.

    It leaves out the empty packet that asyncssh puts before each packet for ciphers in CBC mode, whose next
    initialisation vector is known (CVE-2008-5161). With an AEAD cipher (RFC 5647, chacha20-poly1305) it protects
    nothing, and costs an encryption and a decryption each time.
    """
    if pkttype >= GLOBAL_REQUEST:
        if _send(self, pkttype.to_bytes(1, "big"), args[0] if len(args) == 1 else b"".join(args)):
            return
    elif pkttype == IGNORE and self._auth_complete and type(self._send_encryption) in _AEAD:
        return
    _send_packet(self, pkttype, *args, handler=handler)


# --- Receiving -----------------------------------------------------------------------------------------------------


_receive_header = _Connection._recv_pkthdr
_receive_packet = _Connection._recv_packet


def _quick(connection: Any) -> QuickGCM | None:
    """The cipher, if the connection waits for the next packet and for nothing but that."""
    waits: Any = connection._recv_handler
    if getattr(waits, "__func__", None) is not _receive_header or connection._decompressor is not None:
        return None
    return _cipher(connection._recv_encryption)


def data_received(self: Any, data: bytes | memoryview, datatype: int | None = None) -> None:
    """In place of SSHConnection's. A memoryview need be good during this call alone."""
    state = _state(self)
    state.heard = self._loop.time()
    if state.need > HEADER:  # in the midst of a packet
        state.received += data
        if len(state.received) < state.need:
            return
    elif self._inpbuf or _quick(self) is None:
        self._inpbuf += bytes(data)
    else:
        state.received += data
    self._recv_data()


def _recv_data(self: Any) -> None:
    """In place of SSHConnection's: parse what was received."""
    state = _state(self)
    if self._keepalive_timer is None:
        self._reset_keepalive_timer()
    try:
        while True:
            cipher = _quick(self)
            if cipher is not None:
                if self._inpbuf:
                    state.received += self._inpbuf
                    self._inpbuf = b""
                if _take(self, state, cipher):
                    continue
                return
            if state.received:
                self._inpbuf = bytes(state.received) + self._inpbuf
                state.received.clear()
            state.need = 0
            if not self._inpbuf or not self._recv_handler():
                return
    except DisconnectError as problem:
        self._send_disconnect(problem.code, problem.reason, problem.lang)
        self._force_close(problem)
    except Exception:  # as asyncssh's own: whatever it is, it is logged and ends the connection
        self.internal_error()


def _take(connection: Any, state: State, cipher: QuickGCM) -> bool:
    """Take the packets that are complete. True: the connection's state has changed, and it is to be looked at anew."""
    received = state.received
    at, end = 0, len(received)
    view = memoryview(received)
    again = False
    state.need = 0
    try:
        while end - at >= HEADER and not again:
            length = int.from_bytes(view[at : at + HEADER], "big")
            if length > connection._max_recv_pktlen:
                raise ProtocolError("Max packet size exceeded")
            total = HEADER + length + TAG_BYTES
            if end - at < total:
                state.need = total
                break
            if SMALL < length <= _buffers.size:
                plain = memoryview(_buffers.take())[:length]
            else:
                plain = memoryview(bytearray(length))
            # No slice of the view may outlast its use, not even in the traceback of an exception that somebody keeps: a
            # bytearray that is looked at keeps its size.
            if not cipher.open(view[at : at + HEADER], view[at + HEADER : at + total], plain):
                raise MACError("MAC verification failed")
            if not _data(connection, plain) and not _message(connection, plain):
                again = _other(connection, cipher, bytes(view[at : at + total]), bytes(plain))
            at += total
            if connection._transport is None:  # it was closed by what it was told
                at = end
                break
    finally:
        view.release()
    del received[:at]
    return again


def _data(connection: Any, plain: memoryview) -> bool:
    """Give a packet's data to its channel, if it is that."""
    if plain[1] != CHANNEL_DATA or not connection._auth_complete:
        return False
    channel = connection._channels.get(int.from_bytes(plain[2:6], "big"))
    size = int.from_bytes(plain[6:10], "big")
    if (
        not getattr(channel, "bulk", False)
        or channel._recv_state != "open"
        or size > channel._recv_window
        or FRONT + size + plain[0] != len(plain)
    ):
        return False
    _taken(connection)
    data = plain[FRONT : FRONT + size]
    channel._accept_data(bytes(data) if size < SMALL else data)
    return True


def _message(connection: Any, plain: memoryview) -> bool:
    """Give any other message about a channel, up to its end, to whom asyncssh gives it: none of these is waited for."""
    kind = plain[1]
    if not CHANNEL_OPEN <= kind <= CHANNEL_CLOSE or not connection._auth_complete:
        return False
    packet = SSHPacket(bytes(plain[2 : len(plain) - plain[0]]))
    handler = connection
    try:
        if kind > CHANNEL_OPEN_FAILURE:
            handler = connection._channels.get(packet.get_uint32())
            if handler is None:
                return False
        seq = connection._recv_seq
        _taken(connection)
        handler.process_packet(kind, seq, packet)
    except PacketDecodeError as problem:
        raise ProtocolError(str(problem)) from None
    return True


def _taken(connection: Any) -> None:
    connection._auth_final = True
    connection._recv_seq = (connection._recv_seq + 1) & 0xFFFFFFFF


def _other(connection: Any, cipher: QuickGCM, packet: bytes, plain: bytes) -> bool:
    """Give a packet to asyncssh's own parser. True if it does not simply wait for the next one now."""
    first = connection._recv_blocksize
    connection._packet = packet[:first]
    connection._pktlen = len(plain)
    connection._inpbuf = packet[first:]
    connection._recv_handler = connection._recv_packet
    cipher.opened = plain
    _receive_packet(connection)
    return _quick(connection) is not cipher


_keepalive = _Connection._keepalive_timer_callback


def _keepalive_timer_callback(self: Any) -> None:
    """In place of SSHConnection's, where all that is received makes a timer anew: this one looks when it rings.

    It does not ask again while the last question is behind bulk, and that moves: nobody can answer what has not come.
    """
    state = _state(self)
    left = state.heard + self._keepalive_interval - self._loop.time()
    taken = state.written - unacknowledged(self._transport)
    if left > 0.001:
        self._keepalive_timer = self._loop.call_later(left, self._keepalive_timer_callback)
    elif state.taken < taken < state.asked:
        state.taken = taken
        self._keepalive_timer = self._loop.call_later(self._keepalive_interval, self._keepalive_timer_callback)
    else:
        state.taken, state.asked = taken, state.written
        _keepalive(self)


def install() -> None:
    """Let every SSH connection of this process have it."""
    _Connection._send = _send_at_once
    _Connection.send_packet = send_packet
    _Connection.data_received = data_received
    _Connection._recv_data = _recv_data
    _Connection._keepalive_timer_callback = _keepalive_timer_callback

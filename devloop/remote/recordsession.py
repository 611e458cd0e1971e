"""An engine's end of an SSH session of records (`devloop/agent/datagrams.py`)."""

from __future__ import annotations

from typing import Any

from devloop.agent.datagrams import RecordSession


class ClientRecordSession(RecordSession):
    """What asyncssh has for an `SSHClientSession`. Importing this does not import asyncssh."""

    def connection_made(self, chan: Any) -> None:
        """Keep the channel."""
        self._channel = chan

    def session_started(self) -> None:
        """The agent knows of it."""

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        """What the agent says."""
        self.received(bytes(data))

    def pause_writing(self) -> None:
        """The channel's window is used up, and some more."""
        self.stuck(True)

    def resume_writing(self) -> None:
        """There is room again."""
        self.stuck(False)

    def eof_received(self) -> bool:
        """The agent ends it."""
        return False

    def xon_xoff_requested(self, client_can_do: bool) -> None:
        """It is no terminal."""

    def exit_status_received(self, status: int) -> None:
        """It is no program."""

    def exit_signal_received(self, *_: Any) -> None:
        """The same."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The session is over, or the whole connection."""
        self.ended()

    def close(self) -> None:
        """End it."""
        if not self.over and self._channel is not None:
            self._channel.close()
        self.ended()

    def _hang_up(self) -> None:
        self._channel.close()

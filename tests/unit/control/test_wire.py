"""Messages as lines, whatever is in them."""

from __future__ import annotations

import pytest

from devloop.control import wire
from devloop.errors import ConfigError, DevloopError, EngineError, RemoteError, ServiceError, UsageError
from devloop.remote.link import OpenError, PermanentError, Refusal


@pytest.mark.parametrize(
    "text", ["plain", "naïve ☃", "two\nlines", b"\xff\xfe not UTF-8".decode("utf-8", "surrogateescape")]
)
def test_any_text_comes_through_on_one_line(text: str) -> None:
    line = wire.encode({"params": {"value": text}})
    assert line.count(b"\n") == 1
    assert wire.decode(line)["params"] == {"value": text}


@pytest.mark.parametrize("line", [b"\xff\n", b"[]\n", b"no\n"])
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(UsageError, match="not a JSON-RPC message"):
        wire.decode(line)


@pytest.mark.parametrize("kind", [DevloopError, UsageError, ConfigError, EngineError, ServiceError, RemoteError])
def test_an_error_keeps_its_kind_and_so_its_exit_code(kind: type[DevloopError]) -> None:
    found = wire.decode_error(wire.encode_error(kind("what", where="where", hint="hint")))
    assert (type(found), found.what, found.where, found.hint) == (kind, "what", "where", "hint")


@pytest.mark.parametrize("error", [PermanentError("no right"), OpenError(Refusal.REFUSED, "api", 80, "refused")])
def test_a_kind_of_its_own_is_told_as_the_nearest_that_both_ends_know(error: DevloopError) -> None:
    assert type(wire.decode_error(wire.encode_error(error))) is RemoteError

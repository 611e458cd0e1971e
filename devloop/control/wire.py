"""Messages of the control socket as lines of JSON, and errors across it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from devloop.errors import ConfigError, DevloopError, EngineError, RemoteError, ServiceError, UsageError

LIMIT = 64 * 1024 * 1024
"""Longest line accepted, in bytes: a snapshot of some thousand services is far below."""

_CODES: Mapping[int, type[DevloopError]] = {
    -32602: UsageError,  # JSON-RPC: invalid params
    -32000: DevloopError,
    -32001: EngineError,
    -32002: ServiceError,
    -32003: RemoteError,
    -32004: ConfigError,
}


def encode(message: Mapping[str, Any]) -> bytes:
    """One line. In ASCII, so that a variable whose value is not UTF-8 (surrogates, as `os.environ` has it) passes."""
    return json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """One message. Raises UsageError if the line is not a JSON object."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise UsageError("not a JSON-RPC message", where="control socket")
    return message


def encode_error(error: DevloopError) -> dict[str, Any]:
    """An error as JSON-RPC has it; where and hint are in its data."""
    codes = {kind: code for code, kind in _CODES.items()}
    # The nearest kind that has a code: an exit code is decided by it.
    code = next(codes[kind] for kind in type(error).__mro__ if kind in codes)
    return {"code": code, "message": error.what, "data": {"where": error.where, "hint": error.hint}}


def decode_error(data: Mapping[str, Any]) -> DevloopError:
    """The reverse of `encode_error`."""
    detail = data.get("data") or {}
    kind = _CODES.get(data.get("code", 0), DevloopError)
    return kind(data.get("message", "unknown error"), where=detail.get("where"), hint=detail.get("hint"))

"""What an engine and the agent say to each other has a version, and nobody changes it unasked."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

import pytest

import devloop
from devloop.agent.paths import COMMAND, PROTOCOL, SOFTWARE, protocol_of

SPOKEN = ("agent/desk.py", "agent/spec.py", "agent/records.py", "agent/uplink.py", "attach/session.py", "agent/keys.py")
"""Where the words are: messages, what is in them, and the channels that the connections come by."""
RECORDED = (5, "f91d676340fecf2e")


def _digest() -> str:
    """Of the lines that do something: comments of their own, docstrings and indents say nothing on the wire."""
    found = hashlib.sha256()
    for name in SPOKEN:
        text = (Path(devloop.__file__).parent / name).read_text()
        texts = {n for node in ast.walk(ast.parse(text)) if _is_text(node) for n in _lines(node)}
        for number, line in enumerate(text.splitlines(), 1):
            if number not in texts and (words := line.strip()) and not words.startswith("#"):
                found.update(words.encode() + b"\n")
    return found.hexdigest()[:16]


def _lines(node: ast.AST) -> range:
    assert isinstance(node, ast.Expr) and node.end_lineno is not None
    return range(node.lineno, node.end_lineno + 1)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def test_who_changes_what_is_said_is_asked_for_the_version() -> None:
    assert (PROTOCOL, _digest()) == RECORDED, (
        f"{', '.join(SPOKEN)}: something of it is another. Would an agent or an engine from before still understand? "
        f"If not, raise PROTOCOL in devloop/agent/paths.py. Either way record ({PROTOCOL}, {_digest()!r}) here."
    )


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        (f"SSH-2.0-{SOFTWARE}", PROTOCOL),
        ("SSH-2.0-devloop", 1),
        ("SSH-2.0-devloop_7", 7),
        ("SSH-2.0-devloop-sandbox", 0),
        ("SSH-2.0-OpenSSH_9.2p1 Debian-2", 0),
        ("SSH-2.0-devloop_", 0),
        ("SSH-2.0-devloop_" + "9" * 5000, 0),
        ("", 0),
    ],
)
def test_the_version_that_an_agent_announces(banner: str, version: int) -> None:
    assert protocol_of(banner) == version


def test_an_engine_from_before_is_refused_by_its_words() -> None:
    assert COMMAND == f"attachments {PROTOCOL}" != "attachments"

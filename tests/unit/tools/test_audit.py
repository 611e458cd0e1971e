"""What pip-audit has not looked at is not said to be good."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import audit

SKIPPED = {"name": "h11", "skip_reason": "Dependency not found on PyPI and could not be audited: h11 (0.14.0)"}
GOOD = {"name": "idna", "version": "3.20", "vulns": []}
BAD = {
    "name": "h11",
    "version": "0.14.0",
    "vulns": [{"id": "GHSA-vqfr-h8mv-ghfj", "fix_versions": ["0.16.0"], "aliases": [], "description": "…"}],
}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([GOOD], 0, "r.txt: nothing is known of its 1 packages"),
        ([GOOD, BAD], audit.FOUND, "r.txt: h11 0.14.0: GHSA-vqfr-h8mv-ghfj, mended in 0.16.0"),
        ([GOOD, SKIPPED], audit.UNSEEN, "r.txt: NOT AUDITED: 1 of 2 packages: the index that is reached here says"),
        ([SKIPPED], audit.UNSEEN, "r.txt: NOT AUDITED: 1 of 1 packages: "),
    ],
)
def test_three_ends(packages: list[object], code: int, said: str) -> None:
    answer = audit.read(json.dumps({"dependencies": packages, "fixes": []}))
    found, text = audit.report("r.txt", answer)
    assert (found, text[: len(said)]) == (code, said)


def test_no_answer_is_none() -> None:
    for text in ("", "{}", "[]", '{"dependencies": [{"name": "x"}, 1]}'):
        with pytest.raises(ValueError):
            audit.read(text)
    assert audit.report("r.txt", "no network") == (audit.UNSEEN, "r.txt: NOT AUDITED: no network")


@pytest.mark.slow
def test_a_program_that_fails_is_no_good_news(tmp_path: Path) -> None:
    program = tmp_path / "pip-audit"
    for script, reason in (("echo no network >&2; exit 1", "no network"), ("exit 0", "no answer")):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        with pytest.raises(ValueError, match=reason):
            audit.ask(program, tmp_path / "r.txt")

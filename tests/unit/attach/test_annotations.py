"""What an annotation says is written by whoever may edit the object."""

from __future__ import annotations

import pytest

from devloop.agent import objects

HOSTILE = ("", "[]", "null", "7", '{"selector": 1}', '{"selector": {}, "targets": {"x": 1}}', "[" * 100_000, "9" * 5000)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_one_that_nobody_can_read_is_as_none(text: str) -> None:
    metadata = {"name": "api", "annotations": {objects.RECORD: text, objects.SPEC: text}}
    assert objects.record({"metadata": metadata, "spec": {}}) is None
    assert objects.spec_of({"metadata": metadata}) is None

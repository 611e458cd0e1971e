"""Answers made from the API's objects."""

from __future__ import annotations

import pytest

from devloop.remote.kubernetes.zone import _of_label


@pytest.mark.parametrize(
    ("label", "address"),
    [
        ("10-244-0-7", "10.244.0.7"),
        ("fd00-10-244--7", "fd00:10:244::7"),
        ("fd00--1-7", "fd00::1:7"),
        ("--1", "::1"),
        ("api", None),
        ("10-244-0-700", None),
    ],
)
def test_a_pods_name_is_its_address(label: str, address: str | None) -> None:
    assert _of_label(label) == address

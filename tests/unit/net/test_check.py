"""What is said where a namespace can't be made."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from devloop.net.check import _reason, explain


@pytest.mark.parametrize(
    ("setting", "value", "step", "number", "expected"),
    [
        ("user/max_user_namespaces", "0", "unshare", errno.ENOSPC, "no user namespaces"),
        ("kernel/unprivileged_userns_clone", "0", "unshare", errno.EPERM, "root alone"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "map", errno.EACCES, "AppArmor"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "network", errno.EPERM, "AppArmor"),
        (None, "", "unshare", errno.ENOSPC, "limit of namespaces"),
        (None, "", "unshare", errno.EINVAL, "no user or network namespaces"),
        (None, "", "unshare", errno.EPERM, "may not make namespaces"),
        (None, "", "nftables", errno.ENOENT, "nftables"),
        (None, "", "sockets", errno.EADDRINUSE, "could not be made"),
    ],
)
def test_reasons(tmp_path: Path, setting: str | None, value: str, step: str, number: int, expected: str) -> None:
    if setting:
        (tmp_path / setting).parent.mkdir()
        (tmp_path / setting).write_text(f"{value}\n")
    what, hint = _reason(step, number, tmp_path)
    assert expected in what
    assert hint


def test_an_error_says_what_and_what_to_do() -> None:
    error = explain("nftables", errno.ENOENT, "No such file or directory")
    assert "nftables: ENOENT" in error.what
    assert error.hint is not None
    assert "modprobe" in error.hint
    assert 'network = "ports"' in error.hint

"""A folder in memory: its own process's, and gone with it."""

from __future__ import annotations

import os
from pathlib import Path

from devloop.agent import memory


def test_what_a_killed_process_has_left_is_removed_and_nobody_elses(tmp_path: Path) -> None:
    dead, alive, own = (tmp_path / f"{memory.PREFIX}{each}" for each in ("1-a", "1-b", "1-c"))
    killed, living = memory.make(dead), memory.make(alive)
    (dead / "sds").mkdir()
    (dead / "sds" / "key").touch()
    (tmp_path / "somebody-else").mkdir()
    os.close(killed)
    made = memory.make(own)
    assert {each.name for each in tmp_path.iterdir()} == {alive.name, own.name, "somebody-else"}
    os.close(made)
    again = memory.make(own)  # the same name, as the next container's process has it
    assert own.stat().st_mode & 0o777 == 0o700
    for each in (living, again):
        os.close(each)

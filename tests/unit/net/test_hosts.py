"""A project's lines in the hosts file: added, changed and removed, and never another one's."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devloop.net.hosts import HostsFile, added, address_of, block, named, removed

TEXT = st.text("a#: 1.\n\r\x85\udcff", max_size=40)
API = {"127.70.0.1": ["api", "api.shop"]}


def ours(*owners: str) -> object:
    return lambda owner: owner in owners


@given(TEXT)
def test_what_was_there_is_there_again(text: str) -> None:
    assert removed(added(text, block("shop", "/a", API)), ours("/a")) == (text, ["127.70.0.1 api api.shop"])


@given(TEXT, st.permutations(["/a", "/b", "/c"]))
def test_blocks_of_several_projects_go_one_by_one(text: str, order: list[str]) -> None:
    full = text
    for owner in ("/a", "/b", "/c"):
        full = added(full, block("shop", owner, {f"127.70.0.{ord(owner[1])}": [f"name{owner[1]}"]}))
    for index, owner in enumerate(order):
        full, gone = removed(full, ours(owner))
        assert len(gone) == 1
        assert all(f"name{left[1]}" in full for left in order[index + 1 :])
    assert full == text


def test_a_block_that_somebody_has_broken_stays() -> None:
    begin = block("shop", "/a", API).splitlines(keepends=True)[0]
    text = f"{begin}127.70.0.1 api\n10.0.0.1 mine\n"
    assert removed(text, ours("/a")) == (text, [])


def test_names_are_read_as_the_resolver_reads_them() -> None:
    assert named("127.0.0.1 localhost # not this\n# nor this\n::1\tIP6-localhost  other\n") == {
        "localhost", "ip6-localhost", "other",
    }  # fmt: skip


def test_an_address_is_the_same_each_time_and_no_others() -> None:
    first = address_of("shop/api")
    assert first == address_of("shop/api")
    second = address_of("shop/api", {first})
    assert second != first
    found = {address_of(str(number)) for number in range(2000)}
    assert all(each.startswith("127.") and 64 <= int(each.split(".")[1]) < 128 for each in found)
    assert not any(each.endswith((".0", ".255")) for each in found)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "hosts"
    made.write_bytes(b"127.0.0.1 localhost\n# caf\xe9\n10.0.0.1 mine api.shop")
    made.chmod(0o640)
    return made


def test_the_file_is_changed_and_put_back(file: Path) -> None:
    before = file.read_bytes()
    lines = HostsFile("my shop", Path("/a"), lambda _: True, file)
    assert lines.write(API | {"127.70.0.2": ["web"]}) == {"127.70.0.1": {"api.shop"}}
    text = file.read_bytes()
    assert text.startswith(before) and b"\n127.70.0.1 api\n127.70.0.2 web\n" in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    lines.write({"127.70.0.3": ["store"]})
    assert b"127.70.0.1" not in file.read_bytes() and b"127.70.0.3 store" in file.read_bytes()
    lines.remove()
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_lines_of_an_engine_that_was_killed_go_with_the_next_change(file: Path) -> None:
    before = file.read_bytes()
    HostsFile("gone", Path("/gone"), lambda _: True, file).write({"127.70.0.8": ["gone"]})
    HostsFile("beside", Path("/beside"), lambda _: True, file).write({"127.70.0.9": ["beside"]})
    mine = HostsFile("shop", Path("/a"), lambda owner: owner != Path("/gone"), file)
    mine.write({"127.70.0.1": ["api"]})
    assert named(file.read_text("latin-1")) >= {"beside", "api", "mine"}
    assert "gone" not in named(file.read_text("latin-1"))
    mine.remove()
    HostsFile("beside", Path("/beside"), lambda _: True, file).remove()
    assert file.read_bytes() == before


def test_a_link_stays_one_and_a_file_that_is_not_there_is_made(file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    HostsFile("shop", Path("/a"), lambda _: True, link).write(API)
    assert link.is_symlink() and b"api" in file.read_bytes()
    fresh = tmp_path / "fresh"
    HostsFile("shop", Path("/a"), lambda _: True, fresh).write(API)
    assert fresh.read_text() == block("shop", "/a", API)


def test_where_it_can_not_be_replaced_it_is_written_in_place(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.stat().st_ino

    def busy(self: Path, target: Path) -> Path:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", busy)
    HostsFile("shop", Path("/a"), lambda _: True, file).write(API)
    assert file.stat().st_ino == before and b"127.70.0.1 api" in file.read_bytes()
    assert list(file.parent.iterdir()) == [file]


def test_two_engines_do_not_lose_each_others_lines(file: Path) -> None:
    before = file.read_bytes()

    def change(number: int) -> None:
        lines = HostsFile("shop", Path(f"/{number}"), lambda _: True, file)
        for last in range(20):
            lines.write({f"127.70.{number}.{last + 1}": [f"name-{number}-{last}"]})
        if number % 2:
            lines.remove()

    threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    text = file.read_bytes().decode("latin-1")
    assert {name for name in named(text) if name.startswith("name-")} == {"name-0-19", "name-2-19"}
    for number in range(4):
        HostsFile("shop", Path(f"/{number}"), lambda _: True, file).remove()
    assert file.read_bytes() == before
    assert os.access(file, os.R_OK)

"""What a change of the file changed."""

from __future__ import annotations

from devloop.config.diff import Difference, diff

from .folder import Folder


def test_added_removed_changed_and_same(folder: Folder) -> None:
    old = folder.load('[services.a]\ncommand = "a"\n[services.b]\ncommand = "b"\n[services.c]\ncommand = "c"\n')
    new = folder.load(
        '[services.d]\ncommand = "d"\n[services.c]\nstop = "INT"\ncommand = "c2"\nports = 1\n'
        '[services.a]\ncommand = "a"\n'
    )
    assert diff(old, new) == Difference(
        added=("d",), removed=("b",), changed={"c": ("command", "ports", "ready", "stop")}, same=("a",)
    )


def test_nothing_changed(folder: Folder) -> None:
    text = '[services.a]\ncommand = "a"\nports = { x = 1, y = 2 }\nready = false\nenv = { A = 1, B = 2 }\n'
    other = (
        "# comment\n[services]\n"
        'a = { ready = false, command = "a", ports = { y = 2, x = 1 }, env = { B = "2", A = "1" } }'
    )
    assert diff(folder.load(text), folder.load(other)) == Difference((), (), {}, ("a",))


def test_a_changed_default_and_a_changed_env_file_count(folder: Folder) -> None:
    folder.write({"e": "A=1"})
    text = '[defaults]\ndebounce = "5ms"\n[services.a]\ncommand = "a"\nenv_file = "e"\n[services.b]\ncommand = "b"\n'
    old = folder.load(text)
    folder.write({"e": "A=2"})
    new = folder.load(text.replace("5ms", "6ms"))
    assert diff(old, new).changed == {"a": ("debounce", "file_env"), "b": ("debounce",)}

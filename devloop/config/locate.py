"""Where the keys and values of a TOML file stand, from tree-sitter's concrete syntax tree.

`tomllib` gives values without positions, and every position that it could give would cost the file that is
fine as much as the one that is not. So positions are computed here, once there is something to report.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from typing import Literal

import tree_sitter_toml
from tree_sitter import Language, Node, Parser

from devloop.config.words import Path_

_TOML = Language(tree_sitter_toml.language())
_KEYS = ("bare_key", "quoted_key", "dotted_key")


@dataclass(slots=True)
class _Entry:
    """A value, the key that names it, and what is inside. Offsets in bytes."""

    key: int
    start: int
    end: int
    text: str = ""
    """What a scalar says."""
    array: bool = False
    children: dict[str | int, _Entry] = field(default_factory=dict)


class Positions:
    """The positions in one file's text; with syntax errors, as far as it was understood."""

    def __init__(self, text: str) -> None:
        self._bytes = text.encode()
        self._root = _Entry(0, 0, len(self._bytes))
        self._document(Parser(_TOML).parse(self._bytes).root_node)

    def find(self, path: Path_, on: Literal["key", "value"] = "value", needle: str = "") -> tuple[int, int]:
        """Line and column, from 1, of the key or value at `path`, or of what is nearest around it.

        In an array, a name stands for the element that says it: in `depends_on = ["store"]`, the path
        `depends_on`, `store` is that element. `needle` is looked for inside the value.
        """
        entry, exact = self._root, True
        for part in path:
            child = entry.children.get(part)
            if child is None and entry.array:
                child = next((c for c in entry.children.values() if c.text == part), None)
            if child is None:
                exact = False
                break
            entry = child
        offset = entry.key if on == "key" and exact else entry.start
        if needle:
            # `$${NAME}` is a text, not a variable.
            pattern = rb"(?<!\$)(?:\$\$)*(" + re.escape(needle.encode()) + rb")"
            if found := re.compile(pattern).search(self._bytes, entry.start, entry.end):
                offset = found.start(1)
        return self._line_column(offset)

    def _line_column(self, offset: int) -> tuple[int, int]:
        before = self._bytes[:offset]
        line_start = before.rfind(b"\n") + 1
        return before.count(b"\n") + 1, len(before[line_start:].decode(errors="replace")) + 1

    def _document(self, node: Node) -> None:
        for child in node.children:
            match child.type:
                case "pair":
                    self._pair(child, self._root)
                case "table":
                    self._table(child, self._root)
                case "table_array_element":
                    self._table(child, self._root, array=True)
                case "ERROR":
                    self._document(child)

    def _table(self, node: Node, root: _Entry, *, array: bool = False) -> None:
        header = next((c for c in node.children if c.type in _KEYS), None)
        if header is None:
            return
        entry = self._descend(_parts(header), root, header.start_byte)
        if array:
            entry.array = True
            element = _Entry(header.start_byte, header.start_byte, node.end_byte)
            entry.children[len(entry.children)] = element
            entry = element
        else:
            # A table that a sub-table has opened already is said here.
            entry.key = entry.start = _parts(header)[-1][1]
            entry.end = node.end_byte
        for child in node.children:
            if child.type == "pair":
                self._pair(child, entry)

    def _pair(self, node: Node, parent: _Entry) -> None:
        key = next((c for c in node.children if c.type in _KEYS), None)
        # A comment at the line's end is a child of the pair too.
        value = next((c for c in node.children if c.is_named and c.type not in ("comment", *_KEYS)), None)
        if key is None or value is None:
            return
        parts = _parts(key)
        parent = self._descend(parts[:-1], parent, value.start_byte)
        name, offset = parts[-1]
        parent.children[name] = self._value(value, offset)

    def _descend(self, parts: list[tuple[str, int]], entry: _Entry, end: int) -> _Entry:
        for name, offset in parts:
            # The last element of an array of tables is the one that `[a.b]` goes on with.
            if entry.array and entry.children:
                entry = entry.children[len(entry.children) - 1]
            entry = entry.children.setdefault(name, _Entry(offset, offset, end))
        return entry

    def _value(self, node: Node, key: int) -> _Entry:
        entry = _Entry(key, node.start_byte, node.end_byte)
        if node.type == "array":
            entry.array = True
            for child in node.children:
                if child.is_named and child.type not in ("comment", "ERROR"):
                    entry.children[len(entry.children)] = self._value(child, child.start_byte)
        elif node.type == "inline_table":
            for child in node.children:
                if child.type == "pair":
                    self._pair(child, entry)
        else:
            entry.text = _said(node)
        return entry


def _parts(node: Node) -> list[tuple[str, int]]:
    """The names of a key, dotted or not, each with its offset."""
    if node.type == "dotted_key":
        return [part for child in node.children if child.type in _KEYS for part in _parts(child)]
    text = (node.text or b"").decode()
    return [(_unquoted(text) if node.type == "quoted_key" else text, node.start_byte)]


def _said(node: Node) -> str:
    text = (node.text or b"").decode()
    return _unquoted(text) if node.type == "string" else text


def _unquoted(text: str) -> str:
    try:
        return str(tomllib.loads(f"x = {text}")["x"])
    except tomllib.TOMLDecodeError:
        return text

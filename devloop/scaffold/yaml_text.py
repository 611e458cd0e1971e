"""YAML as `docker compose` reads it, with the line and column of each value.

PyYAML reads YAML 1.1, where `no` is false, `22:22` is 1342 and `1_0` is ten. Compose reads with go-yaml, which takes
a plain scalar as YAML 1.2 does: only true and false are booleans. So PyYAML makes the nodes here and resolves none.
Its own `CSafeLoader` is not used: libyaml ends the process on a file that is nested deep enough.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TypeAlias, Union

import yaml

from devloop.config.text import EncodingError, decode
from devloop.errors import ConfigError
from devloop.paths import read_file
from devloop.scaffold.files import MOST_BYTES

MOST_VALUES = 200_000
"""A file may have this many values once its aliases are followed: more is a bomb, not a project."""

Value: TypeAlias = Union[str, int, float, bool, "Mapping_", "Sequence_", None]


class Tag(Enum):
    """What a value does to the one that it overrides (Compose specification, "Merge")."""

    RESET = "!reset"
    OVERRIDE = "!override"


class Mapping_(dict[str, Value]):  # noqa: N801 - a dict with places
    """A mapping. `at` has where each value stands, as FILE:LINE:COLUMN; `tags` those that are tagged."""

    def __init__(self, here: str = "") -> None:
        super().__init__()
        self.here = here
        self.at: dict[str, str] = {}
        self.tags: dict[str, Tag] = {}

    def put(self, key: str, value: Value, at: str, tag: Tag | None = None) -> None:
        """Set a key together with its place."""
        self[key] = value
        self.at[key] = at
        self.tags.pop(key, None)
        if tag is not None:
            self.tags[key] = tag

    def where(self, key: str) -> str:
        """The place of this key's value."""
        return self.at.get(key, self.here)

    def copied(self) -> Mapping_:
        """A shallow copy."""
        made = Mapping_(self.here)
        made.update(self)
        made.at, made.tags = dict(self.at), dict(self.tags)
        return made


class Sequence_(list[Value]):  # noqa: N801 - a list with places
    """A sequence. `at` has where each of its values stands."""

    def __init__(self, here: str = "") -> None:
        super().__init__()
        self.here = here
        self.at: list[str] = []

    def add(self, value: Value, at: str) -> None:
        """Append a value together with its place."""
        self.append(value)
        self.at.append(at)

    def places(self) -> Iterator[tuple[Value, str]]:
        """Each value with its place."""
        return zip(self, self.at, strict=True)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own table, emptied


def read_yaml(file: Path, shown: str, notices: list[str]) -> list[Mapping_]:
    """The documents of the file that are mappings. `shown` is its name in places and messages.

    What can be passed over is a notice. Raises ConfigError for what is no YAML at all, and if it can't be read.
    """
    text = read_text(file, shown)
    documents = []
    try:
        nodes = list(_nodes(text))
        for node in nodes:
            value = _Maker(shown, notices).value(node)
            if isinstance(value, Mapping_):
                documents.append(value)
            elif value is not None:
                raise ConfigError("expected a mapping, as in `services:`", where=_at(shown, node))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{shown}:{mark.line + 1}:{mark.column + 1}" if mark else shown
        if isinstance(error, yaml.reader.ReaderError):
            before = text[: error.position]
            where = f"{shown}:{before.count(chr(10)) + 1}:{len(before.rpartition(chr(10))[2]) + 1}"
            problem = f"the character U+{ord(str(error.character)[:1] or chr(0)):04X} may not stand in YAML"
        else:
            problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise ConfigError(f"not valid YAML: {problem}", where=where, hint=AGAIN) from None
    except RecursionError:
        raise ConfigError("not valid YAML: it is nested too deep", where=shown, hint=AGAIN) from None
    return documents


AGAIN = "mend it, or move it out of the way, then run `devloop init` again"


def read_text(file: Path, shown: str) -> str:
    """A text file in one of the encodings that `config.text` knows. Raises ConfigError if it can't be read."""
    try:
        return decode(read_file(file, MOST_BYTES))
    except EncodingError as error:
        raise ConfigError(error.what, where=f"{shown}:{error.line}:{error.column}", hint=error.hint) from None
    except OSError as error:
        raise ConfigError(f"can't be read: {error.strerror}", where=shown) from None
    except ValueError as error:  # a NUL in its name
        raise ConfigError(f"can't be read: {error}", where=shown) from None


def _nodes(text: str) -> Iterator[yaml.Node]:
    loader = _Loader(text)
    try:
        while loader.check_node():
            if (node := loader.get_node()) is not None:
                yield node
    finally:
        loader.dispose()


def _at(shown: str, node: yaml.Node) -> str:
    return f"{shown}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


class _Maker:
    """Makes values of nodes, for one document."""

    def __init__(self, shown: str, notices: list[str]) -> None:
        self._shown = shown
        self._notices = notices
        self._open: set[int] = set()
        self._made = 0

    def value(self, node: yaml.Node) -> Value:
        """The node's value. Raises ConfigError for an alias that holds itself, and for a bomb of aliases."""
        at = _at(self._shown, node)
        self._made += 1
        if self._made > MOST_VALUES:
            raise ConfigError(f"more than {MOST_VALUES:,} values, with its aliases followed", where=at, hint=AGAIN)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self._open:
            raise ConfigError("not valid YAML: an alias that holds itself", where=at, hint=AGAIN)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                found = Sequence_(at)
                for each in node.value:
                    found.add(self.value(each), _at(self._shown, each))
                return found
            return self._mapping(node, at)
        finally:
            self._open.discard(id(node))

    def _scalar(self, node: yaml.ScalarNode) -> Value:
        if node.tag == Tag.RESET.value:
            return None
        if node.style is not None or node.tag not in _PLAIN:
            return str(node.value)
        return resolved(node.value)

    def _mapping(self, node: yaml.Node, at: str) -> Mapping_:
        made = Mapping_(at)
        merged: list[yaml.Node] = []
        for key, each in node.value:
            place = _at(self._shown, each)
            if not isinstance(key, yaml.ScalarNode):
                self._notices.append(f"{_at(self._shown, key)}: a key that is not text was left out")
            elif key.value == "<<" and key.style is None:
                merged += each.value if isinstance(each, yaml.SequenceNode) else [each]
            else:
                if key.value in made:
                    self._notices.append(f"{place}: {key.value} is there twice; the later one counts")
                tag = Tag(each.tag) if each.tag in _TAGS else None
                made.put(key.value, self.value(each), place, tag)
        for each in merged:
            base = self.value(each)
            if not isinstance(base, Mapping_):
                self._notices.append(f"{_at(self._shown, each)}: << takes a mapping; this was left out")
                continue
            for name, value in base.items():
                if name not in made:
                    made.put(name, value, base.where(name), base.tags.get(name))
        return made


_PLAIN = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:bool"}
_PLAIN |= {"tag:yaml.org,2002:null", "!override"}
_TAGS = {each.value for each in Tag}
_INTEGER = re.compile(r"[-+]?(?:0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def resolved(text: str) -> Value:
    """A plain scalar's value by go-yaml's rules: YAML 1.2, with 1.1's octals (`0755`) and underscores."""
    if text in _WORDS:
        return None
    if text in _WORDS_BOOL:
        return _WORDS_BOOL[text]
    if _INTEGER.fullmatch(text) and len(text) <= 30:
        digits = text.replace("_", "").lstrip("+")
        sign, bare = (-1, digits[1:]) if digits.startswith("-") else (1, digits)
        base = {"0b": 2, "0o": 8, "0x": 16}.get(bare[:2].lower(), 8 if len(bare) > 1 and bare[0] == "0" else 10)
        try:
            return sign * int(bare[2:] if bare[:2].lower() in ("0b", "0o", "0x") else bare, base)
        except ValueError:
            return text
    if _FLOAT.fullmatch(text):
        number = float(text)
        return number if math.isfinite(number) else text
    return text

"""Whether a regular expression of somebody else's matches a text, in a time that has a bound. Pure.

Python tries one way after the other, and there are patterns of ten characters that take it days for a text of forty.
Envoy's regular expressions (RE2's) go all ways at once, and so it is done here, for what most patterns are made of:
characters, classes, groups, `|` and repetitions. What else there is, or is too much, is not told (None).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

STEPS = 50_000
"""Some 0.1 s: what all patterns of two attachments may take together."""
STATES = 2000
"""Of one pattern with its repetitions written out."""
BUILT = 5
"""Steps for each state that is made."""
DEEPEST = 30
"""Groups within each other."""
REPEATED = 1000
"""RE2 takes no larger number."""
_ATOM = re.compile(
    r"\\[dDsSwW]|\\[^0-9A-Za-z]|\[\^?[^]\[\\](?:[^]\[\\]|\\[dDsSwW]|\\[^0-9A-Za-z])*]|[^\\\[\](){}|*+?^$]"
)
_TIMES = re.compile(r"(?:([*+?])|\{([0-9]{1,4})(,([0-9]{1,4})?)?\})\??")


class _UnknownError(Exception):
    """The pattern has something that is not known here, or is too large."""


Test = Callable[[str], bool]


@dataclass
class Effort:
    """What may still be done."""

    steps: int = STEPS


@dataclass
class _Program:
    """States by number: each goes on to others, some after a character that fits, some at an end of the text."""

    tests: list[Test | str | None] = field(default_factory=list)
    """A character's; `^` or `$`; or None: at once."""
    targets: list[list[int]] = field(default_factory=list)

    def add(self, test: Test | str | None, *targets: int) -> int:
        if len(self.tests) >= STATES:
            raise _UnknownError
        self.tests.append(test)
        self.targets.append(list(targets))
        return len(self.tests) - 1


@dataclass
class _Node:
    """A part of a pattern: emits its states before the one that comes after it, and says where it begins."""

    emit: Callable[[_Program, int], int]


def matches(pattern: str, text: str, effort: Effort | None = None) -> bool | None:
    """Whether a pattern of RE2's matches the whole text; None: that can't be told, or not within `effort`."""
    effort = Effort() if effort is None else effort
    effort.steps -= BUILT * len(pattern)
    if effort.steps < 0:
        return None
    program = _Program()
    try:
        reader = _Reader(pattern)
        node = reader.either(0)
        if reader.at < len(pattern):
            return None
        program.add(None)  # the end
        start = node.emit(program, 0)
    except (_UnknownError, re.error):
        return None
    finally:
        effort.steps -= BUILT * len(program.tests)
    now = _closure(program, {start}, at_start=True, at_end=not text, effort=effort)
    for index, character in enumerate(text):
        if effort.steps < 0 or not now:
            break
        effort.steps -= len(now)
        after = {program.targets[each][0] for each in now if callable(test := program.tests[each]) and test(character)}
        now = _closure(program, after, at_start=False, at_end=index == len(text) - 1, effort=effort)
    return None if effort.steps < 0 else 0 in now


def _closure(program: _Program, found: set[int], *, at_start: bool, at_end: bool, effort: Effort) -> set[int]:
    """These states, and all that are reached without a character."""
    left = list(found)
    while left and effort.steps >= 0:
        each = left.pop()
        effort.steps -= 1
        test = program.tests[each]
        if callable(test) or (test == "^" and not at_start) or (test == "$" and not at_end):
            continue
        more = [one for one in program.targets[each] if one not in found]
        found.update(more)
        left += more
    return found


class _Reader:
    """A pattern's grammar. Raises _UnknownError."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0

    def either(self, depth: int) -> _Node:
        """Alternatives, up to the end or a parenthesis."""
        if depth > DEEPEST:
            raise _UnknownError
        parts = [self._sequence(depth)]
        while self._next("|"):
            parts.append(self._sequence(depth))
        if len(parts) == 1:
            return parts[0]

        def emit(program: _Program, after: int) -> int:
            return program.add(None, *(each.emit(program, after) for each in parts))

        return _Node(emit)

    def _sequence(self, depth: int) -> _Node:
        parts = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            parts.append(self._repeated(self._one(depth)))

        def emit(program: _Program, after: int) -> int:
            for each in reversed(parts):
                after = each.emit(program, after)
            return program.add(None, after)  # also of nothing: what is repeated is bounded by its states

        return _Node(emit)

    def _one(self, depth: int) -> _Node:
        if self._next("("):
            if self._next("?") and not self._next(":"):
                raise _UnknownError
            inner = self.either(depth + 1)
            if not self._next(")"):
                raise _UnknownError
            return inner
        for end in "^$":
            if self._next(end):
                return _single(end)
        found = _ATOM.match(self.pattern, self.at)
        if found is None:
            raise _UnknownError
        self.at = found.end()
        return _single(_test(found[0]))

    def _repeated(self, node: _Node) -> _Node:
        found = _TIMES.match(self.pattern, self.at)
        if found is None:
            return node
        self.at = found.end()
        if self.pattern[self.at : self.at + 1] in ("*", "+", "?", "{"):  # twice: RE2 refuses it
            raise _UnknownError
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(found[1] or "", (0, 0))
        if found[2]:
            least = int(found[2])
            most = least if found[3] is None else int(found[4]) if found[4] else None
        if least > REPEATED or (most is not None and not least <= most <= REPEATED):
            raise _UnknownError

        def emit(program: _Program, after: int) -> int:
            if most is None:
                start = program.add(None, after)
                program.targets[start].append(node.emit(program, start))
            else:
                start = after
                for _ in range(most - least):
                    start = program.add(None, node.emit(program, start), after)
            for _ in range(least):
                start = node.emit(program, start)
            return start

        return _Node(emit)

    def _next(self, character: str) -> bool:
        if self.pattern.startswith(character, self.at):
            self.at += 1
            return True
        return False


def _single(test: Test | str) -> _Node:
    return _Node(lambda program, after: program.add(test, after))


def _test(atom: str) -> Test:
    """Of one character; Python may be asked that."""
    if len(atom) == 1 and atom != ".":
        return atom.__eq__
    known = re.compile(atom, re.ASCII)
    return lambda character: known.fullmatch(character) is not None

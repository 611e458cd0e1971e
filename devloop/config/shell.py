"""What a command line asks of a shell: whether it needs one, and how little of one.

A signal is for the program, not for a shell that stands around it. So `NAME=value program` and `cd folder && program`
are carried out without a shell, and the last program of other lines takes the shell's place (`exec`), each only where
that means the same. What is not understood here is left to the shell as it is.

A grammar of the shell (tree-sitter-bash) would tell more, and takes 80 ms to import at each start of devloop.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_RESERVED = frozenset(
    # POSIX, 2.4.
    """
    ! { } case do done elif else esac fi for function if in select then time until while
    """.split()  # noqa: SIM905 - as a list it is a page
)
_BUILT_IN = frozenset(
    # Built-ins that are no program of their own, or another one (POSIX, 2.14; bash's).
    """
    : . alias bg break builtin cd command continue declare dirs disown enable eval exec exit export fc fg getopts hash
    help history jobs let local logout mapfile popd pushd read readarray readonly return set shift shopt source suspend
    times trap type typeset ulimit umask unalias unset wait
    """.split()  # noqa: SIM905
)
_ALSO_PROGRAMS = frozenset(["[", "echo", "false", "kill", "printf", "pwd", "test", "true"])
"""Built-ins that are programs too, which may differ in what they say."""
_LEAVES_MORE = frozenset([".", "alias", "builtin", "command", "eval", "function", "source", "trap", "unalias"])
"""After these a word may mean anything, or the shell has something to do at its end."""

ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=")
_PLAIN_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")

_OF_BASH = re.compile(
    r"""(?:^|[\s;&|(])(?P<word>source|pushd|popd|shopt|declare|typeset|function|select|mapfile|readarray|let|\[\[)(?=\s)
    | (?P<array>[A-Za-z_]\w*\+?=\()
    | (?P<process><\(|>\()
    | (?P<here><<<)
    | (?P<both>&>>?)
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Simple:
    """A line that takes no shell: where it goes (`cd`), what it sets, and its words."""

    words: tuple[str, ...]
    folders: tuple[str, ...] = ()
    """One `cd` after the other."""
    env: Mapping[str, str] = field(default_factory=dict)


def needs_shell(line: str) -> bool:
    """Whether a shell would do more with the line than split it into words."""
    first = line.split(None, 1)[0]
    if first in _RESERVED or first in _BUILT_IN or ASSIGNMENT.match(first):
        return True
    return _has_syntax(line)


def _has_syntax(line: str, *, after_equals: bool = False) -> bool:
    """Whether anything in the line, quotes apart, is more than words. `after_equals`: so is a ~ in an assignment."""
    quote, at_word_start, position = "", True, 0
    while position < len(line):
        char = line[position]
        if quote == "'":
            quote = "" if char == "'" else quote
        elif char == "\\":
            following = line[position + 1 : position + 2]
            # Between double quotes, a shell takes these backslashes away and shlex does not (POSIX, 2.2.3).
            if following == "\n" or (quote and following in ("$", "`")):
                return True
            position += 1
        elif quote:
            if char in "$`":
                return True
            quote = "" if char == '"' else quote
        elif char in "'\"":
            quote = char
        elif char in "|&;<>()$`*?[{\n" or (char in "~#" and at_word_start):
            return True
        at_word_start = not quote and (char.isspace() or (after_equals and char in "=:"))
        position += 1
    return False


def simple(line: str) -> Simple | None:
    """The line without a shell, if `cd FOLDER &&` and `NAME=value` are all that it wants one for."""
    folders: list[str] = []
    while (split := _split(line)) is not None and len(split) > 1:
        start, end, joint = split[0]
        if joint != "&&":
            return None
        words = _words(line[start:end])
        # `cd -`, options and no folder at all are the shell's.
        if words is None or len(words) != 2 or words[0] != "cd" or not words[1] or words[1].startswith("-"):
            return None
        # `..` behind a link is where the link stands for a shell, and where it leads for the kernel.
        parts = words[1].split("/")
        if ".." in parts[1:] and ".." in parts[next(i for i, part in enumerate(parts) if part != "..") :]:
            return None
        if folders and ".." in parts:
            return None
        folders.append(words[1])
        line = line[split[1][0] :]
    env: dict[str, str] = {}
    rest = line.lstrip()
    while _PLAIN_ASSIGNMENT.match(rest):
        word = _first_word(rest)
        values = None if _has_syntax(word, after_equals=True) else _words(word)
        if values is None or len(values) != 1:
            return None
        name, _, value = values[0].partition("=")
        env[name] = value
        rest = rest[len(word) :].lstrip()
    if not rest or needs_shell(rest):
        return None
    words = _words(rest)
    return Simple(tuple(words), tuple(folders), env) if words and words[0] else None


def with_exec(line: str) -> str:
    """The line with its last program in the shell's place, where that is what the line would do anyway."""
    split = _split(line)
    if split is None:
        return line
    for start, end, _ in split:
        first = _program(line[start:end])
        if first is None or first in _RESERVED or first in _LEAVES_MORE:
            return line
    start, end, joint = split[-1]
    first = _program(line[start:end])
    if joint or not first or first in _BUILT_IN or first in _ALSO_PROGRAMS or not re.fullmatch(r"[\w./@%+:,-]+", first):
        return line
    at = start + len(line[start:end]) - len(_past_assignments(line[start:end]))
    return f"{line[:at]}exec {line[at:]}"


POSIX = frozenset(["sh", "dash", "ash", "bash", "ksh", "mksh", "zsh", "busybox"])
"""Shells for which a line of plain words is what it is here."""
TAKES_ITS_PLACE = frozenset(["bash", "ksh", "mksh", "zsh"])
"""Shells that put the last program of a line in their own place by themselves."""
SH = ("/bin/sh", "-c")


def complaint(argv: tuple[str, ...], line: str) -> str:
    """Why /bin/sh will not understand the line, if it is not bash under that name; "" if it will."""
    if argv[:2] != SH or not (found := of_bash(line)):
        return ""
    name = Path("/bin/sh").resolve().name
    if name not in ("dash", "ash", "busybox", "sh"):
        return ""
    return f'`{found}` is bash\'s, and /bin/sh is {name} here: set shell = "bash"'


def of_bash(line: str) -> str:
    """The first thing in the line that plain sh does not know, as it is written; "" if there is none."""
    found = _OF_BASH.search(_unquoted(line))
    return found.group(found.lastgroup or 0) if found else ""


def _unquoted(line: str) -> str:
    """The line with what is quoted blanked out."""
    return re.sub(r"'[^']*'|\"(?:\\.|[^\"\\])*\"|\\.", lambda found: "_" * len(found.group()), line, flags=re.DOTALL)


def _words(text: str) -> list[str] | None:
    if _has_syntax(text):
        return None
    try:
        return shlex.split(text)
    except ValueError:
        return None


def _first_word(text: str) -> str:
    blanked = re.sub(r"'[^']*'|\"(?:\\.|[^\"\\])*\"|\\.", lambda found: "_" * len(found.group()), text, flags=re.DOTALL)
    return text[: len(re.split(r"\s", blanked, maxsplit=1)[0])]


def _past_assignments(segment: str) -> str:
    rest = segment.lstrip()
    while ASSIGNMENT.match(rest):
        rest = rest[_word_length(rest) :].lstrip()
    return rest


def _word_length(text: str) -> int:
    """How long the first word is, with what is quoted or substituted in it."""
    position = 0
    while position < len(text) and not text[position].isspace():
        after = _over(text, position)
        if after is None:
            return len(text)
        position = after
    return position


def _program(segment: str) -> str | None:
    """The word that a segment runs: "" if it only assigns. None: nothing can be told."""
    rest = _past_assignments(segment)
    return rest[: _word_length(rest)]


def _over(line: str, position: int) -> int | None:
    """Past what begins here: a character, a quoted text, a substitution. None: its end is not found, or unclear."""
    char = line[position]
    if char == "\\":
        return position + 2
    if char == "'":
        end = line.find("'", position + 1)
        return None if end < 0 else end + 1
    if char == '"':
        position += 1
        while position < len(line):
            if line[position] == '"':
                return position + 1
            if line[position] == "`":
                return None
            after = _over(line, position) if line[position] in "\\$" else position + 1
            if after is None:
                return None
            position = after
        return None
    if char == "`":
        return None
    if char == "$" and line[position + 1 : position + 2] in ("(", "{"):
        closing = {"(": ")", "{": "}"}[line[position + 1]]
        position += 2
        while position < len(line):
            if line[position] == closing:
                return position + 1
            if line[position] in "(){}#":
                return None  # a subshell, a pattern, a comment: one level is enough
            after = _over(line, position)
            if after is None:
                return None
            position = after
        return None
    return position + 1


def _split(line: str) -> list[tuple[int, int, str]] | None:
    """The line's commands: where each begins and ends, and what stands behind it: &&, ||, ; or a line's end.

    None: it has more than such a list (pipes, background, groups, here-documents, comments), or can't be read.
    """
    found: list[tuple[int, int, str]] = []
    start = position = 0
    at_word_start = True
    while position < len(line):
        char = line[position]
        two = line[position : position + 2]
        if two in ("&&", "||"):
            found.append((start, position, two))
            position = start = position + 2
            at_word_start = True
            continue
        if char in ";\n":
            if two == ";;":
                return None
            found.append((start, position, char))
            position = start = position + 1
            at_word_start = True
            continue
        if char in "|(){}`" or two == "<<" or (char == "#" and at_word_start):
            return None
        if char == "&" and line[position - 1 : position] not in ("<", ">"):
            return None
        after = _over(line, position)
        if after is None:
            return None
        at_word_start = char.isspace()
        position = after
    found.append((start, len(line), ""))
    while found and not line[found[-1][0] : found[-1][1]].strip():
        # `a;` ends as `a` does; `a &&` is not finished.
        if len(found) > 1 and found[-2][2] in ("&&", "||"):
            return None
        found.pop()
        if found:
            found[-1] = (found[-1][0], found[-1][1], "")
    if any(not line[start:end].strip() and joint != "\n" for start, end, joint in found):
        return None
    return [each for each in found if line[each[0] : each[1]].strip()] or None

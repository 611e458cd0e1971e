"""`$(VAR)` references, as Kubernetes expands them in `env`, `command`, `args` and `subPathExpr`.

Source of the rules: `third_party/forked/golang/expansion/expand.go`.
"""

from __future__ import annotations

from collections.abc import Callable

LARGEST = 128 << 10
"""Characters: Linux starts no program with a longer one (MAX_ARG_STRLEN). Forty variables that each name the one before
them twice would be a TiB."""


def expand(text: str, value_of: Callable[[str], str | None]) -> str:
    """Replace each `$(NAME)` by its value; one that `value_of` does not know stays as it is.

    `$$` is a `$`, so `$$(NAME)` is the text `$(NAME)`. A `$` before anything else, and a `$(` that is never
    closed, are text. What comes out is not expanded again. Raises ValueError if that is too long for any program.
    """
    out: list[str] = []
    position = length = 0
    while position < len(text):
        if text[position] != "$" or position + 1 == len(text):
            out.append(text[position])
            position += 1
        elif text[position + 1] == "$":
            out.append("$")
            position += 2
        elif text[position + 1] == "(" and (end := text.find(")", position)) >= 0:
            name = text[position + 2 : end]
            value = value_of(name)
            out.append(f"$({name})" if value is None else value)
            position = end + 1
        else:
            out.append(text[position : position + 2])
            position += 2
        length += len(out[-1])
        if length > LARGEST:
            raise ValueError(f"it has more than {LARGEST >> 10} KiB, so no program starts with it")
    return "".join(out)

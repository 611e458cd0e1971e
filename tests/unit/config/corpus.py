"""Wrong files (`problems.txt`) and files made by hypothesis, for `load` and for the JSON schema."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

FILE = Path(__file__).with_name("problems.txt")


@dataclass(frozen=True, slots=True)
class Case:
    """Keys, with a § where the problem is, and what is said about it."""

    text: str
    message: str
    hint: str
    load_only: bool

    def __str__(self) -> str:
        return self.text.replace("§", "").encode("ascii", "replace").decode()


def cases() -> tuple[list[Case], list[Case]]:
    """The keys of a service, and what stands outside the services."""
    _, keys, elsewhere = FILE.read_text().split("\n## ")
    return _cases(keys), _cases(elsewhere)


def _cases(part: str) -> list[Case]:
    _, *blocks = part.strip().split("\n\n")
    found = []
    for block in blocks:
        lines = block.split("\n")
        kinds: dict[str, list[str]] = {"> ": [], "? ": [], "~ ": [], "": []}
        for line in lines:
            kind = line[:2] if line[:2] in kinds else ""
            kinds[kind].append(line.removeprefix(kind))
        (message,) = kinds["> "]
        found.append(Case("\n".join(kinds[""]), message, "".join(kinds["? "]), bool(kinds["~ "])))
    return found


def toml(value: object) -> str:
    """The value as TOML on one line."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float() | date():
            return str(value)
        case str():
            escaped = (f"\\U{ord(c):08x}" if c in '"\\' or not c.isprintable() else c for c in value)
            return f'"{"".join(escaped)}"'
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
    raise TypeError(value)

"""What this user has agreed to, by project file: kept with the user's own state, never in a project.

    $XDG_STATE_HOME/devloop/trust/<digest of the project file's path>.json

It holds whose the project file may be, if it is another user's, and what the project reached outside of itself when
that was last agreed to (`devloop.remote.reach` says what that is).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from devloop.errors import DevloopError
from devloop.paths import state_home


@dataclass(frozen=True, slots=True)
class Agreed:
    """About one project file."""

    owners: tuple[int, ...] = ()
    """The users that it and what it includes may belong to, besides this one and root."""
    reach: Mapping[str, str] | None = None
    """What it reached, each in words; None: nothing has been agreed to yet."""


@dataclass(frozen=True, slots=True)
class Change:
    """What differs between what was agreed to and what is now."""

    gone: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    first: bool = False
    """Nothing had been agreed to."""


def digest(reach: Mapping[str, str]) -> str:
    """A short name of what a project reaches, which changes with any of it."""
    return hashlib.sha256(json.dumps(sorted(reach.items())).encode()).hexdigest()[:16]


def agreed(file: Path) -> Agreed:
    """What is remembered about this project file; what can't be read is nothing."""
    try:
        data = json.loads(_record(file).read_bytes())
        if data["file"] != os.fsencode(file).hex():
            return Agreed()
        owners, reach = data["owners"], data["reach"]
    except (OSError, ValueError, KeyError, TypeError):
        return Agreed()
    known = isinstance(reach, dict) and all(isinstance(each, str) for each in reach.values())
    numbers = isinstance(owners, list) and all(isinstance(each, int) for each in owners)
    return Agreed(tuple(owners) if numbers else (), reach if known else None)


def agree(file: Path, *, owners: Iterable[int] = (), reach: Mapping[str, str] | None = None) -> None:
    """Remember it, besides what was. Raises DevloopError if it can't be written down."""
    before = agreed(file)
    now = Agreed(tuple(sorted({*before.owners, *owners})), before.reach if reach is None else reach)
    if now == before:
        return
    record = _record(file)
    data = {"file": os.fsencode(file).hex(), "path": str(file), "owners": now.owners, "reach": now.reach}
    draft = record.with_name(f"{record.name}.{os.getpid()}.new")
    try:
        record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as out:
                out.write(json.dumps(data, indent=1).encode("utf-8", "backslashreplace"))
            draft.replace(record)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DevloopError(
            f"what you agreed to can't be written down: {error.strerror}",
            where=str(record),
            hint="set XDG_STATE_HOME to a folder that you may write to",
        ) from None


def before_link(file: Path) -> Agreed:
    """What is remembered about a project file that has become a link to this one, or lies in a folder that has.

    A repository could otherwise begin anew by a link, and what it reaches would be agreed to unseen.
    """
    try:
        records = sorted(_record(file).parent.glob("*.json"))
    except OSError:
        return Agreed()
    for record in records:
        try:
            known = Path(os.fsdecode(bytes.fromhex(json.loads(record.read_bytes())["file"])))
            if known != file and Path(os.path.realpath(known)) == file:
                return agreed(known)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return Agreed()


def change(file: Path, reach: Mapping[str, str]) -> Change | None:
    """How what a project reaches differs from what was agreed to; None if it does not."""
    before = agreed(file).reach
    if before is None:
        before = before_link(file).reach
    if before is None:
        return Change(new=tuple(reach.values()), first=True) if reach else None
    if digest(before) == digest(reach):
        return None
    return Change(
        tuple(text for key, text in before.items() if reach.get(key) != text),
        tuple(text for key, text in reach.items() if before.get(key) != text),
    )


def _record(file: Path) -> Path:
    name = hashlib.sha256(os.fsencode(file)).hexdigest()[:32]
    return state_home(os.environ) / "devloop" / "trust" / f"{name}.json"

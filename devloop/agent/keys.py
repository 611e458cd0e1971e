"""Who may log in: the developers' public keys, in the mounted Secret or, of those who have just joined, in the API's.

An entry that nobody can read is passed over: it keeps nobody out but its owner.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import asyncssh

from .presence import SECRET, ClusterApi

log = logging.getLogger("agent")

# A Secret's entries that hold keys: one file for all, or one for each developer (no two write the same).
ALL_KEYS, ONE_KEY = "authorized_keys", ".pub"


def is_entry(name: str) -> bool:
    """An entry of the Secret, or a file of it, that holds keys."""
    return name == ALL_KEYS or name.endswith(ONE_KEY)


def read(texts: Iterable[str]) -> Iterator[bytes]:
    """The public keys in these, a line each, in SSH's wire format."""
    for text in texts:
        for line in text.splitlines():
            if line.strip() and not line.startswith("#"):
                try:
                    yield asyncssh.import_public_key(line).public_data
                except (asyncssh.KeyImportError, ValueError) as problem:
                    log.warning("an entry that is no public key is passed over: %s", problem)


def in_folder(folder: Path) -> set[bytes]:
    """Those that the mounted Secret has."""
    return set(read(_texts(folder)))


def _texts(folder: Path) -> Iterator[str]:
    for file in (folder / ALL_KEYS, *sorted(folder.glob(f"*{ONE_KEY}"))):
        try:
            yield file.read_text()
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as problem:
            log.warning("%s: %s", file.name, problem)


def in_secret(api: ClusterApi) -> set[bytes]:
    """Those that the Secret itself has by now. Blocking; OSError."""
    data: dict[str, str] = api.request("GET", "secrets", SECRET).get("data") or {}
    return set(read(_decoded(value) for name, value in data.items() if is_entry(name)))


def _decoded(value: str) -> str:
    try:
        return base64.b64decode(value).decode()
    except (binascii.Error, ValueError, TypeError):
        return "?"

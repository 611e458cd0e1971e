"""A project's lines in the hosts file, and the loopback addresses that they name: for the way `hosts`.

The lines stand between two markers that name the state folder of the engine they are from. No other line is ever
changed. An engine that was killed leaves its lines; whichever engine writes next sees by the lock of that state folder
that nobody holds it, and removes them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import ipaddress
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

HOSTS = Path("/etc/hosts")
_NETWORK = ipaddress.ip_network("127.64.0.0/10")
"""Where addresses are taken from: not 127.0.0.0/16, which has localhost, Debian's host name and systemd's resolver."""
_BEGIN = re.compile(r"^# devloop: (?P<project>.*) begin, by the engine of (?P<owner>.*)$")


def may_write() -> bool:
    """Whether this user may change the hosts file."""
    return os.geteuid() == 0


def address_of(key: str, taken: Iterable[str] = ()) -> str:
    """An address for a key, the same each time, unless another has it by chance."""
    others = set(taken)
    for number in range(1 << 16):
        digest = hashlib.sha256(f"{key}\n{number}".encode()).digest()
        offset = int.from_bytes(digest[:4], "big") % _NETWORK.num_addresses
        address = str(_NETWORK[offset])
        # Some programs take .0 and .255 for a network and a broadcast.
        if address not in others and 0 < offset % 256 < 255:
            return address
    raise AssertionError("four million addresses are used up")


# The text.


def _markers(project: str, owner: str) -> tuple[str, str]:
    name = " ".join(project.split())
    return f"# devloop: {name} begin, by the engine of {owner}", f"# devloop: {name} end, by the engine of {owner}"


def block(project: str, owner: str, entries: Mapping[str, Iterable[str]]) -> str:
    """The lines: address → names. `owner` is a state folder, which tells two projects of one name apart."""
    begin, end = _markers(project, owner)
    lines = [f"{address} {' '.join(names)}" for address, names in entries.items()]
    return "\n".join([begin, *lines, end, ""])


def added(text: str, lines: str) -> str:
    """The text with a block at its end. A last line without a newline gets none in the end either."""
    if text and not text.endswith("\n"):
        return f"{text}\n{lines.removesuffix(chr(10))}"
    return text + lines


def removed(text: str, owned: Callable[[str], bool]) -> tuple[str, list[str]]:
    """(the text without the blocks whose owner `owned` says yes to, the lines that those had)."""
    kept: list[str] = []
    gone: list[str] = []
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    index = 0
    while index < len(lines):
        match = _BEGIN.match(lines[index].rstrip("\n"))
        if match is not None and owned(match["owner"]):
            _, end = _markers(match["project"], match["owner"])
            close = next((i for i in range(index, len(lines)) if lines[i].rstrip("\n") == end), None)
            # A marker without its end is somebody's edit: only what is surely ours goes.
            if close is not None:
                gone += [line.rstrip("\n") for line in lines[index + 1 : close]]
                if not lines[close].endswith("\n") and kept:
                    kept[-1] = kept[-1].removesuffix("\n")  # the newline came with the block
                index = close + 1
                continue
        kept.append(lines[index])
        index += 1
    return "".join(kept), gone


def named(text: str) -> frozenset[str]:
    """Every name that a hosts file has an address for."""
    return frozenset(name.lower() for line in text.splitlines() for name in line.partition("#")[0].split()[1:])


# The file.


class HostsFile:
    """The lines of one engine."""

    def __init__(self, project: str, owner: Path, lives: Callable[[Path], bool], file: Path | None = None) -> None:
        """`owner` is the engine's state folder; `lives` says of another's whether an engine holds it."""
        self.file = HOSTS if file is None else file
        self._project = project
        self._owner = str(owner)
        self._lives = lives

    def write(self, entries: Mapping[str, Iterable[str]]) -> dict[str, frozenset[str]]:
        """Have these lines, address → names; without any, no markers either. Raises OSError.

        Names that others' lines have already are left out: whichever is first in the file would win. Returns
        the names that were left out, by address.
        """
        left_out: dict[str, frozenset[str]] = {}

        def change(text: str) -> str:
            text, stale = removed(text, self._is_ours)
            remove_aliases(set(_addresses(stale)) - entries.keys())
            others = named(text)
            mine = {}
            for address, names in entries.items():
                wanted = list(names)
                left_out[address] = frozenset(name for name in wanted if name.lower() in others)
                mine[address] = [name for name in wanted if name.lower() not in others]
            mine = {address: names for address, names in mine.items() if names}
            return added(text, block(self._project, self._owner, mine)) if mine else text

        _replace(self.file, change)
        return {address: names for address, names in left_out.items() if names}

    def remove(self) -> None:
        """Have no lines. Raises OSError."""
        self.write({})

    def _is_ours(self, owner: str) -> bool:
        return owner == self._owner or not self._lives(Path(owner))


def _addresses(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        address = line.split()[0] if line.split() else ""
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(address) in _NETWORK:
                yield address


def _replace(file: Path, change: Callable[[str], str]) -> None:
    """Change a file that others read at any time, and other engines change too."""
    file = file.resolve()  # a link stays one
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Of the folder, as the file is another one after each change, and a file for the lock would stay behind.
        fcntl.flock(folder, fcntl.LOCK_EX)
        # Whatever bytes are in there, they come out the same.
        before = file.read_bytes().decode("utf-8", "surrogateescape") if file.exists() else ""
        after = change(before)
        if after == before:
            return
        data = after.encode("utf-8", "surrogateescape")
        draft = file.with_name(f".{file.name}.devloop")
        try:
            draft.write_bytes(data)
            if file.exists():
                shutil.copystat(file, draft)
                status = file.stat()
                os.chown(draft, status.st_uid, status.st_gid)
            else:
                draft.chmod(0o644)
            draft.replace(file)
        except OSError as error:
            draft.unlink(missing_ok=True)
            # In a container it is a mount, which can't be replaced.
            if error.errno not in (errno.EBUSY, errno.EXDEV):
                raise
            file.write_bytes(data)
    finally:
        os.close(folder)


# The addresses. Linux has all of 127.0.0.0/8 on lo; macOS has 127.0.0.1 alone.


def add_alias(address: str) -> None:
    """Have a loopback address. Raises OSError."""
    if sys.platform == "darwin":
        _ifconfig("alias", address)


def remove_aliases(addresses: Iterable[str]) -> None:
    """Have them no more; those that are not there are passed over."""
    if sys.platform == "darwin":
        for address in addresses:
            with contextlib.suppress(OSError):
                _ifconfig("-alias", address)


def _ifconfig(what: str, address: str) -> None:
    """A few milliseconds; there is no call for it that Python knows of."""
    mask = ["netmask", "255.255.255.255"] if what == "alias" else []
    command = ["/sbin/ifconfig", "lo0", what, address, *mask]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise OSError(errno.EADDRNOTAVAIL, ran.stderr.strip() or "ifconfig failed", address)

"""File systems that don't report every change: what another machine, or the host of this one, writes is not seen.

inotify(7): "Inotify reports only events that a user-space program triggers through the filesystem API. As a
result, it does not catch remote events that occur on network filesystems."
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

SILENT = {
    "nfs": "NFS",
    "nfs4": "NFS",
    "cifs": "CIFS",
    "smb3": "SMB",
    "smbfs": "SMB",
    "9p": "9p",  # also WSL 2's /mnt/c, and QEMU's shares
    "drvfs": "WSL's drvfs",
    "virtiofs": "virtiofs",
    "vboxsf": "VirtualBox' shared folders",
    "vmhgfs": "VMware's shared folders",
    "prl_fs": "Parallels' shared folders",
    "fakeowner": "Docker Desktop's shared folders",
    "afs": "AFS",
    "ceph": "Ceph",
    "lustre": "Lustre",
    "gpfs": "GPFS",
    "coda": "Coda",
    "fuse": "FUSE",
}
"""Type in /proc/self/mountinfo → its name for messages. `fuse.sshfs` and its kind count as fuse."""
HERE_ALONE = frozenset({"fuse.gocryptfs", "fuse.encfs", "fuse.cryfs", "fuse.securefs", "fuse.portal", "fuse.lxcfs"})
"""FUSE of this machine's own files, which nobody else writes to."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    point: str
    type: str
    options: str = ""

    @property
    def silent(self) -> str:
        """What to call it, if it does not report every change; else empty."""
        if self.type == "overlay":
            return "an overlay whose lower layer can be written to" if _open_layers(self.options) else ""
        if self.type in HERE_ALONE:
            return ""
        kind, _, what = self.type.partition(".")
        name = SILENT.get(self.type) or SILENT.get(kind, "")
        return what if what and name else name


class Mounts:
    """The mounts of this process, as they were when it was made."""

    def __init__(self, mountinfo: str | None = None) -> None:
        """`mountinfo`: the text of that file, for tests."""
        if mountinfo is None:
            try:
                mountinfo = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
            except OSError:
                mountinfo = ""
        # A later mount hides an earlier one at the same place.
        self._mounts = {mount.point: mount for mount in map(_parse, mountinfo.splitlines()) if mount}
        self._silent = [mount for mount in self._mounts.values() if mount.silent]

    def of(self, path: str) -> Mount | None:
        """The mount that a path lies on."""
        while True:
            if path in self._mounts:
                return self._mounts[path]
            if path in ("/", ""):
                return None
            path = os.path.dirname(path)

    def silent(self, folder: str) -> dict[str, str]:
        """Folder → what it lies on, for this one and those below it that don't report every change."""
        if not self._silent:
            return {}
        found = {each.point: each.silent for each in self._silent if each.point.startswith(f"{folder.rstrip('/')}/")}
        mount = self.of(folder)
        if mount is not None and mount.silent:
            found[folder] = mount.silent
        return found


def _parse(line: str) -> Mount | None:
    """proc_pid_mountinfo(5): the type is the first field after the "-"."""
    before, _, after = line.partition(" - ")
    fields, rest = before.split(" "), after.split(" ")
    if len(fields) < 5 or not rest[0]:
        return None
    return Mount(_plain(fields[4]), rest[0], rest[2] if len(rest) > 2 else "")


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _open_layers(options: str) -> bool:
    """Whether somebody could write into a lower layer from here: a container does not see its image's layers."""
    for option in options.split(","):
        name, _, value = option.partition("=")
        if name in ("lowerdir", "lowerdir+"):
            return any(os.path.isdir(_plain(layer)) for layer in value.split(":") if layer.startswith("/"))
    return False

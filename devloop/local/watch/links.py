"""Symbolic links: where a path really leads, and by which links."""

from __future__ import annotations

import os

DEEPEST = 40
"""As many links as the kernel follows on one path (path_resolution(7))."""
NEVER = ("/proc", "/sys", "/dev", "/run", "/nix/store", "/gnu/store")
"""What links lead to now and then, and nobody edits."""
BUILT = ("/execroot/", "/_bazel_")
"""In the paths that Bazel's links in a project (bazel-out, bazel-bin) lead to."""


def trace(path: str) -> tuple[str, list[str]]:
    """The real path, and each link on the way, as a real folder and a name.

    What does not exist ends the way: the rest is taken as it is written. Links that lead in a circle end it too.
    """
    links: list[str] = []
    todo = path.split("/")[::-1]
    current = "/"
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            current = os.path.dirname(current)
            continue
        following = os.path.join(current, part)
        try:
            target = os.readlink(following)
        except OSError:
            current = following
            continue
        links.append(following)
        if len(links) > DEEPEST:
            return following, links
        if target.startswith("/"):
            current = "/"
        todo += target.split("/")[::-1]
    return current, links


def followed(folder: str, link: str) -> bool:
    """Whether a link to a folder, found in a watched one, is followed: not into a circle, and not to a system's own.

    A circle is a link to a folder that it lies in itself.
    """
    inside = f"{folder.rstrip('/')}/"
    if link.startswith(inside) or folder in ("/", os.environ.get("HOME")):
        return False
    return not inside.startswith(tuple(f"{each}/" for each in NEVER)) and not any(part in inside for part in BUILT)

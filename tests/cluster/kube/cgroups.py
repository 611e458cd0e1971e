"""The control group under which all of the node's containers lie; both versions, and mixtures of them."""

from __future__ import annotations

from pathlib import Path

from .waiting import until

TOP = Path("/sys/fs/cgroup")


def hierarchies() -> list[Path]:
    """The roots of all hierarchies: one in version 2, one for each controller (or pair) in version 1."""
    if (TOP / "cgroup.controllers").exists():
        return [TOP]
    return [each for each in TOP.iterdir() if (each / "cgroup.procs").exists() and not each.is_symlink()]


def create(name: str) -> None:
    """Make the group in every hierarchy, with all that its parent may hand down."""
    for root in hierarchies():
        group = root / name
        group.mkdir(exist_ok=True)
        if (root / "cgroup.controllers").exists():  # version 2 hands nothing down unasked
            for controller in (root / "cgroup.controllers").read_text().split():
                enable(root, controller)
        for setting in ("cpuset.cpus", "cpuset.mems"):  # version 1 starts these empty: nothing could run
            file = group / setting
            if file.exists() and not file.read_text().strip() and not (root / "cgroup.controllers").exists():
                file.write_text((root / setting).read_text())


def enable(group: Path, controller: str) -> None:
    """Hand a controller down, if this machine lets us."""
    control = group / "cgroup.subtree_control"
    if controller not in control.read_text().split():
        try:
            control.write_text(f"+{controller}")
        except OSError as refused:
            print(f"cgroup controller {controller} is not to be had: {refused.strerror}", flush=True)


def find(name: str) -> list[Path]:
    """Every group of that name and all below, the deepest first."""
    groups = [group for root in hierarchies() if (root / name).is_dir() for group in [root / name, *below(root / name)]]
    return sorted(groups, key=lambda each: -len(each.parts))


def below(group: Path) -> list[Path]:
    return [each for each in group.rglob("*") if each.is_dir()]


def remove(name: str) -> None:
    """Remove the group and all below it, once their last process has ended."""
    for group in find(name):
        until(lambda group=group: removed(group), 10, f"The control group {group} stays in use")  # type: ignore[misc]


def removed(group: Path) -> bool:
    """Try to remove one group; False while it is in use."""
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True

"""What a change of devloop.toml changed, so that just that is applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from devloop.config.model import Project, Service

_FIELDS = tuple(f.name for f in fields(Service))


@dataclass(frozen=True, slots=True)
class Difference:
    """Names of services: in the new project's order, `removed` in the old one's."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: Mapping[str, tuple[str, ...]]
    """Service → the fields of `model.Service` that differ, in the order in which that has them."""
    same: tuple[str, ...]


def diff(old: Project, new: Project) -> Difference:
    """The services that came, went, changed and stayed. A renamed one went and came."""
    changed = {
        name: names
        for name, service in new.services.items()
        if name in old.services and (names := changed_fields(old.services[name], service))
    }
    return Difference(
        added=tuple(name for name in new.services if name not in old.services),
        removed=tuple(name for name in old.services if name not in new.services),
        changed=changed,
        same=tuple(name for name in new.services if name in old.services and name not in changed),
    )


def changed_fields(old: Service, new: Service) -> tuple[str, ...]:
    """The fields that differ. The order of variables or ports in a table is no difference."""
    return tuple(name for name in _FIELDS if getattr(old, name) != getattr(new, name))

"""The bottom line: what the keys do here and now. A key that does not fit is left out, never cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from textual import events
from textual.binding import Binding
from textual.content import Content
from textual.reactive import reactive
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input

LAST = ("detach", "help", "quit")
"""Actions that always have their place, at the right."""


@dataclass(frozen=True, slots=True)
class Key:
    """One entry: what to press, what it does."""

    key: str
    display: str
    label: str
    action: str

    @property
    def width(self) -> int:
        """Cells, with the gap after it."""
        return len(self.display) + len(self.label) + 3


class KeyBar(Widget):
    """Shows the active bindings of its screen, those in `order` first."""

    ALLOW_SELECT = False

    order: reactive[tuple[str, ...]] = reactive(())
    """Names of actions, the most telling first."""
    labels: reactive[Mapping[str, str]] = reactive(dict[str, str]())
    """Action → what its key is called now, where its binding's own word is not the best."""
    notice: reactive[str] = reactive("")
    """What to say in place of the keys, while they have another meaning."""
    keys: reactive[tuple[Key, ...]] = reactive(())

    def on_mount(self) -> None:
        """Follow the screen's bindings."""
        self.screen.bindings_updated_signal.subscribe(self, self._bindings_changed)

    def watch_order(self) -> None:
        """Another context."""
        self._bindings_changed(self.screen)

    def watch_labels(self) -> None:
        """Another service."""
        self._bindings_changed(self.screen)

    def _bindings_changed(self, screen: Screen[object]) -> None:
        if self.is_attached and screen is self.screen:
            self.keys = self._collect()

    def _collect(self) -> tuple[Key, ...]:
        found: dict[str, Key] = {}
        typing = isinstance(self.screen.focused, Input)
        for active in self.screen.active_bindings.values():
            if typing and active.node in (self.app, self.screen):
                continue  # letters are text there
            binding = active.binding
            name = _name(binding)
            if binding.show and active.enabled and name not in found:
                display = self.app.get_key_display(binding)
                found[name] = Key(binding.key, display, self.labels.get(name) or binding.description, name)
        rank = {name: n for n, name in enumerate(self.order)}
        return tuple(sorted(found.values(), key=lambda key: rank.get(key.action, len(rank))))

    def placed(self) -> list[tuple[int, Key]]:
        """(column, key) of each that fits."""
        width = self.size.width
        last = sorted((k for k in self.keys if k.action in LAST), key=lambda k: LAST.index(k.action))
        while last and sum(key.width for key in last) > width:
            last.pop()
        right = width - sum(key.width for key in last)
        placed: list[tuple[int, Key]] = []
        column = 0
        for key in (k for k in self.keys if k.action not in LAST):
            if column + key.width > right:
                break
            placed.append((column, key))
            column += key.width
        for key in last:
            placed.append((right, key))
            right += key.width
        return placed

    def render(self) -> Content:
        """The line."""
        if self.notice:
            return Content.styled(f" {self.notice}", "bold $text-warning")
        parts: list[tuple[str, str]] = []
        column = 0
        for place, key in self.placed():
            parts += [
                (" " * (place - column), ""),
                (f" {key.display}", "bold $text-accent"),
                (f" {key.label} ", "$text-muted"),
            ]
            column = place + key.width
        return Content.assemble(*parts)

    async def on_click(self, event: events.Click) -> None:
        """A click presses the key."""
        if self.notice:
            return
        for place, key in self.placed():
            if place <= event.x < place + key.width:
                self.app.simulate_key(key.key)


def _name(binding: Binding) -> str:
    return binding.action.rpartition(".")[2].partition("(")[0]

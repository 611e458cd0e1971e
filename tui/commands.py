"""What the command palette offers: every key's action, by name, for every service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from textual.command import DiscoveryHit, Hit, Hits, Provider

from tui import attachments
from tui.screens.board import BoardScreen

VERBS = ("restart", "toggle", "stop", "start", "build")
"""Requests that take one service; named as the keys' actions are."""

ATTACH: tuple[tuple[str, str, tuple[str | None, str | None, bool]], ...] = (
    ("intercept {} mine", "the requests with my baggage are answered here", ("intercept", "personal", False)),
    ("intercept {} all", "every request is answered here", ("intercept", "all", False)),
    ("replace {}", "stop the workload; this one takes its place", ("replace", None, False)),
    ("wiretap {}", "a copy of its requests comes here", ("wiretap", None, False)),
    ("attach {}", "as devloop.toml says", (None, None, False)),
    ("take over {}", "put back what a dead devloop holds, and attach", (None, None, True)),
)
"""Ways to attach a service: name, meaning, and what is asked for: kind, routes, take over."""

Command = tuple[str, str, Callable[[], object]]
"""Name, what it does, and the doing."""


class DevloopCommands(Provider):
    """Commands for the services of the main screen, and for the screen itself."""

    async def discover(self) -> Hits:
        """What is offered before anything is typed: the chosen service's, then the general ones."""
        for name, meaning, run in self._commands(chosen_only=True):
            yield DiscoveryHit(name, run, help=meaning)

    async def search(self, query: str) -> Hits:
        """What matches."""
        matcher = self.matcher(query)
        for name, meaning, run in self._commands(chosen_only=False):
            score = matcher.match(name)
            if score > 0:
                yield Hit(score, matcher.highlight(name), run, help=meaning)

    def _commands(self, *, chosen_only: bool) -> Iterator[Command]:
        app = self.app
        board = next((s for s in app.screen_stack if isinstance(s, BoardScreen)), None)
        if board is not None:
            for name, status in board.session.board.services.items():
                if chosen_only and name != board.table.selected:
                    continue
                for verb in VERBS:
                    if board.applies(verb, status):
                        yield f"{verb} {name}", f"{verb} this service", partial(board.ask, verb, name)
                if board.applies("toggle", status):
                    for mode in status.modes:
                        if mode != status.mode:
                            run = partial(board.request, "toggle", service=name, mode=mode)
                            yield f"toggle {name} {mode}", f"it is {status.mode} now", run
                if board.applies("leave", status) or status.attachments:
                    yield f"leave {name}", "its traffic to the original pods", partial(board.ask, "leave", name)
                if status.earlier or any(each.earlier for each in status.attachments):
                    run = partial(board.request, "move", service=name)
                    yield f"move {name}", "end connections that still lead to where it was", run
                if attachments.attachable(status, board.session.board.remote):
                    for words, meaning, wanted in ATTACH:
                        run = partial(board.attach, name, *wanted)
                        yield words.format(name), meaning, run
                if board.applies("requests", status):
                    yield f"requests {name}", "those that went through", partial(board.show, "requests", name)
                yield f"logs {name}", "show its log", partial(board.show_logs, name)
                yield f"env {name}", "its environment and files", partial(board.show, "environment", name)
                yield f"loops {name}", "its loops, phase by phase", partial(board.show, "loops", name)
            yield "restart all", "restart all that run here", board.action_restart_all
            yield "logs of all services", "interleaved, or the chosen one's again", board.action_all_logs
            yield "reload configuration", "read devloop.toml again", partial(board.request, "reload_config")
            if board.session.board.remote is not None:
                yield "reconnect", "look whether the connection lives, and try again", board.action_reconnect
                yield "connection", "how the remote is reached", board.action_connection
            yield "notices", "what the engine has said", board.action_notices
        yield "theme", "choose how it looks", app.action_change_theme
        if not chosen_only:
            for theme in app.available_themes:
                yield f"theme {theme}", "look like this", partial(setattr, app, "theme", theme)
        yield "help", "all keys", partial(app.run_action, "help")
        yield "detach", "leave; the engine runs on", partial(app.run_action, "detach")
        yield "quit", "stop the services, or leave them running", partial(app.run_action, "quit")

"""Where a service stands: the workload it stands for, where localhost leads, what `t` does."""

from __future__ import annotations

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from devloop.protocol import RemoteStatus, ServiceStatus
from tui.formats import count
from tui.states import next_mode

DOT = Content.styled(" · ", "$text-muted")


class PlaceLines(Widget):
    """Draws what `show` is given: a line for each fact, or all in one line where there is but one."""

    ALLOW_SELECT = False

    lines: reactive[tuple[Content, ...]] = reactive(())

    def show(self, status: ServiceStatus, remote: RemoteStatus | None) -> None:
        """Show where a service stands."""
        self.lines = tuple(_here(status, remote) if status.mode == "local" else _away(status, remote))

    def render(self) -> Content:
        """The lines, cut rather than wrapped."""
        width = self.size.width - 1
        lines = [DOT.join(self.lines)] if self.size.height == 1 else list(self.lines)
        return Content("\n").join([Content.assemble(" ", line.truncate(width, ellipsis=True)) for line in lines])


def _here(status: ServiceStatus, remote: RemoteStatus | None) -> list[Content]:
    facts = []
    if status.workload:
        facts.append(Content.assemble(("as ", "$text-muted"), status.workload))
    elif remote is not None and remote.phase != "connecting":
        facts.append(Content.styled("stands for no workload", "$text-muted"))
    facts += [
        _published(name, port, status)
        for name, port in status.published.items()
        if port != status.ports.get(name, None if not name.isdigit() else int(name))
    ]
    if status.notes:
        number = count(len(status.notes), "difference")
        facts.append(Content.assemble((f"▲ {number}", "$text-warning"), (", see e", "$text-muted")))
    return facts


def _away(status: ServiceStatus, remote: RemoteStatus | None) -> list[Content]:
    lines: list[Content] = []
    if status.mode == "remote" and remote is not None:
        what = (status.workload or status.name, "bold")
        if remote.phase == "connected":
            lines.append(Content.assemble(what, f" in {remote.where} answers"))
        else:
            lines.append(Content.assemble(what, (f" in {remote.where} can't be reached now", "$text-warning")))
    if status.published:
        ports = [_published(name, port, status) for name, port in status.published.items()]
        lines.append(Content("  ").join(ports))
    lines.append(_keys(status, remote))
    return lines


def _published(name: str, port: int, status: ServiceStatus) -> Content:
    declared = status.ports.get(name)
    number = f" ({declared})" if status.mode == "local" and declared not in (None, port) and not name.isdigit() else ""
    return Content.assemble(
        (f"localhost:{port}", "$text-accent"), (" → ", "$text-muted"), f"{_port_name(name)}{number}"
    )


def _port_name(name: str) -> str:
    return f"port {name}" if name.isdigit() else name


def _keys(status: ServiceStatus, remote: RemoteStatus | None) -> Content:
    there = remote.where if remote is not None else "the cluster"
    meanings = {"local": "brings it here", "remote": f"leaves it to {there}", "off": "turns it off"}
    following = next_mode(status)
    if not following:
        return Content.styled("it has no other mode", "$text-muted")
    text = Content.assemble(("t", "bold $text-accent"), f" {meanings.get(following, f'makes it {following}')}")
    if following != "local" and "local" in status.modes:
        text += Content.styled(f"; : toggle {status.name} local", "$text-accent") + Content(" brings it here")
    return text

"""The keys of the main screen, by what they are about. The help screen is made from these."""

from __future__ import annotations

from textual.binding import Binding, BindingType

SERVICE_KEYS: list[BindingType] = [
    Binding("t", "toggle_mode", "toggle", tooltip="move it to its next mode"),
    Binding("r", "restart", "restart", tooltip="restart it"),
    Binding("s", "stop", "stop", tooltip="stop it"),
    Binding("s", "start", "start", tooltip="start it, and what it depends on"),
    Binding("b", "build", "build", tooltip="build it, and restart it if that succeeds"),
    Binding("p", "terminal", "type", tooltip="type into it; ctrl+p ctrl+q takes the keyboard back"),
    Binding("e", "environment", "env", tooltip="its environment and files, and their origin"),
    Binding("m", "loops", "loops", tooltip="its loops, phase by phase"),
    Binding("i", "attach", "attach", tooltip="take the cluster's traffic"),
    Binding("i", "leave", "leave", tooltip="give its traffic back"),
    Binding("x", "requests", "requests", tooltip="the requests that went through"),
    Binding("r", "start_engine", "start engine", tooltip="start the engine, after it has ended"),
    Binding("R", "restart_all", "restart all", show=False, tooltip="restart all that run here"),
]
LOG_KEYS: list[BindingType] = [
    Binding("enter,l", "focus_logs", "logs", tooltip="to the logs"),
    Binding("enter,z", "zoom", "zoom", tooltip="logs on the whole screen, and back"),
    Binding("escape,h", "back", "back", tooltip="a step back: search, filter, zoom, services"),
    Binding("q", "unzoom", "back", show=False, tooltip="from the whole screen back"),
    Binding("y", "copy", "copy", show=False, tooltip="copy what is selected, or the last line on screen, or the match"),
    Binding("a", "all_logs", "all logs", tooltip="logs of all services, or of the chosen one"),
    Binding("f", "follow", "follow", tooltip="scroll with new lines, or stay"),
    Binding("slash", "filter", "filter", key_display="/", tooltip="show only lines that match"),
    Binding("n", "next", "search", tooltip="next match; asks for what the first time"),
    Binding("N", "previous", "previous", show=False, tooltip="previous match"),
    Binding("ctrl+f", "search", "search", show=False, tooltip="search for something else"),
    Binding("w", "wrap", "wrap", tooltip="long lines on several rows, or cut"),
    Binding("W", "times", "times", show=False, tooltip="show the time of each line"),
    Binding("v", "level", "level", show=False, tooltip="only warnings and errors, only errors, or all lines"),
    Binding("J", "readable", "JSON", show=False, tooltip="JSON lines taken apart, or as they are"),
    Binding("tab", "switch", "switch", show=False, tooltip="between services and logs"),
]

REMOTE_KEYS: list[BindingType] = [
    Binding("c", "connection", "connection", tooltip="how the remote is reached"),
    Binding("C", "reconnect", "reconnect", tooltip="reconnect at once, if it has to be"),
]

TABLE_ORDER = (
    *("start_engine", "toggle_mode", "restart", "stop", "start", "attach", "leave", "build", "focus_logs", "filter"),
    *(
        "requests",
        "environment",
        "loops",
        "terminal",
        "all_logs",
        "follow",
        "next",
        "wrap",
        "command_palette",
        "notices",
        "connection",
        "detach",
    ),
)
"""Actions as the bottom line shows them while the table has the focus."""
HOLDING_ORDER = (
    *("toggle_mode", "restart", "stop", "start", "leave", "requests"),
    *(name for name in TABLE_ORDER if name not in ("toggle_mode", "restart", "stop", "start", "leave", "requests")),
)
"""The same on a service that holds traffic."""
LOG_ORDER = (
    *("back", "follow", "filter", "next", "zoom", "wrap", "all_logs"),
    *("restart", "toggle_mode", "stop", "start", "attach", "leave", "build"),
    *("requests", "environment", "loops", "terminal", "command_palette", "notices", "connection", "detach"),
)
"""And while the logs have it."""
ON_SERVICE = frozenset(
    {
        "terminal",
        "toggle_mode",
        "restart",
        "stop",
        "start",
        "build",
        "environment",
        "loops",
        "attach",
        "leave",
        "requests",
    }
)
"""Actions that need a chosen service."""

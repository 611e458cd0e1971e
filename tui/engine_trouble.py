"""What is wrong with the engine itself, in words: it is gone, does not answer, or can't be found. Knows no screen."""

from __future__ import annotations

from pathlib import Path

from tui.session import Session


def trouble(session: Session) -> tuple[str, str]:
    """Text and hint; empty while it answers and is where clients look for it."""
    pid = session.board.engine_pid
    name = f"The engine (pid {pid})" if pid else "The engine"
    if session.silent:
        asked = session.waiting
        waits = f"Until it does, these wait: {'; '.join(asked)}." if asked else ""
        why = f"It is stopped: `kill -CONT {pid}` lets it go on." if _stopped(pid) else "It is stopped, or stuck."
        return f"{name} does not answer ({session.silence:.0f} s). {why}", waits
    if session.hidden:
        return (
            f"{session.socket} is gone: commands and other screens can't find the engine (pid {pid}).",
            "q stops it from here; `devloop up` then starts anew.",
        )
    return "", ""


def _stopped(pid: int) -> bool:
    """Whether the process is stopped by a signal or a debugger, where /proc says so (proc_pid_stat(5))."""
    if not pid:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False

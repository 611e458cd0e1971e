"""Whether a service waits for a person, as far as its output tells: at a debugger's prompt, or for a debugger.

A program is taken to wait at a prompt when the last line that it prints is not finished and begins with one that is
known, and nothing has been typed since. That it shows the prompt is certain; whether all of it stands still is not
(`node inspect` has its prompt while the program runs). A prompt on a screen of its own (pudb) is not seen.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping

FOR_A_DEBUGGER = "waits for a debugger"
"""What is told of a program that was started so that it waits for one."""
SETTLE = 0.1
"""Seconds that a prompt must stand until it is told: a person takes longer."""
GONE = 0.3
"""Seconds after an answer in which the next prompt may come: a step leaves the debugger for a moment only."""
_LINE = 1024
"""Bytes kept of an unfinished line."""
_ENTERED = re.compile(rb"\r\n|[\r\n\x03\x04]")
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()].|[=>78cDEHMNOZ])")
_TO_THE_LEFT = re.compile(r"\x1b\[1?G")
_PROMPT = re.compile(
    r"""\s*(
      \(+ (?: Pdb(?:\+\+|r)? | bdb | byebug | rdbg?(?:@[^)\s]*)? | ruby(?:@[^)\s]*)? | dlv | gdb | lldb | phpdbg ) \)+
    | (?: ipdb | debug | phpdbg | lua_debug ) >
    | DB<+\d+>+                                     # perl -d
    | \[\d+\]\ [^\s(]*\([^)]*\)(?::\d+)?[>*]        # pry
    | irb\([^)]*\)(?::\d+)*[>*]
    | (?: iex | pry )\(\d+\)>                       # Elixir
    | Browse\[\d+\]>                                # R
    )(?:\s|\Z)""",
    re.VERBOSE,
)


class _Attaching:
    """Output of a runtime that waits for a debugger: what says so, and what says that one is there."""

    def __init__(self, asked: str, waits: bytes, goes_on: bytes) -> None:
        self.asked = re.compile(asked)
        """In the command line, or in a variable that the runtime takes options from."""
        self.waits = re.compile(waits)
        self.goes_on = re.compile(goes_on)


_ATTACHING = (
    # nodejs.org/api/debugger.html; --inspect alone does not wait.
    _Attaching(r"--inspect-(?:brk|wait)\b", rb"Debugger listening on ", rb"Debugger attached\."),
    # The JDWP agent's option suspend=y, which is its default.
    _Attaching(r"-(?:agentlib:|X?run)jdwp\b(?!\S*suspend=n)", rb"Listening for transport \w+ at address", rb"\n[^\n]"),
    _Attaching(r"\bdlv\b(?=.*--headless\b)(?!.*--continue\b)", rb"API server listening at: ", rb"\n[^\n]"),
)
_OPTIONS = ("NODE_OPTIONS", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS")


def prompt_of(line: str) -> str:
    """The known prompt that an unfinished line begins with; empty if there is none."""
    shown = _SEQUENCE.sub("", _TO_THE_LEFT.sub("\r", line)).rstrip("\r").rpartition("\r")[2]
    found = _PROMPT.match(shown)
    return found[1] if found else ""


class PromptWatch:
    """Watches one process. `shown` is told what it waits at, `gone` that it does not any more."""

    def __init__(
        self, command: str, env: Mapping[str, str], shown: Callable[[str], None], gone: Callable[[], None]
    ) -> None:
        asked = " ".join((command, *(env.get(name, "") for name in _OPTIONS)))
        self._attaching = next((each for each in _ATTACHING if each.asked.search(asked)), None)
        self._shown = shown
        self._gone = gone
        self._lines: dict[str, bytes] = {}
        self._told = ""
        self._seen = ""
        """The prompt that has come since something was entered."""
        self._ahead = 0
        """Lines that were entered before the prompts that they answer: a paste, or a quick hand."""
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def printed(self, stream: str, data: bytes) -> None:
        """It has printed this."""
        before = self._lines.get(stream, b"")
        line = (data if b"\n" in data else before + data).rpartition(b"\n")[2][-_LINE:]
        self._lines[stream] = line
        if self._attaching is not None:
            self._attach(before + data)
        if self._ahead:
            for each in (before + data).split(b"\n")[:-1]:
                self._ahead -= bool(self._ahead and prompt_of(each.decode(errors="replace")))
        if line and (prompt := prompt_of(line.decode(errors="replace"))):
            if self._ahead:  # it has its answer already, and may go on without a word
                self._ahead -= 1
                self._lines[stream] = b""
                return
            self._seen = prompt
            if self._told != prompt and self._timer is None:
                self._timer = self._loop.call_later(SETTLE, self._settled)

    def typed(self, data: bytes) -> None:
        """Somebody has typed this."""
        if entered := _ENTERED.findall(data):
            if self._seen or self._told:
                self._ahead += len(entered) - bool(self._seen)
            if b"\x03" in entered:  # drops what was typed before
                self._ahead = 0
            self._seen = ""
            self._lines = {}
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._told:
                self._timer = self._loop.call_later(GONE, self._settled)

    def close(self) -> None:
        """The process has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _settled(self) -> None:
        self._timer = None
        if self._seen == self._told:
            return
        self._told = self._seen
        if self._told:
            self._shown(self._told)
        else:
            self._ahead = 0
            self._gone()

    def _attach(self, data: bytes) -> None:
        assert self._attaching is not None
        waits = self._attaching.waits.search(data)
        if waits and self._told != FOR_A_DEBUGGER:
            self._seen = self._told = FOR_A_DEBUGGER
            self._shown(FOR_A_DEBUGGER)
        after = data[waits.end() :] if waits else data
        if self._told == FOR_A_DEBUGGER and self._attaching.goes_on.search(after if waits else b"\n" + after):
            self._seen = self._told = ""
            self._attaching = None
            self._gone()

"""Which output is a debugger's prompt, and how long it counts."""

from __future__ import annotations

import asyncio

import pytest

from devloop.local import prompts
from devloop.local.prompts import FOR_A_DEBUGGER, PromptWatch, prompt_of


@pytest.mark.parametrize(
    ("line", "prompt"),
    [
        ("(Pdb) ", "(Pdb)"),
        ("((Pdb)) n", "((Pdb))"),
        ("(Pdb++) ", "(Pdb++)"),
        ("ipdb> p x", "ipdb>"),
        ("debug> ", "debug>"),
        ("[1] pry(main)> ", "[1] pry(main)>"),
        ("[2] shop(#<Cart>)> ", "[2] shop(#<Cart>)>"),
        ("irb(main):001:0> ", "irb(main):001:0>"),
        ("irb(main):001> ", "irb(main):001>"),
        ("(byebug) ", "(byebug)"),
        ("(rdbg) ", "(rdbg)"),
        ("(ruby) ", "(ruby)"),
        ("(rdb) ", "(rdb)"),
        ("(dlv) ", "(dlv)"),
        ("(gdb) ", "(gdb)"),
        ("  DB<1> ", "DB<1>"),
        ("iex(1)> ", "iex(1)>"),
        ("\x1b[?2004h\x1b[1;35m(Pdb) \x1b[0m", "(Pdb)"),
        ("\x1b[1G\x1b[0Jdebug> \x1b[8G", "debug>"),
        ("old text\r(Pdb) ", "(Pdb)"),
    ],
)
def test_known_prompts(line: str, prompt: str) -> None:
    assert prompt_of(line) == prompt


@pytest.mark.parametrize(
    "line",
    [
        "",
        "> ",
        ">>> ",
        "listening on 8000",
        "the (Pdb) prompt",
        "debugging> ",
        "(Pdb)x",
        "[1] starting",
        "[1] listening (main)> x",
        "downloading 10%",
        "INFO (main) ",
    ],
)
def test_what_is_none(line: str) -> None:
    assert prompt_of(line) == ""


class Watched:
    """A watch with no wait, and what it has told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, command: str = "python app.py", **env: str) -> None:
        monkeypatch.setattr(prompts, "SETTLE", 0)
        monkeypatch.setattr(prompts, "GONE", 0)
        self.told: list[str] = []
        self.watch = PromptWatch(command, env, self.told.append, lambda: self.told.append(""))

    async def prints(self, *parts: str, stream: str = "out") -> list[str]:
        for part in parts:
            self.watch.printed(stream, part.encode())
        return await self.settled()

    async def types(self, text: str, then: str = "") -> list[str]:
        self.watch.typed(text.encode())
        if then:
            self.watch.printed("out", then.encode())
        return await self.settled()

    async def settled(self) -> list[str]:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return self.told


async def test_a_prompt_is_told_until_what_is_typed_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    assert await watched.prints("> app.py(3)f()\n-> x = 1\n", "(Pdb) ") == ["(Pdb)"]
    assert await watched.types("n") == ["(Pdb)"], "a key is no answer"
    assert await watched.types("\r", then="n\r\n-> y = 2\r\n(Pdb) ") == ["(Pdb)"], "a step comes back to it"
    assert await watched.types("c\r", then="c\r\nwent on\r\n") == ["(Pdb)", ""]
    assert await watched.prints("(Pdb) ") == ["(Pdb)", "", "(Pdb)"]


async def test_lines_entered_ahead_answer_the_prompts_that_come_after_them(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    assert await watched.prints("(Pdb) ") == ["(Pdb)"]
    watched.watch.typed(b"p 1+1\n")
    watched.watch.printed("out", b"2\n")
    watched.watch.typed(b"c\n")
    watched.watch.printed("out", b"(Pdb) ")
    assert await watched.prints("went on") == ["(Pdb)", ""], "a pipe echoes nothing, and the rest stands behind it"
    assert await watched.prints("\n(Pdb) ") == ["(Pdb)", "", "(Pdb)"]
    pasted = await watched.types("p 1\r\np 2\r\nc\r\n", then="1\n(Pdb) 2\n(Pdb) ")
    assert pasted == ["(Pdb)", "", "(Pdb)", ""]
    assert await watched.prints("\n(Pdb) ") == ["(Pdb)", "", "(Pdb)", "", "(Pdb)"]
    assert (await watched.types("p 1\np 2\n", then="1\n(Pdb) 2\n(Pdb) "))[4:] == ["(Pdb)"], "it stands at the third"


async def test_what_others_print_meanwhile_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    assert await watched.prints("(Pdb) ", "GET / 200\n") == ["(Pdb)"]
    assert await watched.prints("a worker's line\n", stream="err") == ["(Pdb)"]


async def test_a_finished_line_is_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    assert await watched.prints("(Pdb) is a debugger\n", "ready\n") == []


async def test_a_runtime_that_was_started_to_wait_for_a_debugger(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch, "node --inspect-brk app.js")
    listening = "Debugger listening on ws://127.0.0.1:9229/1\nFor help, see: https://nodejs.org/en/docs/inspector\n"
    assert await watched.prints(listening, stream="err") == [FOR_A_DEBUGGER]
    assert await watched.prints("Debugger attached.\n", stream="err") == [FOR_A_DEBUGGER, ""]
    watched = Watched(monkeypatch, "node app.js", NODE_OPTIONS="--inspect-brk")
    assert await watched.prints(listening) == [FOR_A_DEBUGGER]
    watched = Watched(monkeypatch, "node --inspect app.js")
    assert await watched.prints(listening) == [], "--inspect does not wait"
    jdwp = "Listening for transport dt_socket at address: 5005\n"
    options = "-agentlib:jdwp=transport=dt_socket,server=y,address=*:5005"
    watched = Watched(monkeypatch, f"java {options},suspend=y -jar app.jar")
    assert await watched.prints(jdwp) == [FOR_A_DEBUGGER]
    assert await watched.prints("Started in 2 s\n") == [FOR_A_DEBUGGER, ""]
    watched = Watched(monkeypatch, f"java {options},suspend=n -jar app.jar")
    assert await watched.prints(jdwp) == []

"""What a repository names runs at nobody's glance, and what it reaches changes behind nobody's back."""

from __future__ import annotations

import os
import pty
import select
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devloop import trust

pytestmark = pytest.mark.slow
DEADLINE = 60.0
UP = ["up", "--detach", "--wait", "0"]
SHOWING = (
    ["doctor"], ["list"], ["env", "api"], ["agent", "status"], ["agent", "install"], ["agent", "uninstall"],
    ["exec", "api", "--", "true"], ["leave", "--take-over"], ["logs", "--remote", "api"], ["check"], ["status"],
    ["names"], ["schema"], ["init", "--stdout"],
)  # fmt: skip
KUBECONFIG = """
current-context: c
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: "http://127.0.0.1:1"}}}}]
users:
- name: u
  user: {{exec: {{apiVersion: client.authentication.k8s.io/v1, command: {command}, args: [{args}]}}}}
"""


class Repository:
    """A folder that somebody has cloned. Its kubeconfig names a program that leaves a mark."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = folder / "pwned"
        self.plugin = folder / "plugin"
        self.plugin.write_text(f"#!/bin/sh\ntouch {shlex.quote(str(self.mark))}\nexit 1\n")
        self.plugin.chmod(0o755)
        self.environ = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
        self.environ.pop("CI", None)  # its terminals are not asked
        self.kubeconfig("one")
        self.config('kubeconfig = "kube.yaml"')

    def kubeconfig(self, args: str) -> None:
        (self.folder / "kube.yaml").write_text(KUBECONFIG.format(command=self.plugin, args=args))

    def config(self, remote: str) -> None:
        text = f"[project]\nnetwork = 'ports'\n[services.api]\ncommand = 'true'\ntask = true\n[remote]\n{remote}\n"
        (self.folder / "devloop.toml").write_text(text)

    def __call__(self, *args: str) -> tuple[int, str]:
        ran = subprocess.run(
            [sys.executable, "-m", "devloop.cli", *args],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            stdin=subprocess.DEVNULL,
        )
        assert "Traceback" not in ran.stderr, ran.stderr
        return ran.returncode, ran.stdout + ran.stderr

    def up(self, *options: str) -> str:
        """`devloop up`, and down again."""
        text = self(*UP, *options)[1]
        self("down")
        return text

    def up_on_a_terminal(self, answer: str) -> tuple[int, str]:
        """The same with somebody at the keyboard."""
        pid, master = pty.fork()
        if pid == 0:
            os.chdir(self.folder)
            os.execve(sys.executable, [sys.executable, "-m", "devloop.cli", *UP], self.environ)
        text, deadline = "", time.monotonic() + DEADLINE
        try:
            while True:
                ready, _, _ = select.select([master], [], [], max(0.0, deadline - time.monotonic()))
                assert ready, text
                text += os.read(master, 65536).decode(errors="replace")
                if answer and "[y/N]" in text:
                    os.write(master, f"{answer}\n".encode())
                    answer = ""
        except OSError:  # EIO: it has ended
            pass
        finally:
            os.close(master)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self("down")
        return code, text


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def test_what_only_shows_runs_nothing_that_the_repository_names(repository: Repository) -> None:
    for command in SHOWING:
        code, text = repository(*command)
        assert not repository.mark.exists(), command
        if command[0] in ("list", "env", "agent", "exec", "leave", "logs"):
            assert code == 2 and f"exec plugin {repository.plugin} one" in text and "`devloop trust`" in text, text
    assert "not looked at" in repository("doctor")[1]
    # Somebody has looked through it.
    assert f"exec plugin {repository.plugin} one" in repository("trust")[1]
    repository("list")
    assert repository.mark.exists()


def test_what_has_changed_since_is_not_run_either(repository: Repository) -> None:
    repository("trust")
    repository.kubeconfig("two")  # git pull
    code, text = repository("list")
    assert code == 2 and "two" in text and not repository.mark.exists()
    # What is named on the command line is named by who typed it.
    assert repository("list", "--kubeconfig", "kube.yaml")[0] == 3
    assert repository.mark.exists()


def test_the_first_up_asks_nothing_and_a_change_is_asked_about_once(repository: Repository) -> None:
    assert "has changed" not in repository.up()
    repository.kubeconfig("two")  # git pull
    for command in (["up", "--headless"], UP):
        code, text = repository(*command)
        assert code == 2 and "has changed" in text and "devloop up --trust" in text and "[y/N]" not in text, text
        assert f"- exec plugin {repository.plugin} one" in text and f"+ exec plugin {repository.plugin} two" in text
    repository.mark.unlink(missing_ok=True)
    code, text = repository.up_on_a_terminal("n")
    assert code == 1 and "nothing was started" in text and not repository.mark.exists(), text
    assert "has changed" in repository.up_on_a_terminal("y")[1]
    assert "has changed" not in repository.up_on_a_terminal("")[1]


def test_trust_is_a_yes_for_where_nobody_can_be_asked(repository: Repository) -> None:
    repository("trust")
    repository.kubeconfig("two")
    assert "has changed" not in repository.up("--trust")
    assert "has changed" not in repository.up()


def test_a_remote_that_comes_later_is_a_change_too(repository: Repository) -> None:
    (repository.folder / "devloop.toml").write_text("[services.api]\ncommand = 'true'\ntask = true\n")
    assert repository("up", "--headless")[0] == 0
    repository.config('host = "evil.example"')
    code, text = repository("up", "--headless")
    assert code == 2 and "+ host evil.example, by SSH" in text


def test_a_terminal_of_ci_is_not_asked(repository: Repository) -> None:
    repository("trust")
    repository.kubeconfig("two")
    repository.environ["CI"] = "true"  # docker run -t, and some runners
    code, text = repository.up_on_a_terminal("")
    assert code == 2 and "devloop up --trust" in text and "[y/N]" not in text


def test_a_project_file_that_becomes_a_link_is_no_other_project(repository: Repository) -> None:
    repository("trust")
    repository.kubeconfig("two")
    file = repository.folder / "devloop.toml"
    file.rename(repository.folder / "fresh.toml")
    file.symlink_to("fresh.toml")  # git pull
    code, text = repository("up", "--headless")
    assert code == 2 and f"+ exec plugin {repository.plugin} two" in text


def test_a_folder_that_becomes_a_link_is_no_other_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    trust.agree(tmp_path / "unreadable.toml", reach={})
    trust.agree(tmp_path / "app/devloop.toml", reach={"host": "a"})
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh/devloop.toml").touch()
    assert trust.change(tmp_path / "fresh/devloop.toml", {"host": "b"}) == trust.Change(new=("b",), first=True)
    (tmp_path / "app").symlink_to("fresh")
    assert trust.change(tmp_path / "fresh/devloop.toml", {"host": "b"}) == trust.Change(("a",), ("b",))


def test_who_has_no_home_has_agreed_to_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> object:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)  # a container that runs as any uid
    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert trust.agreed(tmp_path / "devloop.toml") == trust.Agreed()


def test_what_is_written_down_is_private_and_of_this_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    trust.agree(one, reach={"host": "a"})
    (record,) = (tmp_path / "state/devloop/trust").iterdir()
    assert record.stat().st_mode & 0o777 == 0o600 and record.parent.stat().st_mode & 0o777 == 0o700
    assert trust.agreed(one).reach == {"host": "a"} and trust.agreed(other).reach is None
    assert trust.change(one, {"host": "a"}) is None
    assert trust.change(one, {"host": "b"}) == trust.Change(("a",), ("b",))
    for broken in ("", "{", "[]", '{"file": 3}', '{"file": "", "owners": 1, "reach": 2}'):
        record.write_text(broken)
        assert trust.agreed(one) == trust.Agreed()


def test_another_context_of_the_user_s_own_kubeconfig_is_asked_about(repository: Repository) -> None:
    repository.environ["KUBECONFIG"] = str(repository.folder / "kube.yaml")
    text = (repository.folder / "kube.yaml").read_text()
    more = text.replace("contexts: [", "contexts: [{name: production, context: {cluster: c, user: u}}, ")
    (repository.folder / "kube.yaml").write_text(more)
    repository.config('context = "c"')
    assert "nobody has agreed" not in repository("list")[1]  # the user's own file, and its plugin
    assert "has changed" not in repository.up()
    repository.config('context = "production"')
    told = repository.up()
    assert "- context c" in told and "+ context production" in told
    assert "has changed" not in repository.up("--trust")


@pytest.mark.parametrize("remote", [True, False])
def test_exec_runs_no_program_of_the_repository_s_in_place_of_the_one_that_is_asked_for(
    repository: Repository, remote: bool
) -> None:
    (repository.folder / "bin").mkdir()
    repository.plugin.rename(repository.folder / "bin" / "ls")
    text = "[services.api]\ncommand = 'true'\ntask = true\nenv = { PATH = 'bin:/usr/bin:/bin' }\n"
    text += "[remote]\nkubeconfig = 'none.yaml'\n" if remote else ""
    (repository.folder / "devloop.toml").write_text(text)
    code, told = repository("exec", "api", "--", "ls")
    assert code != 0 and "PATH" in told and "devloop trust" in told and not repository.mark.exists()
    repository("trust")
    if not remote:
        repository("exec", "api", "--", "ls")
        assert repository.mark.exists()

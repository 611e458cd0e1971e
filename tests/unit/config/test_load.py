"""What a good file means."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from devloop.config.find import find
from devloop.config.load import load
from devloop.config.model import (
    MS,
    SECOND,
    Command,
    Condition,
    ExecCheck,
    GrpcCheck,
    HttpCheck,
    LogCheck,
    Mode,
    Probe,
    Reload,
    ReloadKind,
    Restart,
    RestartPolicy,
    StopPolicy,
    TcpCheck,
    Tls,
)
from devloop.config.problems import ConfigProblems
from devloop.errors import ConfigError

from .folder import Folder


def test_a_service_with_a_command_alone_has_the_documented_defaults(folder: Folder) -> None:
    service = folder.service()
    root = folder.root
    assert service.command == Command(("true",), "true")
    assert (service.cwd, service.watch, service.ignore, service.gitignore) == (root, (root,), (), True)
    assert (service.env, service.env_files, service.file_env, service.ports) == ({}, (), {}, {})
    assert (service.build, service.ready, service.live, service.depends_on) == (None, None, None, {})
    assert service.reload == Reload(ReloadKind.RESTART)
    assert service.restart == RestartPolicy(Restart.ON_FAILURE, 100 * MS, 10 * SECOND, 5, 10 * SECOND)
    assert service.stop == StopPolicy(signal.SIGTERM, 5 * SECOND)
    assert (service.task, service.mode, service.groups, service.debounce) == (False, Mode.LOCAL, (), 4 * MS)


def test_every_key_at_once(folder: Folder) -> None:
    (folder.root / "api/src").mkdir(parents=True)
    folder.write({".env.api": "FROM_FILE=1\n"})
    project = folder.load(
        """
        [project]
        name = "shop"
        [services.store]
        command = ["redis-server", "--port 1"]
        [services.migrate]
        command = "./migrate"
        task = true
        [services.api]
        command = "python api.py"
        cwd = "api"
        env = { STORE_URL = "redis://localhost:6380", N = 3, F = 1.5, DEBUG = true, D = 1979-05-27 }
        env_file = [".env.api", ".env.local?"]
        watch = ["src", "../shared"]
        ignore = ["data/", "*.tmp"]
        gitignore = false
        build = "make && make check"
        reload = "signal:HUP"
        ports = { http = 8081, admin = 8082 }
        ready.http = "/healthz"
        ready.port = "admin"
        ready.period = "50ms"
        ready.timeout = "2s"
        ready.grace = "1m30s"
        ready.failures = 9
        live = { exec = ["curl", "-f", "x y"] }
        depends_on = { store = "started", migrate = "completed" }
        restart = { policy = "always", delay = "1s", max_delay = "20s", limit = 2, window = "1m" }
        stop = { signal = "INT", timeout = "1.5s" }
        groups = ["backend", "all"]
        debounce = "7ms"
        """
    )
    root, api = folder.root, project.services["api"]
    assert project.name == "shop"
    assert project.root == root
    assert project.files == (root / "devloop.toml", root / ".env.api")
    assert project.missing == (root / ".env", root / ".env.local")
    assert project.groups == {"backend": ("api",), "all": ("api",)}
    assert list(project.services) == ["store", "migrate", "api"]
    assert api.cwd == root / "api"
    assert api.env == {
        "STORE_URL": "redis://localhost:6380",
        "N": "3",
        "F": "1.5",
        "DEBUG": "true",
        "D": "1979-05-27",
    }
    assert api.env_files == (root / ".env.api",)
    assert api.file_env == {root / ".env.api": {"FROM_FILE": "1"}}
    assert api.watch == (root / "api/src", root / "shared")
    assert (api.ignore, api.gitignore) == (("data/", "*.tmp"), False)
    assert api.build == Command(("/bin/sh", "-c", "make && exec make check"), "make && make check")
    assert api.reload == Reload(ReloadKind.SIGNAL, signal=signal.SIGHUP)
    assert list(api.ports.items()) == [("http", 8081), ("admin", 8082)]
    assert api.ready == Probe(HttpCheck("localhost", 8082, "/healthz"), 50 * MS, 2 * SECOND, 90 * SECOND, failures=9)
    assert api.live == Probe(ExecCheck(Command(("curl", "-f", "x y"), "curl -f 'x y'")), 2 * SECOND, SECOND, 0, 3)
    assert api.depends_on == {"store": Condition.STARTED, "migrate": Condition.COMPLETED}
    assert api.restart == RestartPolicy(Restart.ALWAYS, SECOND, 20 * SECOND, 2, 60 * SECOND)
    assert api.stop == StopPolicy(signal.SIGINT, 1500 * MS)
    assert (api.groups, api.debounce) == (("backend", "all"), 7 * MS)
    assert project.services["store"].command.argv == ("redis-server", "--port 1")


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ("8081", {"8081": 8081}),
        ("[8081, 9000]", {"8081": 8081, "9000": 9000}),
        ("{ http = 8081 }", {"http": 8081}),
        ('"8081"', {"8081": 8081}),
    ],
)
def test_forms_of_ports(folder: Folder, ports: str, expected: dict[str, int]) -> None:
    assert folder.service(f"ports = {ports}").ports == expected


@pytest.mark.parametrize(
    ("ready", "check"),
    [
        ('http = "/h"', HttpCheck("localhost", 8081, "/h")),
        ('http = "/h?deep=1"', HttpCheck("localhost", 8081, "/h?deep=1")),
        ('http = "/h", port = "admin"', HttpCheck("localhost", 8082, "/h")),
        ('http = "/h", port = 9999', HttpCheck("localhost", 9999, "/h")),
        ('http = ":9999/h"', HttpCheck("localhost", 9999, "/h")),
        ('http = ":9999"', HttpCheck("localhost", 9999, "/")),
        ('http = "http://example.test:81/h?x=1"', HttpCheck("example.test", 81, "/h?x=1")),
        ('http = "http://[::1]:81"', HttpCheck("::1", 81, "/")),
        ('http = "http://example.test/h"', HttpCheck("example.test", 80, "/h")),
        ('http = "https://example.test/h"', HttpCheck("example.test", 443, "/h", Tls())),
        ('http = "HTTPS://localhost:8443"', HttpCheck("localhost", 8443, "/", Tls())),
        ('http = "/h", tls = true', HttpCheck("localhost", 8081, "/h", Tls())),
        ('grpc = "admin"', GrpcCheck("localhost", 8082)),
        ('grpc = "admin/shop.Cart"', GrpcCheck("localhost", 8082, "shop.Cart")),
        ('grpc = "/shop.Cart"', GrpcCheck("localhost", 8081, "shop.Cart")),
        ("grpc = 9999", GrpcCheck("localhost", 9999)),
        ('grpc = ":9999/shop.Cart", tls = true', GrpcCheck("localhost", 9999, "shop.Cart", Tls())),
        ('grpc = "[::1]:9999/shop.Cart"', GrpcCheck("::1", 9999, "shop.Cart")),
        ('tcp = "admin"', TcpCheck("localhost", 8082)),
        ("tcp = 9999", TcpCheck("localhost", 9999)),
        ('tcp = "9999"', TcpCheck("localhost", 9999)),
        ('tcp = "db:5432"', TcpCheck("db", 5432)),
        ('tcp = "[::1]:5432"', TcpCheck("::1", 5432)),
        ('exec = "pg_isready -q"', ExecCheck(Command(("pg_isready", "-q"), "pg_isready -q"))),
        ('log = "listening on \\\\d+"', LogCheck(r"listening on \d+")),
    ],
)
def test_forms_of_checks(folder: Folder, ready: str, check: object) -> None:
    service = folder.service(f"ports = {{ http = 8081, admin = 8082 }}\nready = {{ {ready} }}")
    assert service.ready == Probe(check, 250 * MS, SECOND, 30 * SECOND, 3)  # type: ignore[arg-type]


def test_a_service_with_ports_is_ready_when_the_first_accepts(folder: Folder) -> None:
    ready = folder.service("ports = { b = 9000, a = 8000 }").ready
    assert ready == Probe(TcpCheck("localhost", 9000), 250 * MS, SECOND, 30 * SECOND, 3)
    assert folder.service("ports = 9000\nready = false").ready is None
    assert folder.service("ports = 9000\ntask = true").ready is None


def test_live_has_timings_of_its_own_and_can_be_switched_off(folder: Folder) -> None:
    live = folder.service("live = { tcp = 80 }").live
    assert live == Probe(TcpCheck("localhost", 80), 2 * SECOND, SECOND, 0, 3)
    assert folder.service("live = false").live is None


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ('"a"', {"a": Condition.READY}),
        ('["a", "b"]', {"a": Condition.READY, "b": Condition.READY}),
        ('{ b = "started", a = "ready" }', {"b": Condition.STARTED, "a": Condition.READY}),
    ],
)
def test_forms_of_depends_on(folder: Folder, form: str, expected: dict[str, Condition]) -> None:
    others = "".join(f'[services.{n}]\ncommand = "true"\n' for n in "ab")
    service = folder.service(f"depends_on = {form}", before=others)
    assert list(service.depends_on.items()) == list(expected.items())


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ('"restart"', Reload(ReloadKind.RESTART)),
        ('"manual"', Reload(ReloadKind.MANUAL)),
        ('"signal:SIGUSR1"', Reload(ReloadKind.SIGNAL, signal=signal.SIGUSR1)),
        (
            '"exec: make -s reload"',
            Reload(ReloadKind.EXEC, command=Command(("make", "-s", "reload"), "make -s reload")),
        ),
        ('"exec:a | b"', Reload(ReloadKind.EXEC, command=Command(("/bin/sh", "-c", "a | b"), "a | b"))),
    ],
)
def test_forms_of_reload(folder: Folder, form: str, expected: Reload) -> None:
    assert folder.service(f"reload = {form}").reload == expected


def test_shorthands_of_restart_stop_and_lists(folder: Folder) -> None:
    service = folder.service('restart = "never"\nstop = "SIGINT"\nwatch = "src"\nignore = "*.o"\ngroups = "g"')
    assert service.restart == RestartPolicy(Restart.NEVER)
    assert service.stop == StopPolicy(signal.SIGINT, 5 * SECOND)
    assert (service.watch, service.ignore, service.groups) == ((folder.root / "src",), ("*.o",), ("g",))


def test_a_task_watches_nothing_and_is_not_restarted_unless_it_says_so(folder: Folder) -> None:
    defaults = '[defaults]\nrestart = { policy = "always", delay = "3s" }'
    task = folder.service("task = true", before=defaults)
    assert (task.watch, task.restart.policy, task.restart.delay) == ((), Restart.NEVER, 3 * SECOND)
    task = folder.service('task = true\nwatch = "."\nrestart = "on-failure"', before=defaults)
    assert (task.watch, task.restart.policy) == ((folder.root,), Restart.ON_FAILURE)


def test_nothing_is_watched_if_the_list_is_empty(folder: Folder) -> None:
    assert folder.service("watch = []").watch == ()


def test_a_delay_above_the_built_in_longest_raises_that(folder: Folder) -> None:
    assert folder.service('restart = { delay = "30s" }').restart.max_delay == 30 * SECOND


def test_defaults_hold_for_services_that_say_nothing(folder: Folder) -> None:
    folder.write({"shared.env": "S=1\n"})
    service = folder.service(
        before="""
        [defaults]
        env = { A = "d", B = "d" }
        env_file = "shared.env"
        ignore = ["*.d"]
        gitignore = false
        reload = "manual"
        ready = { period = "10ms", grace = "0s" }
        live = { period = "20ms", failures = 7 }
        restart = { policy = "always", limit = 9 }
        stop = "INT"
        mode = "off"
        groups = ["g"]
        debounce = "9ms"
        """,
        keys='live = { tcp = 1 }\nports = 8080\nenv = { B = "own", C = "own" }',
    )
    assert list(service.env.items()) == [("A", "d"), ("B", "own"), ("C", "own")]
    assert service.env_files == (folder.root / "shared.env",)
    assert (service.ignore, service.gitignore) == (("*.d",), False)
    assert service.reload.kind is ReloadKind.MANUAL
    assert service.ready == Probe(TcpCheck("localhost", 8080), 10 * MS, SECOND, 0, 3)
    assert service.live == Probe(TcpCheck("localhost", 1), 20 * MS, SECOND, 0, 7)
    assert (service.restart.policy, service.restart.limit) == (Restart.ALWAYS, 9)
    assert service.stop.signal == signal.SIGINT
    assert (service.mode, service.groups, service.debounce) == (Mode.OFF, ("g",), 9 * MS)


def test_a_service_replaces_lists_and_merges_tables_of_the_defaults(folder: Folder) -> None:
    service = folder.service(
        before="""
        [defaults]
        ignore = ["*.d"]
        gitignore = false
        groups = ["g"]
        restart = { policy = "always", limit = 9 }
        stop = { signal = "INT", timeout = "1s" }
        ready = { period = "10ms", timeout = "20ms" }
        """,
        keys="""
        ignore = []
        gitignore = true
        groups = []
        restart = "never"
        stop = { timeout = "2s" }
        ready = { tcp = 1, timeout = "30ms" }
        """,
    )
    assert (service.ignore, service.gitignore, service.groups) == ((), True, ())
    assert (service.restart.policy, service.restart.limit) == (Restart.NEVER, 9)
    assert service.stop == StopPolicy(signal.SIGINT, 2 * SECOND)
    assert service.ready is not None
    assert (service.ready.period, service.ready.timeout) == (10 * MS, 30 * MS)


def test_paths(folder: Folder) -> None:
    (folder.root / "home/src").mkdir(parents=True)
    (folder.root / "a/b").mkdir(parents=True)
    assert folder.service('cwd = "~/src"').cwd == folder.root / "home/src"
    assert folder.service('cwd = "a/../a/b"').cwd == folder.root / "a/b"
    absolute = folder.service(f'cwd = "{folder.root}/a"\nwatch = ["b", "/etc"]')
    assert (absolute.cwd, absolute.watch) == (folder.root / "a", (folder.root / "a/b", Path("/etc")))


def test_the_name_of_the_project_is_the_folders(folder: Folder) -> None:
    assert folder.load('[services.x]\ncommand = "true"').name == folder.root.name


def test_an_env_file_refers_to_the_environment_and_to_itself(folder: Folder) -> None:
    folder.environ["WHO"] = "me"
    folder.write({"e": "A=${WHO}\nB=\"${A}!\"\n# no\nexport C='x'\nEMPTY=\nNOTHING\n"})
    file = folder.root / "e"
    assert folder.service('env_file = "e"').file_env == {file: {"A": "me", "B": "me!", "C": "x", "EMPTY": ""}}


def test_an_env_file_refers_to_the_projects_dotenv_below_the_environment(folder: Folder) -> None:
    folder.environ["WHO"] = "me"
    folder.write({".env": "WHO=you\nWHERE=there\n", "e": "A=$WHO ${WHERE}\nWHERE\n"})
    assert folder.service('env_file = "e"').file_env == {folder.root / "e": {"A": "me there", "WHERE": "there"}}


def test_groups_list_their_services_in_the_order_of_the_file(folder: Folder) -> None:
    text = "".join(
        f'[services.{n}]\ncommand = "true"\ngroups = {g}\n' for n, g in [("b", '["x"]'), ("a", '["y", "x"]')]
    )
    assert folder.load(text).groups == {"x": ("b", "a"), "y": ("a",)}


@pytest.mark.parametrize(
    ("line", "direct"),
    [
        ("", True),
        ('direct = "auto"', True),
        ('direct = "off"', False),
        ('direct = "node.example:30223"', ("node.example", 30223)),
        ('direct = "[fd00::7]:2223"', ("fd00::7", 2223)),
    ],
)
def test_forms_of_direct(folder: Folder, line: str, direct: object) -> None:
    remote = folder.load(f'[services.web]\ncommand = "true"\n[remote]\n{line}\n').remote
    assert remote is not None and remote.direct == direct


def test_find_looks_upwards(folder: Folder) -> None:
    folder.write({"devloop.toml": "", "a/b/c.txt": ""})
    assert find(folder.root / "a/b") == folder.root / "devloop.toml"
    assert find(folder.root) == folder.root / "devloop.toml"


def test_find_says_how_to_begin(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no devloop\.toml") as caught:
        find(tmp_path)
    assert "devloop init" in (caught.value.hint or "")


def test_a_file_that_is_not_there_is_said_without_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist") as caught:
        load(tmp_path / "devloop.toml", {})
    assert caught.value.exit_code == 2
    (tmp_path / "devloop.toml").mkdir()
    with pytest.raises(ConfigError, match="can't be read"):
        load(tmp_path / "devloop.toml", {})


def test_a_file_with_windows_line_ends_and_a_byte_order_mark(folder: Folder) -> None:
    (folder.root / "devloop.toml").write_bytes(b'\xef\xbb\xbf[services.x]\r\ncommand = "true"\r\n')
    assert load(folder.root / "devloop.toml", {}).services["x"].command.text == "true"


def test_a_file_that_may_not_be_read_is_told_with_what_to_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")  # as an ordinary user gets it; root may read everything

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match="can't be read: Permission denied") as told:
        load(tmp_path / "devloop.toml", {})
    assert "ls -l" in (told.value.hint or "")


@pytest.mark.parametrize(
    ("files", "environ", "name"),
    [
        ({}, {}, None),
        ({"user": "ada"}, {}, "ada"),
        ({"user": "${GIT_NAME:-nobody}"}, {"GIT_NAME": "Ada Lovelace"}, "Ada Lovelace"),
        ({"user": "ada", ".env": "DEVLOOP_USER=ben"}, {}, "ben"),
        ({"user": "ada", ".env": "DEVLOOP_USER=ben"}, {"DEVLOOP_USER": "eve"}, "eve"),
    ],
)
def test_a_developer_has_a_name_of_their_own(
    folder: Folder, files: dict[str, str], environ: dict[str, str], name: str | None
) -> None:
    """In dev containers everybody is `vscode`."""
    folder.environ |= environ
    if ".env" in files:
        folder.write({".env": files[".env"]})
    table = f'[user]\nname = "{files["user"]}"\n' if "user" in files else ""
    assert folder.load(f'{table}[services.web]\ncommand = "true"\n').user == name


REMOTE = '[remote]\ncontext = "dev"\n[services.web]\ncommand = "true"\n'


@pytest.fixture
def own(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The developer's own file, of all projects."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder.root / "config"))
    file = folder.root / "config/devloop/config.toml"
    file.parent.mkdir(parents=True)
    return file


def test_a_file_of_ones_own_has_the_name_for_all_projects_that_say_nothing(
    folder: Folder, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert folder.load(REMOTE).user is None
    own.write_text('[user]\nname = "ada"\n')
    assert folder.load(REMOTE).user == "ada"
    assert folder.load(f'[user]\nname = "ben"\n{REMOTE}').user == "ben", "the nearer one goes first"
    folder.environ["DEVLOOP_USER"] = "eve"
    assert folder.load(REMOTE).user == "eve"
    del folder.environ["DEVLOOP_USER"]
    # Without a cluster nobody asks for it.
    monkeypatch.setattr("devloop.user.own_file", lambda: pytest.fail("it was looked for"))
    assert folder.load('[services.web]\ncommand = "true"\n').user is None


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[user]\nname = ""\n', 2, "user.name"),
        ("[user]\nname = 3\n", 2, "user.name"),
        ("[user\n", 1, ""),
        ('[user]\nnick = "ada"\n', 2, "nick"),
        ('[remote]\ncontext = "dev"\n', 1, "[remote] is a project's"),
        ('[users]\nname = "ada"\n', 1, "users"),
    ],
)
def test_a_mistake_in_it_is_told_with_its_place(folder: Folder, own: Path, text: str, line: int, words: str) -> None:
    own.write_text(text)
    with pytest.raises(ConfigProblems) as caught:
        folder.load(REMOTE)
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == (own, line) and words in problem.message, problem


def test_one_that_can_not_be_read_is_told(folder: Folder, own: Path) -> None:
    own.mkdir()
    with pytest.raises(ConfigProblems, match="can't be read: Is a directory"):
        folder.load(REMOTE)

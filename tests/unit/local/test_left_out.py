"""A workload's variables run no code here unless the project asks for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from devloop.config.load import load
from devloop.local import environment
from devloop.local.left_out import REASONS, notes, taken
from devloop.protocol import Variable

# Of the issue, and one for each way that was found besides.
HOSTILE = (
    "LD_PRELOAD", "LD_AUDIT", "DYLD_INSERT_LIBRARIES", "BASH_ENV", "ENV", "NODE_OPTIONS", "PYTHONPATH",
    "PYTHONHOME", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "CLASSPATH", "RUBYOPT", "RUBYLIB",
    "GEM_HOME", "BUNDLE_GEMFILE", "PERL5LIB", "PERL5OPT", "DOTNET_STARTUP_HOOKS", "GOFLAGS", "BASH_FUNC_ls%%",
    "PYTHONBREAKPOINT", "GIT_SSH_COMMAND", "RUSTC_WRAPPER", "npm_config_script_shell", "LUA_INIT",
    "PHP_INI_SCAN_DIR", "ERL_FLAGS", "OPENSSL_CONF", "PROMPT_COMMAND", "MAKEFLAGS", "XDG_CONFIG_HOME",
    "DEVLOOP_STATE_DIR", "Npm_Config_Script_Shell", "KUBECONFIG", "AWS_CONFIG_FILE", "DOCKER_CONFIG",
    "GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES",
)  # fmt: skip
WANTED = (
    "DATABASE_URL", "NODE_ENV", "PYTHONUNBUFFERED", "RAILS_ENV", "GIT_COMMIT", "JAVA_VERSION", "CARGO_PORT",
    "UV_SERVICE_HOST", "AWS_REGION", "GOOGLE_APPLICATION_CREDENTIALS", "DOCKER_HOST",
)  # fmt: skip


def _project(tmp_path: Path, more: str = "") -> Path:
    (tmp_path / "devloop.toml").write_text(f"{more}\n[services.api]\ncommand = 'true'\n")
    return tmp_path / "devloop.toml"


def _variables(*names: str) -> list[Variable]:
    return [Variable(name, f"/evil/{name}", "configmap x") for name in names]


def test_what_runs_code_is_left_out_and_each_is_told(tmp_path: Path) -> None:
    service = load(_project(tmp_path), {}).services["api"]
    found = environment.resolve(service, {}, {}, _variables(*HOSTILE, *WANTED))
    assert {each.name for each in found} == set(WANTED)
    told = notes(_variables(*HOSTILE, *WANTED, "PATH", "HOME"), ())
    assert [each.split()[1].rstrip(":") for each in told] == list(HOSTILE)
    assert all("env_from_workload" in each and "/evil" not in each for each in told)


def test_the_project_may_ask_for_some_by_service_or_for_all(tmp_path: Path) -> None:
    for more in ('[defaults]\nenv_from_workload = ["BUNDLE_*", "NODE_OPTIONS"]', ""):
        file = _project(tmp_path, more)
        if not more:
            file.write_text(file.read_text() + 'env_from_workload = ["BUNDLE_*", "NODE_OPTIONS"]\n')
        service = load(file, {}).services["api"]
        found = environment.resolve(service, {}, {}, _variables(*HOSTILE))
        assert {each.name for each in found} == {"BUNDLE_GEMFILE", "NODE_OPTIONS", "PYTHONUNBUFFERED"}
        assert len(notes(_variables(*HOSTILE), service.env_from_workload)) == len(HOSTILE) - 2


def test_the_developer_s_own_stay_and_are_not_replaced(tmp_path: Path) -> None:
    service = load(_project(tmp_path, "[defaults.env]\nRUBYOPT = '-w'"), {}).services["api"]
    host = {"NODE_OPTIONS": "--inspect", "LD_LIBRARY_PATH": "/mine"}
    found = {v.name: v.value for v in environment.resolve(service, host, {}, _variables(*HOSTILE))}
    assert found == {"NODE_OPTIONS": "--inspect", "LD_LIBRARY_PATH": "/mine", "RUBYOPT": "-w", "PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize("value", ["/tmp/x", "~/x", "$(touch x)", "`touch x`", "dir/x"])
def test_env_is_a_file_for_a_shell_and_a_name_for_programs(value: str) -> None:
    assert not taken(Variable("ENV", value, "deployment"), ())
    assert taken(Variable("ENV", "production", "deployment"), ())


def test_the_attack_itself(tmp_path: Path) -> None:
    """Python runs what a workload's variables name, without devloop's list, and does not with it."""
    (tmp_path / "sitecustomize.py").write_text("print('pwned')")
    service = load(_project(tmp_path), {}).services["api"]
    hostile = [Variable("PYTHONPATH", str(tmp_path), "configmap x")]

    def run(env: dict[str, str]) -> str:
        path = {"PATH": os.environ["PATH"]}
        ran = subprocess.run([sys.executable, "-c", ""], env=env | path, capture_output=True, text=True, check=True)
        return ran.stdout

    assert "pwned" in run({each.name: each.value for each in hostile})
    assert run({v.name: v.value for v in environment.resolve(service, {}, {}, hostile)}) == ""


def test_the_page_has_the_whole_list_with_its_reasons() -> None:
    page = (Path(__file__).parents[3] / "docs" / "environment-and-volumes.md").read_text()
    for why, names in REASONS.items():
        assert f"| {', '.join(f'`{name}`' for name in names)} | {why} |" in page

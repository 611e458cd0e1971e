"""Variables of a workload that a local process does not get unless the project asks for them.

Whoever may edit a workload, a ConfigMap or an image could otherwise run code on the machine of everybody who works on
the service: these make a program, or the tool that starts it, load or run something that they name. In the container
they mean the container's files; here they would mean this machine's, or what comes from the cluster at that path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from devloop.protocol import Variable

REASONS: Mapping[str, tuple[str, ...]] = {
    "the dynamic loader and libc load libraries that it names": (
        "LD_*", "DYLD_*", "GCONV_PATH", "GLIBC_TUNABLES", "OPENSSL_CONF", "OPENSSL_ENGINES", "OPENSSL_MODULES",
    ),
    "a shell runs it, or a file that it names": (
        "BASH_ENV", "ENV", "BASH_FUNC_*", "BASHOPTS", "SHELLOPTS", "PROMPT_COMMAND", "PS4", "ZDOTDIR", "FPATH",
    ),
    "Node and its package managers load modules or run scripts that it names": (
        "NODE_OPTIONS", "NODE_PATH", "NODE_REPL_EXTERNAL_MODULE", "npm_config_*", "NPM_CONFIG_*", "YARN_RC_FILENAME",
        "ELECTRON_RUN_AS_NODE",
    ),
    "Python imports from where it says": (
        "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONBREAKPOINT", "PYTHONWARNINGS",
        "PYTHONUSERBASE", "PYTHONEXECUTABLE", "PYTHONPLATLIBDIR", "PYTHONPYCACHEPREFIX", "PIP_*", "UV_*", "POETRY_*",
    ),
    "Java, or what starts it, takes options from it, and -javaagent is one": (
        "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "IBM_JAVA_OPTIONS", "OPENJ9_JAVA_OPTIONS",
        "JAVA_OPTS", "CATALINA_OPTS", "MAVEN_OPTS", "MAVEN_ARGS", "GRADLE_OPTS", "SBT_OPTS", "CLASSPATH",
    ),
    "Ruby requires what it names, or looks for gems there": (
        "RUBYOPT", "RUBYLIB", "RUBYSHELL", "GEM_HOME", "GEM_PATH", "BUNDLE_*",
    ),
    "Perl loads modules that it names, or from where it says": ("PERL5*", "PERLLIB"),
    "PHP reads settings, such as auto_prepend_file, from there": ("PHPRC", "PHP_INI_SCAN_DIR"),
    ".NET loads assemblies or profilers that it names": (
        "DOTNET_STARTUP_HOOKS", "DOTNET_ADDITIONAL_DEPS", "DOTNET_SHARED_STORE", "CORECLR_*", "COR_*", "COMPlus_*",
        "ASPNETCORE_HOSTINGSTARTUPASSEMBLIES", "MONO_PATH",
    ),
    "Go's tools run programs that it names, or take code from where it says": (
        "GOFLAGS", "GOENV", "GOTOOLCHAIN", "GOPROXY", "GONOSUMDB", "GOSUMDB", "CGO_*",
    ),
    "a compiler or build tool is run because of it, or takes options from it": (
        "CC", "CXX", "RUSTC", "RUSTC_*", "RUSTFLAGS", "CARGO_*", "MAKEFLAGS", "GNUMAKEFLAGS", "MAKEFILES",
    ),
    "its language's runtime loads code that it names, or from where it says": (
        "LUA_PATH*", "LUA_CPATH*", "LUA_INIT*", "ERL_*", "ELIXIR_ERL_OPTIONS", "R_PROFILE*", "R_ENVIRON*", "R_LIBS*",
        "JULIA_LOAD_PATH", "JULIA_DEPOT_PATH", "TCLLIBPATH",
    ),
    "programs run what it names": (
        "EDITOR", "VISUAL", "PAGER", "MANPAGER", "BROWSER", "LESSOPEN", "LESSCLOSE", "SSH_ASKPASS", "SUDO_ASKPASS",
        "GIT_SSH", "GIT_SSH_COMMAND", "GIT_CONFIG*", "GIT_EXEC_PATH", "GIT_EXTERNAL_DIFF", "GIT_EDITOR",
        "GIT_SEQUENCE_EDITOR", "GIT_PAGER", "GIT_ASKPASS", "GIT_TEMPLATE_DIR", "GIT_PROXY_COMMAND",
    ),
    "programs read their configuration from there": ("XDG_*",),
    "clients run a credential helper that the file there names": ("KUBECONFIG", "AWS_CONFIG_FILE", "DOCKER_CONFIG"),
    "Google's clients may run a program for credentials because of it": (
        "GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "CLOUDSDK_PYTHON*",
    ),
    "it is a setting of devloop's own": ("DEVLOOP_*",),
}  # fmt: skip
"""Why → the names, as fnmatch takes them."""

HERE = frozenset(
    {
        "PATH", "HOME", "USER", "LOGNAME", "SHELL", "PWD", "OLDPWD", "SHLVL", "TERM", "TMPDIR", "_", "VIRTUAL_ENV",
        "JAVA_HOME", "GOROOT", "GOPATH", "SSL_CERT_FILE", "SSL_CERT_DIR",
    }
)  # fmt: skip
"""These say where things are on a machine, or who works on it: nearly each container has some, and they would break
programs here."""
_PATH_SIGNS = "/$`~"
"""`ENV=production` is no file's name for a shell to run."""


_LINK = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_[A-Z]+(_(PROTO|PORT|ADDR))?)?)")
"""A Service may be called `cargo`, and Kubernetes makes CARGO_PORT of it."""


def reason(name: str, value: str) -> str:
    """Why a local process does not get this variable of its workload; empty if it does, or if it is one of HERE."""
    if name == "ENV" and not any(sign in value for sign in _PATH_SIGNS):
        return ""
    if _LINK.fullmatch(name):
        return ""
    if name.lower().startswith("npm_config_"):
        name = name.lower()  # as npm takes them
    for why, patterns in REASONS.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return why
    return ""


def taken(each: Variable, asked: Sequence[str]) -> bool:
    """Whether a local process gets a variable of its workload; `asked` is the project's `env_from_workload`."""
    if any(fnmatchcase(each.name, pattern) for pattern in asked):
        return True
    return each.name not in HERE and not reason(each.name, each.value)


def notes(variables: Iterable[Variable], asked: Sequence[str]) -> tuple[str, ...]:
    """What is left out for a reason, a sentence each."""
    return tuple(
        f"variable {each.name}: left out: {reason(each.name, each.value)}; env_from_workload takes it over"
        for each in variables
        if not taken(each, asked) and each.name not in HERE
    )

"""The cluster's programs, compiled from Go modules and cached by a hash of what they are compiled from."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from . import settings
from .errors import ClusterError
from .settings import CHECKOUT, SOURCES

STAMP = "k8s.io/component-base/version"
MAJOR, MINOR, _ = settings.KUBERNETES.lstrip("v").split(".")
# module folder -> what to build in it and the linker's flags. Small ones first: they fail early.
MODULES = {
    "tools": (["./pause", "./link"], ""),
    "market": (["."], ""),
    "coredns": (["."], ""),
    "policies": (["."], ""),
    "kubernetes": (
        ["."],
        f"-X {STAMP}.gitVersion={settings.KUBERNETES} -X {STAMP}.gitMajor={MAJOR} "
        f"-X {STAMP}.gitMinor={MINOR} -X {STAMP}.gitTreeState=clean",
    ),
}
ELSEWHERE = {"market": CHECKOUT / "tests" / "cluster" / "apps" / "market"}
"""Modules whose sources lie with what they are for."""
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl")


def go_version() -> str:
    """The version of the Go on this machine, such as go1.26.8."""
    if shutil.which("go") is None:
        raise ClusterError(
            "No go on this machine's PATH",
            "The cluster's programs are compiled here. Install the Go that tests/cluster/kube/*/go.mod name.",
        )
    asked = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=False)
    return asked.stdout.strip()


def sources(name: str) -> Path:
    """Where a module lies."""
    return ELSEWHERE.get(name, SOURCES / name)


def module_key(name: str) -> str:
    """Changes when the module's sources, its sums, the compiler or the flags do."""
    targets, flags = MODULES[name]
    return settings.digest(sources(name), go_version(), " ".join(targets), flags)


def folder(keys: dict[str, str]) -> Path:
    """Where the programs of these module keys lie together."""
    return settings.cache() / "bin" / settings.digest(*keys.values())


def is_built() -> bool:
    """Everything is compiled already."""
    if shutil.which("go") is None:
        return False
    return (folder({name: module_key(name) for name in MODULES}) / "kubectl").exists()


def build() -> Path:
    """Compile what is not in the cache; returns the folder with a link to each program."""
    keys = {name: module_key(name) for name in MODULES}
    chosen = folder(keys)
    if (chosen / "kubectl").exists():
        return chosen
    for name, key in keys.items():
        compile_module(name, settings.cache() / "go" / f"{name}-{key}")
    making = chosen.with_suffix(f".{os.getpid()}")
    making.mkdir(parents=True)
    for name, key in keys.items():
        for program in (settings.cache() / "go" / f"{name}-{key}").iterdir():
            (making / program.name).symlink_to(program)
    for program_name in PROGRAMS:
        (making / program_name).symlink_to("kubernetes")
    making.rename(chosen)
    return chosen


def compile_module(name: str, out: Path) -> None:
    """Compile one module into the folder `out`, which appears whole or not at all."""
    if out.exists():
        return
    targets, flags = MODULES[name]
    making = out.with_suffix(f".{os.getpid()}")
    making.mkdir(parents=True)
    started = time.monotonic()
    print(f"compiling {name} …", flush=True)
    # -mod=readonly: go.sum says what is compiled, and nothing here may change it.
    command = ["go", "build", "-mod=readonly", "-trimpath", "-ldflags", f"-s -w {flags}".strip()]
    command += ["-o", f"{making}/", *targets]
    env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOWORK": "off"}
    done = subprocess.run(
        command,
        cwd=sources(name),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        shutil.rmtree(making, ignore_errors=True)
        raise ClusterError(
            f"go build in {sources(name).relative_to(CHECKOUT)}: {done.stdout.strip()[-3000:]}",
            "A first build needs the Go module proxy; later ones come from the cache.",
        )
    making.rename(out)
    print(f"compiled {name} in {time.monotonic() - started:.0f} s", flush=True)

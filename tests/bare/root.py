"""The bare machine's files: Debian as debootstrap makes it, cached by a hash of what it is made from."""

from __future__ import annotations

import configparser
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from devloop.net.hosts import removed
from tests.cluster.kube import settings
from tests.cluster.kube.debian import write_root
from tests.cluster.kube.layers import Layer

PACKAGES = ("python3", "python3-venv", "make", "git", "ca-certificates")
"""What README asks for, and nothing else."""
TRIM = 'rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/* "$1"/dev/* "$1"/tmp/*\n'
APT = ("sources.list", "sources.list.d", "apt.conf.d", "preferences.d", "trusted.gpg.d", "keyrings")
PIP = ("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "NO_INDEX", "TRUSTED_HOST", "PROXY", "TIMEOUT", "DEFAULT_TIMEOUT")
PIP_FILES = ("CERT", "CLIENT_CERT")
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
"""Where Debian has the certificates of all authorities that this machine trusts."""


def cache() -> Path:
    """What is built is kept here, outside the checkout; deleting it costs some minutes and nothing else."""
    return settings.folder("XDG_CACHE_HOME", ".cache") / "devloop" / "bare"


def release() -> str:
    """This machine's release of Debian, by its code name."""
    found = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return found.get("VERSION_CODENAME", "").strip('"') or "bookworm"


def mirror(suite: str) -> str:
    """Where this machine's apt has that release from; empty if it has it from nowhere: debootstrap knows a place."""
    folder = Path("/etc/apt")
    for file in [folder / "sources.list", *sorted(folder.glob("sources.list.d/*"))]:
        if not file.is_file():
            continue
        text = file.read_text(errors="replace")
        for line in text.splitlines():
            words = [each for each in line.split("#")[0].split() if not each.startswith("[")]
            if len(words) > 3 and words[0] == "deb" and words[2] == suite and "main" in words[3:]:
                return words[1]
        for part in text.split("\n\n"):
            said = dict(line.split(":", 1) for line in part.splitlines() if ":" in line and line[0] not in "# ")
            if suite in said.get("Suites", "").split() and "main" in said.get("Components", "").split():
                return said.get("URIs", "").split()[0]
    return ""


def layer(suite: str) -> Layer:
    """The files of that release, from the cache if they are there."""
    key = settings.digest(suite, " ".join(PACKAGES), TRIM, platform.machine())

    def fill(out: Path) -> None:
        print(f"bare: making Debian {suite} with debootstrap …", flush=True)
        write_root(out, suite, PACKAGES, TRIM, mirror(suite))

    return Layer.make(cache() / "roots" / f"{suite}-{key}.tar", fill)


def package_configuration(root: Path) -> dict[str, str]:
    """Let apt and pip in there find what they find here. Returns the variables that are part of it."""
    if (resolv := Path("/etc/resolv.conf")).exists():
        shutil.copyfile(resolv, root / "etc/resolv.conf")
    # Without what an engine here, or a test that was killed, has added: a stranger's machine has no such names.
    hosts, _ = removed(Path("/etc/hosts").read_text() if Path("/etc/hosts").exists() else "", lambda _: True)
    (root / "etc/hosts").write_text(hosts)
    for name in APT:
        source, target = Path("/etc/apt", name), root / "etc/apt" / name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.exists():
            shutil.copyfile(source, target)
    take(root, BUNDLE)
    environment = {name: os.environ[name] for each in PROXIES for name in (each, each.upper()) if name in os.environ}
    environment |= {f"PIP_{name}": os.environ[f"PIP_{name}"] for name in PIP if f"PIP_{name}" in os.environ}
    for name in (*CERTIFICATES, *(f"PIP_{each}" for each in PIP_FILES)):
        if os.environ.get(name):
            environment[name] = os.environ[name]
            take(root, Path(os.environ[name]))
    for place in os.environ.get("PIP_FIND_LINKS", "").split():
        take(root, Path(place))
    pip_configuration(root)
    return environment


def pip_configuration(root: Path) -> None:
    """Join pip's files of this machine and of this user to the one of the machine."""
    joined = configparser.RawConfigParser()
    joined.read(pip_files())
    for section in joined.sections():
        for option in ("cert", "client-cert", "find-links"):
            for place in joined.get(section, option, fallback="").split():
                take(root, Path(place))
    with (root / "etc/pip.conf").open("w") as file:
        joined.write(file)


def pip_files() -> Iterator[str]:
    """In the order in which pip reads them: later ones win."""
    yield "/etc/pip.conf"
    yield str(Path.home() / ".pip/pip.conf")
    yield str(settings.folder("XDG_CONFIG_HOME", ".config") / "pip/pip.conf")
    if named := os.environ.get("PIP_CONFIG_FILE"):
        yield named


def take(root: Path, source: Path) -> None:
    """A file or folder of this machine at the same place in there, for all to read."""
    if not source.is_absolute() or not source.exists():
        return
    target = root / source.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)
        target.chmod(0o644)

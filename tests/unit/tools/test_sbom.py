"""A list of what an image holds: valid, and complete as far as its package managers know."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tools.sbom import sbom

ROOT = Path(__file__).parents[3]
STATUS = """Package: nftables
Status: install ok installed
Architecture: amd64
Version: 1.0.6-2+deb12u2
Description: Program to control packet filtering rules
 Package: not-one

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""
BASE = {
    "./etc/os-release": 'ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n',
    "./var/lib/dpkg/status": STATUS,
    "./etc/passwd": "root:x:0:0",
}
WHEELS = {
    "opt/devloop/site/asyncssh-2.24.1.dist-info/METADATA": "Name: asyncssh\nVersion: 2.24.1\n\nText: 1",
    "opt/devloop/site/typing_extensions-4.16.0.dist-info/METADATA": "Name: typing_extensions\nVersion: 4.16.0\n",
}
CODE = {"opt/devloop/code/devloop/__init__.py": '"""devloop"""\n\n__version__ = "0.1.0"\n'}


def tar(files: dict[str, str]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            made.addfile(entry, io.BytesIO(text.encode()))
    out.seek(0)
    return out


def listed(document: str) -> dict[str, Any]:
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(document)
    assert problem is None, problem
    return {each.get("purl", each["bom-ref"]): each for each in json.loads(document)["components"]}


def test_debians_packages_pythons_and_our_own() -> None:
    found = listed(sbom([tar(BASE), tar(WHEELS), tar(CODE)], "registry.example/agent:1"))
    assert set(found) == {
        "os",
        "devloop",
        "pkg:deb/debian/nftables@1.0.6-2%2Bdeb12u2?arch=amd64&distro=bookworm",
        "pkg:pypi/asyncssh@2.24.1",
        "pkg:pypi/typing-extensions@4.16.0",
    }
    assert found["devloop"]["version"] == "0.1.0"


def test_an_upper_layer_stands_for_a_lower_one() -> None:
    newer = {"var/lib/dpkg/status": STATUS.replace("1.0.6-2+deb12u2", "1.1.3-1")}
    found = listed(sbom([tar(BASE), tar(newer)], "agent"))
    assert [each["version"] for each in found.values() if each["name"] == "nftables"] == ["1.1.3-1"]


def test_a_list_of_nothing_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tells what is installed"):
        sbom([tar(CODE)], "agent")


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    def run(*args: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([sys.executable, "-m", "tools.sbom", *args], cwd=ROOT, input=given, capture_output=True)

    whole = run("--name", "agent:1", "-", given=tar(BASE | WHEELS | CODE).getvalue())
    assert whole.returncode == 0 and len(listed(whole.stdout.decode())) == 5
    assert json.loads(whole.stdout)["metadata"]["component"]["name"] == "agent:1"
    for args, given in ((["-"], b"no tar"), (["-"], b""), ([str(tmp_path / "none")], b"")):
        failed = run(*args, given=given)
        assert failed.returncode == 1 and failed.stderr.startswith(b"sbom: ") and not failed.stdout

"""The bill of materials of an image: CycloneDX 1.6, as JSON, from the image's files.

    docker export CONTAINER | python -m tools.sbom --name NAME - > devloop-agent.cdx.json
    python -m tools.sbom LAYER.tar LAYER.tar > devloop-agent.cdx.json

Each argument is an uncompressed tar, the lower layers first; `-` is the standard input. What is read is what the
image's package managers have noted: dpkg's status, the metadata of Python's packages, and devloop's own version. A
program that was copied into an image without either is not seen: the agent's image has none.
"""

from __future__ import annotations

import argparse
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from email.parser import HeaderParser
from pathlib import Path
from typing import IO

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

STATUS = re.compile(r"var/lib/dpkg/status(\.d/[^/]+)?")
RELEASE = re.compile(r"(usr/lib|etc)/os-release")
METADATA = re.compile(r".*\.dist-info/METADATA|.*\.egg-info(/PKG-INFO)?")
OWN = "opt/devloop/code/devloop/__init__.py"
NOTED = re.compile("|".join(f"(?:{each})" for each in (STATUS.pattern, RELEASE.pattern, METADATA.pattern, OWN)))
BYTES = 64 << 20
"""No such file is longer."""


def noted(tars: Sequence[IO[bytes]]) -> dict[str, str]:
    """The files that tell what is installed, by their paths; an upper layer's stand for a lower one's."""
    found: dict[str, str] = {}
    for each in tars:
        with tarfile.open(fileobj=each, mode="r|") as tar:
            for entry in tar:
                name = entry.name.removeprefix("./").lstrip("/")
                if entry.isfile() and entry.size < BYTES and NOTED.fullmatch(name):
                    file = tar.extractfile(entry)
                    assert file is not None
                    found[name] = file.read().decode(errors="replace")
    return found


def components(files: dict[str, str]) -> Iterator[Component]:
    """What is installed: Debian's packages, Python's, devloop."""
    release: dict[str, str] = {}
    for name in ("etc/os-release", "usr/lib/os-release"):
        rows = (row.partition("=") for row in files.get(name, "").splitlines())
        release |= {key: value.strip('"') for key, _, value in rows}
    distribution, codename = release.get("ID", "debian"), release.get("VERSION_CODENAME", "")
    if release:
        number = release.get("VERSION_ID")
        yield Component(name=distribution, version=number, type=ComponentType.OPERATING_SYSTEM, bom_ref="os")
    for name, text in files.items():
        if STATUS.fullmatch(name):
            for paragraph in text.split("\n\n"):
                fields = HeaderParser().parsestr(paragraph)
                if fields["Package"] and (fields["Status"] or "ok installed").endswith("ok installed"):
                    qualifiers = {"arch": fields["Architecture"] or "", "distro": codename}
                    yield _component("deb", fields["Package"], fields["Version"], distribution, qualifiers)
        elif METADATA.fullmatch(name):
            fields = HeaderParser().parsestr(text)
            if fields["Name"] and fields["Version"]:
                yield _component("pypi", fields["Name"].lower().replace("_", "-"), fields["Version"])
    if own := re.search(r'__version__ = "([^"]+)"', files.get(OWN, "")):
        yield Component(name="devloop", version=own[1], type=ComponentType.APPLICATION, bom_ref="devloop")


def _component(
    kind: str, name: str, version: str, namespace: str = "", qualifiers: dict[str, str] | None = None
) -> Component:
    purl = PackageURL(kind, namespace, name, version, {k: v for k, v in (qualifiers or {}).items() if v})
    return Component(name=name, version=version, purl=purl, bom_ref=purl.to_string())


def sbom(tars: Sequence[IO[bytes]], name: str) -> str:
    """The document. ValueError where nothing tells what is installed: a list of nothing would be no list."""
    found = {str(each.bom_ref): each for each in components(noted(tars))}
    if not any(each.purl is not None for each in found.values()):
        raise ValueError("no file of it tells what is installed: neither dpkg's status nor metadata of Python packages")
    bom = Bom(components=found.values())
    bom.metadata.component = image = Component(name=name, type=ComponentType.CONTAINER, bom_ref="image")
    bom.register_dependency(image, found.values())
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)


def main() -> int:
    """The exit code; 1 with the reason if there is no list to give."""
    parser = argparse.ArgumentParser(description="The bill of materials of an image (CycloneDX, JSON).")
    parser.add_argument("tar", nargs="+", help="the image's layers or all of its files; - is the standard input")
    parser.add_argument("--name", default="devloop-agent", help="the image's name in the document")
    args = parser.parse_args()
    try:
        with ExitStack() as stack:
            files = (each for each in args.tar if each != "-")
            opened = {each: stack.enter_context(Path(each).open("rb")) for each in files}
            tars = [opened.get(each, sys.stdin.buffer) for each in args.tar]
            print(sbom(tars, args.name))
    except (OSError, tarfile.TarError, ValueError) as problem:
        print(f"sbom: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

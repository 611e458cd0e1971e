"""Image layers and image archives, made with nothing but tar: no Docker, no registry."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .settings import files

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def architecture() -> str:
    """This machine's, in the words of the image specification."""
    machine = os.uname().machine
    return ARCHITECTURES.get(machine, machine)


@dataclass(frozen=True, slots=True)
class Layer:
    """An uncompressed tar and its SHA-256, which the image specification calls the layer's diff id."""

    path: Path
    digest: str

    @classmethod
    def make(cls, path: Path, fill: Callable[[Path], None]) -> Layer:
        """The layer at `path`; `fill(FILE)` writes it if it is missing. It appears whole or not at all."""
        noted = path.with_suffix(".sha256")
        if not noted.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            making = path.with_suffix(f".{os.getpid()}")
            try:
                fill(making)
                with making.open("rb") as data:
                    found = hashlib.file_digest(data, "sha256").hexdigest()
                making.rename(path)
            finally:
                making.unlink(missing_ok=True)
            noted.write_text(found)
        return cls(path, noted.read_text())


def tar_of(entries: Mapping[str, Path], out: Path) -> None:
    """Write a layer of files and folders, by where they are to lie in the image.

    Owned by root, readable by all, with no times: the same sources give the same layer on every machine.
    """
    seen: set[str] = set()

    def parents(tar: tarfile.TarFile, name: str) -> None:
        parts = name.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            folder = "/".join(parts[:depth])
            if folder and folder not in seen:
                seen.add(folder)
                made = tarfile.TarInfo(folder)
                made.type, made.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(made)

    with tarfile.open(out, "w") as tar:
        for target, source in sorted(entries.items()):
            for file in files(source):
                below = "" if file == source else "/" + file.relative_to(source).as_posix()
                name = target.strip("/") + below
                parents(tar, name)
                entry = tarfile.TarInfo(name)
                entry.size = file.stat().st_size
                entry.mode = 0o755 if os.access(file, os.X_OK) else 0o644
                with file.open("rb") as data:
                    tar.addfile(entry, data)


@dataclass(frozen=True, slots=True)
class Image:
    """An image: its name, its layers from the bottom up, and how its process is started by default."""

    name: str
    layers: Sequence[Layer]
    command: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    workdir: str = "/"

    def config(self) -> bytes:
        """The image's configuration (OCI image specification, config.md); its hash is the image's id."""
        return json.dumps(
            {
                "architecture": architecture(),
                "os": "linux",
                "config": {
                    "Env": [f"{name}={value}" for name, value in {"PATH": PATH, **self.env}.items()],
                    "Cmd": list(self.command),
                    "User": self.user,
                    "WorkingDir": self.workdir,
                },
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{each.digest}" for each in self.layers]},
                "history": [{"created_by": "devloop tests"} for _ in self.layers],
            },
            sort_keys=True,
        ).encode()


def archive(images: Sequence[Image], out: Path) -> None:
    """Write images to one archive as `docker save` does; a layer that several share is in it once."""

    def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))

    manifest = []
    with tarfile.open(out, "w") as tar:
        for layer in {each.digest: each for image in images for each in image.layers}.values():
            entry = tarfile.TarInfo(f"{layer.digest}.tar")
            entry.size = layer.path.stat().st_size
            with layer.path.open("rb") as data:
                tar.addfile(entry, data)
        for image in images:
            config = image.config()
            name = f"{hashlib.sha256(config).hexdigest()}.json"
            add(tar, name, config)
            layers = [f"{each.digest}.tar" for each in image.layers]
            manifest.append({"Config": name, "RepoTags": [image.name], "Layers": layers})
        add(tar, "manifest.json", json.dumps(manifest).encode())

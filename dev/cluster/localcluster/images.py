"""Container images written as OCI archives by hand: a few folders need no builder.

The sandbox image holds one static program. The development image holds empty folders: the runtime wrapper lays the
host's interpreter, the virtual environment and the checkout over them, so a change needs no image build.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .paths import CHECKOUT, cache_folder, virtual_environment

SANDBOX_IMAGE = "localhost/thranite-sandbox:local"
DEV_IMAGE = "localhost/thranite-dev:local"
DEV_USER = 65532
SYSTEM_FOLDERS = ("/usr", "/etc/ssl", "/etc/alternatives")
SYSTEM_FILES = ("/etc/ld.so.cache",)
MERGED_LINKS = ("bin", "lib", "lib64", "sbin")
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass
class Layer:
    """One uncompressed layer, the same bytes for the same content."""

    buffer: io.BytesIO = field(default_factory=io.BytesIO)

    def __post_init__(self) -> None:
        self.tar = tarfile.TarFile(fileobj=self.buffer, mode="w", format=tarfile.PAX_FORMAT)

    def folder(self, path: str, mode: int = 0o755) -> None:
        self._add(path, tarfile.DIRTYPE, mode)

    def link(self, path: str, target: str) -> None:
        self._add(path, tarfile.SYMTYPE, 0o777, target=target)

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self._add(path, tarfile.REGTYPE, mode, content=content)

    def _add(self, path: str, kind: bytes, mode: int, target: str = "", content: bytes = b"") -> None:
        entry = tarfile.TarInfo(path.strip("/"))
        entry.type, entry.mode, entry.linkname, entry.size = kind, mode, target, len(content)
        self.tar.addfile(entry, io.BytesIO(content))

    def content(self) -> bytes:
        self.tar.close()
        return self.buffer.getvalue()


def write_archive(path: Path, name: str, layer: bytes, config: dict[str, Any]) -> None:
    """An archive that `ctr images import` takes under that name."""
    blobs: dict[str, bytes] = {}

    def blob(media_type: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    layer_blob = blob("application/vnd.oci.image.layer.v1.tar", layer)
    rootfs = {"type": "layers", "diff_ids": [layer_blob["digest"]]}
    image = {"architecture": "amd64", "os": "linux", "config": config, "rootfs": rootfs}
    image_blob = blob("application/vnd.oci.image.config.v1+json", json.dumps(image).encode())
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": image_blob, "layers": [layer_blob]}
    entry = blob(MANIFEST, json.dumps(manifest).encode()) | {"annotations": {"io.containerd.image.name": name}}
    archive = Layer()
    archive.file("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    archive.file("index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode())
    for digest, content in blobs.items():
        archive.file(f"blobs/sha256/{digest}", content)
    path.write_bytes(archive.content())


def write_sandbox_image(path: Path, program: Path) -> None:
    layer = Layer()
    layer.file("pause", program.read_bytes(), 0o755)
    write_archive(path, SANDBOX_IMAGE, layer.content(), {"Entrypoint": ["/pause", "pause"]})


def interpreter() -> Path:
    """The installation behind the virtual environment, which need not be the one that runs this program."""
    environment = virtual_environment()
    return (environment / "bin" / "python").resolve().parents[1] if environment else Path(sys.base_prefix)


def laid_over() -> list[str]:
    """What the development image shows of the host, outer folders first."""
    chosen = [*SYSTEM_FOLDERS, str(interpreter()), str(CHECKOUT)]
    environment = virtual_environment()
    if environment:
        chosen.append(str(environment))
    present = sorted({path for path in chosen if Path(path).is_dir()})
    return [path for path in present if not any(path.startswith(f"{outer}/") for outer in present)]


def seen_folders() -> list[Path]:
    """All that nodes must see of the machine, outer folders first."""
    return sorted({cache_folder(), *(Path(path) for path in laid_over())})


def dev_mounts() -> list[dict[str, Any]]:
    files = [path for path in SYSTEM_FILES if Path(path).is_file()]
    options = ["rbind", "ro", "nosuid"]
    return [{"destination": p, "type": "bind", "source": p, "options": options} for p in [*laid_over(), *files]]


def _with_parents(paths: Iterable[str]) -> list[str]:
    """Each folder after those that it lies in."""
    folders = {str(parent) for path in paths for parent in (Path(path), *Path(path).parents)}
    return sorted(folders - {"/"})


def write_dev_image(path: Path) -> None:
    layer = Layer()
    home = "/home/thranite"
    for folder in _with_parents([*laid_over(), "/dev", "/proc", "/sys", "/run", "/etc", "/home", "/root"]):
        layer.folder(folder)
    for folder in ("/tmp", "/var", "/var/tmp", home):
        layer.folder(folder, 0o755 if folder == "/var" else 0o1777)
    for link in MERGED_LINKS:
        if Path("/", link).is_symlink():
            layer.link(link, f"usr/{link}")
    user = f"thranite:x:{DEV_USER}:{DEV_USER}::{home}:/bin/sh\n"
    layer.file("etc/passwd", f"root:x:0:0::/root:/bin/sh\n{user}".encode())
    layer.file("etc/group", f"root:x:0:\nthranite:x:{DEV_USER}:\n".encode())
    write_archive(path, DEV_IMAGE, layer.content(), _dev_config(home))


def _dev_config(home: str) -> dict[str, Any]:
    environment = virtual_environment()
    folders = [f"{environment}/bin"] if environment else []
    search = ":".join([*folders, f"{interpreter()}/bin", "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"])
    variables = [f"PATH={search}", f"HOME={home}", "PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1"]
    return {"User": f"{DEV_USER}:{DEV_USER}", "Env": variables, "WorkingDir": str(CHECKOUT), "Cmd": ["python"]}

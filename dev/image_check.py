"""Build both images of the Dockerfile without a registry, and run them: `python dev/image_check.py [TARGET …]`.

The base is made by debootstrap, the images by buildah; both need root. Packages come from Debian's mirror and from the
Python package index. Sizes are printed by layer; images stay in buildah's store as localhost/thranite-TARGET:check.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BASE = "localhost/thranite-base:check"
SUITE, PACKAGES = "bookworm", "python3,python3-venv,ca-certificates"
ISOLATION = ("--isolation", "chroot")
PIP_FILES = ("/etc/pip.conf", "/etc/ssl/certs")
# What Triton compiles at run time includes it.
HEADERS = "import sysconfig; print(sysconfig.get_path('include'))"
PYTHON_H = f'echo "#include <Python.h>" | gcc -fsyntax-only -I "$(python -c "{HEADERS}")" -x c -'
CHECKS = {
    "operator": [["python", "-m", "thranite_operator", "--help"]],
    "runtime": [
        ["thranite", "check", "/model", "--gpu-memory", "80GB"],
        ["thranite", "--help"],
        ["sh", "-c", PYTHON_H],
    ],
}
MODEL = ROOT / "tests" / "e2e" / "tiny-model"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=[*CHECKS, []], help="default: both")
    parser.add_argument("--file", default=str(ROOT / "Dockerfile"), help="the Dockerfile")
    args = parser.parse_args()
    missing = [program for program in ("buildah", "debootstrap") if shutil.which(program) is None]
    if missing or os.geteuid() != 0:
        print(f"image-check needs root, and {' and '.join(missing) or 'has its programs'}", file=sys.stderr)
        return 1
    make_base()
    for target in args.targets or list(CHECKS):
        build(target, args.file)
        sizes(target)
        for command in CHECKS[target]:
            check(target, command)
    return 0


def make_base() -> None:
    """A Debian with Python, once."""
    if run("buildah", "images", "--quiet", "--filter", f"reference={BASE}").strip():
        return
    with tempfile.TemporaryDirectory(prefix="thranite-base-") as folder:
        print(f"debootstrap of {SUITE} with {PACKAGES}", flush=True)
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, folder)
        shutil.rmtree(Path(folder, "var/cache/apt/archives"), ignore_errors=True)
        Path(folder, "var/cache/apt/archives/partial").mkdir(parents=True)
        container = run("buildah", "from", "scratch").strip()
        run("buildah", "add", "--quiet", container, folder, "/")
        run("buildah", "config", "--cmd", "/bin/sh", container)
        run("buildah", "commit", "--quiet", "--rm", container, BASE)


def build(target: str, file: str) -> None:
    """Package indices and certificates of this machine are seen during the build, and are not in the image."""
    shared = [part for path in PIP_FILES if Path(path).exists() for part in ("--volume", f"{path}:{path}:ro")]
    options = ["--layers", "--network", "host", "--target", target, "--build-arg", f"BASE={BASE}", "--file", file]
    command = ["buildah", "bud", *ISOLATION, *options, *shared, "--tag", image(target), str(ROOT)]
    print(f"building {image(target)}", flush=True)
    subprocess.run(command, check=True)


def check(target: str, command: list[str]) -> None:
    """As in a pod: the image's own user, and nothing of this machine but a model's configuration."""
    container = run("buildah", "from", image(target)).strip()
    try:
        words = ["buildah", "run", *ISOLATION, "--volume", f"{MODEL}:/model:ro", container, "--", *command]
        print(f"$ {' '.join(command)}\n{run(*words)}", flush=True)
        user = run("buildah", "run", *ISOLATION, container, "--", "id", "-u").strip()
        if user != "10001":
            sys.exit(f"{image(target)} runs as uid {user}, not 10001")
    finally:
        run("buildah", "rm", container)


def sizes(target: str) -> None:
    facts = json.loads(run("buildah", "inspect", "--type", "image", image(target)))
    with tempfile.TemporaryDirectory(prefix="thranite-image-") as folder:
        run("buildah", "push", "--quiet", image(target), f"dir:{folder}")
        manifest = json.loads(Path(folder, "manifest.json").read_text())
    history = [item["created_by"] for item in facts["OCIv1"]["history"] if not item.get("empty_layer")]
    total = 0
    for layer, words in zip(manifest["layers"], history, strict=False):
        total += layer["size"]
        print(f"{layer['size'] / 1e6:10.1f} MB  {' '.join(words.split())[:90]}")
    print(f"{total / 1e6:10.1f} MB  {image(target)}, layers as stored")


def image(target: str) -> str:
    return f"localhost/thranite-{target}:check"


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())

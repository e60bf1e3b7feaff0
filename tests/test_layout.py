"""The tree itself: the folder named `operator`, what each package may import, and files that must agree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from thranite import __version__

ROOT = Path(__file__).parents[1]
PARENTS = ("operator", "runtime", "kernels")
KERNEL_IMPORTS = {"torch", "triton", "thranite_kernels"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_source_folders_hold_packages_not_modules() -> None:
    """A module directly in `operator/` would turn the standard library's `operator` into a fake."""
    assert [path for parent in PARENTS for path in (ROOT / parent).glob("*.py")] == []


def test_no_package_in_tests() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_no_package_is_named_operator() -> None:
    assert [path for path in python_files(*PARENTS) if path == ROOT / "operator" / "__init__.py"] == []
    assert not (ROOT / "runtime" / "thranite" / "operator").exists()


@pytest.mark.parametrize("folder", [".", "tests", *PARENTS])
def test_the_standard_librarys_operator_wins(folder: str) -> None:
    probe = "import collections, operator; print(operator.__file__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", probe], cwd=ROOT / folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in done.stdout


def test_every_package_is_shipped_typed_and_whole() -> None:
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == [str(path.parent.relative_to(ROOT)) for path in sorted_packages()]
    for package in packages:
        assert (ROOT / package / "py.typed").is_file()
        for path in python_files(package):
            assert (path.parent / "__init__.py").is_file(), f"{path} lies outside any package"


def sorted_packages() -> list[Path]:
    return [path for parent in PARENTS for path in sorted((ROOT / parent).glob("*/__init__.py"))]


def test_kernels_import_torch_and_triton_alone() -> None:
    allowed = KERNEL_IMPORTS | sys.stdlib_module_names
    for path in python_files("kernels"):
        assert imported(path) <= allowed, path


def imported(path: Path) -> set[str]:
    """Top-level names of the absolute imports of a file, wherever they stand in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).split(".")[0])
    return names


def test_msgspec_stays_in_ipc_and_server() -> None:
    allowed = {ROOT / "runtime" / "thranite" / name for name in ("ipc", "server")}
    users = [path for path in python_files("runtime") if "msgspec" in imported(path)]
    assert users
    assert [path for path in users if not allowed & set(path.parents)] == []


def test_files_and_functions_keep_their_budget() -> None:
    """None over 400 lines, no function over 60; device code, which cannot be split as freely, excepted."""
    for path in python_files(*PARENTS):
        text = path.read_text()
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_device_code(node):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"


def is_device_code(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(re.search(r"(triton|gluon)\.jit", ast.unparse(decorator)) for decorator in node.decorator_list)


def test_the_changelog_names_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[({re.escape(__version__)}|Unreleased)\]", text, re.MULTILINE)


def test_base_dependencies_are_empty() -> None:
    """The operator's image must not pull torch, nor the runtime's kopf."""
    assert PROJECT["project"]["dependencies"] == []
    extras = PROJECT["project"]["optional-dependencies"]
    assert not any(need.startswith(("torch", "triton", "transformers")) for need in extras["operator"])
    assert not any(need.startswith(("kopf", "kubernetes")) for need in extras["runtime"])

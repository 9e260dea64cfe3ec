"""The rooms: import rules, lengths of code, and docs that match the source tree."""

from __future__ import annotations

import ast
import pkgutil
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from waiting import SECONDS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "ledom"
LAYERS: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
][0]["layers"]
ROOMS = [layer for layer in LAYERS if layer not in ("__main__", "rewards")]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files that the contract reads."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    ignore = shutil.ignore_patterns("__pycache__", "embedded", "files")
    shutil.copytree(PACKAGE, tmp_path / "src" / "ledom", ignore=ignore)
    return tmp_path


def lint_imports(checkout: Path) -> subprocess.CompletedProcess[str]:
    """Check the contract on a checkout's own source, whichever ledom is installed."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    return subprocess.run(
        [*command, "--no-cache"],
        cwd=checkout,
        env={"PYTHONPATH": str(checkout / "src")},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_no_room_imports_from_one_above(checkout: Path) -> None:
    result = lint_imports(checkout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 kept, 0 broken" in result.stdout


@pytest.mark.slow
def test_planted_imports_from_above_break_the_contract(checkout: Path) -> None:
    planted = {
        "core.direction": ("text.tokenizer", "from ledom.text.tokenizer import Tokenizer"),
        "model.checkpoint": ("lm.language_model", "import ledom.lm.language_model"),
        "train.loop": ("rerank.fit", "def late() -> None:\n    from ledom.rerank import fit"),
    }
    for module, (_, line) in planted.items():
        with (checkout / "src" / "ledom" / f"{module.replace('.', '/')}.py").open("a") as source:
            source.write(f"\n{line}\n")
    result = lint_imports(checkout)
    assert result.returncode == 1
    for module, (above, _) in planted.items():
        assert f"ledom.{module} -> ledom.{above} " in result.stdout


def test_the_top_level_has_only_the_rooms_and_one_module() -> None:
    """There are at most twelve names."""
    of_every_package = {"__init__.py", "__main__.py", "__pycache__", "py.typed"}
    names = {path.name for path in PACKAGE.iterdir()} - of_every_package
    assert names == {*ROOMS, "rewards.py"}
    assert len(names) <= 12


def folders_in(map_: str) -> list[str]:
    """The folders named by a map in a fenced block, one per line, in order."""
    return re.findall(r"^  ([a-z_]+)/ ", map_, re.MULTILINE)


def test_the_readmes_map_matches_the_tree() -> None:
    block = re.search(r"^src/ledom/\n((?:  .*\n)+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert block is not None
    named = folders_in(block[1])
    assert sorted(named) == sorted(
        path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"
    )
    assert [name for name in named if name in ROOMS] == ROOMS[::-1]  # bottom to top


def test_the_architecture_page_names_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for room in ROOMS:
        section = re.search(rf"^## {room}/\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
        assert section is not None, f"docs/architecture.md lacks the room {room}/"
        for file in (PACKAGE / room).rglob("*.py"):
            if file.name != "__init__.py":
                name = file.relative_to(PACKAGE / room).with_suffix("").as_posix()
                assert f"`{name}`" in section[1], f"docs/architecture.md lacks {room}/{name}"
        for name in re.findall(r"^- `([\w/]+)`", section[1], re.MULTILINE):
            assert (PACKAGE / room / f"{name}.py").is_file(), f"no module {room}/{name}"


@pytest.mark.slow
def test_files_and_functions_are_short() -> None:
    texts = {path.relative_to(PACKAGE): path.read_text() for path in PACKAGE.rglob("*.py")}
    assert [str(path) for path, text in texts.items() if len(text.splitlines()) > 400] == []
    lengths = {
        f"{path}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for path, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    }
    assert {name for name, lines in lengths.items() if lines > 60} == set()
    assert statistics.median(lengths.values()) <= 10
    assert statistics.quantiles(lengths.values(), n=20)[-1] <= 40


def _submodules(module: ModuleType) -> set[str]:
    return {found.name for found in pkgutil.iter_modules(getattr(module, "__path__", ()))}


def test_names_that_other_modules_import_are_listed_as_public() -> None:
    missing = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ledom."):
                module = import_module(node.module or "")
                names = [alias.name for alias in node.names]
                listed = {*getattr(module, "__all__", names), *_submodules(module)}
                missing += [(path.name, node.module, name) for name in names if name not in listed]
    assert missing == []


def test_tests_are_short_and_mirror_the_rooms() -> None:
    root = ROOT / "tests"
    files = [path.relative_to(root) for path in root.rglob("*.py")]
    assert [str(f) for f in files if len((root / f).read_text().splitlines()) > 400] == []
    folders = {file.parent for file in files}
    assert {Path(room) for room in ROOMS} <= folders
    assert [str(folder) for folder in folders if not (PACKAGE / folder).is_dir()] == []

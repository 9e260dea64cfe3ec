"""--out is refused before any work if the path holds the wrong kind: a file, or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

from command_line import Run, check_refused
from ledom.cli.app import app

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OUT = {name: p for name, command in COMMANDS.items() for p in command.params if p.name == "out"}
WRITES_FILE = {"tune", "gallery"}


def arguments(command: click.Command) -> list[str]:
    """A text for every required argument: none of them is read."""
    return ["x" for p in command.params if isinstance(p, click.Argument) and p.required]


@pytest.mark.parametrize("name", OUT)
def test_a_path_of_the_wrong_kind_is_refused_first(run: Run, tmp_path: Path, name: str) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    given = name, *arguments(COMMANDS[name]), "--out"
    if name in WRITES_FILE:
        check_refused(run(*given, tmp_path), f"{tmp_path}: this is a folder, but --out needs a")
    else:
        check_refused(run(*given, file), f"{file}: this is a file, but --out needs a folder")
    check_refused(run(*given, file / "inside"), f"{file}: this is a file, but --out needs a folder")
    assert file.read_text() == "mine"

"""The program itself, without a command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import Run, check_refused
from waiting import SECONDS


@pytest.mark.slow
def test_no_arguments_show_the_commands(run: Run) -> None:
    code, text = run()
    assert code == 0
    assert "rerank" in text
    assert "error" not in text


@pytest.mark.slow
def test_python_without_docstrings_is_refused_before_any_work() -> None:
    """transformers cannot be imported then; training would fail only once the data is prepared."""
    done = subprocess.run(
        [sys.executable, "-m", "ledom", "train", "tiny"],
        env=os.environ | {"PYTHONOPTIMIZE": "2"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    check_refused((done.returncode, done.stderr), "PYTHONOPTIMIZE=2", "use -O or no option")
    assert len(done.stderr.splitlines()) == 1


def test_a_removed_working_directory_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    check_refused(run("plan", "tiny"), "the working directory was removed; change to another")
